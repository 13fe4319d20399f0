"""`hwnas profile`: measures what spaces and models need into a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.errors import UsageError

from .choices import DEFAULT_SPACES, SPACE_NAMES, calibration_spaces, device_options, device_profile, table_path
from .options import Command, common, file_path, fraction, option
from .terminal import Terminal, count

if TYPE_CHECKING:
    from hwnas.latency.build import BuildReport
    from hwnas.network import Network

NO_SPACE = "none"
"""Typed for --space, where a model is to be measured alone."""


@click.command("profile", cls=Command)
@device_options
@option(
    "--space",
    multiple=True,
    metavar="SPACE",
    help=f"Cover this space; may be repeated: {SPACE_NAMES}. Or {NO_SPACE}: the models alone.",
)
@option("--model", multiple=True, metavar="MODEL", help="Cover FILE.onnx, zoo:NAME, torchvision:NAME; may be repeated.")
@option("--image-size", type=click.IntRange(1), help="Pixels of the spaces' images  [default: each space's own]")
@option("--num-classes", type=click.IntRange(1), help="Classes of the spaces  [default: each space's own]")
@option("--target-error", type=fraction, metavar="PERCENT", help="Measure each entry until it is known so well.")
@option("--lut", type=file_path, metavar="FILE", help="The table  [default: one under tables/, named by the device]")
@common
@click.pass_obj
def command(
    terminal: Terminal,
    device: str | None,
    batch: int | None,
    precision: str | None,
    runtime: str | None,
    threads: int | None,
    space: tuple[str, ...],
    model: tuple[str, ...],
    image_size: int | None,
    num_classes: int | None,
    target_error: float | None,
    lut: Path | None,
) -> None:
    """Time every operator that search spaces and models need, and some whole networks, into a table.

    What the table already holds is not measured again, and an interrupted run goes on where it was.

    \b
    Example:
      hwnas profile --device cpu
      hwnas profile --device cpu --space proxyless --threads 1 --lut p.lut
      hwnas profile --device cuda --space proxyless
      hwnas profile --model net.onnx --batch 8
      hwnas profile --model net.onnx --space none

    Models alone would say little of how far a prediction is off: without --space, the ProxylessNAS space of the
    models' image size is measured with them, and its networks are calibrated on. '--space none' leaves it out.
    """

    from hwnas.latency.build import build_table
    from hwnas.models import space_name
    from hwnas.network import NO_LOW_BITS
    from hwnas.spaces import WidthSpace, find_space

    profile = device_profile(terminal, device, batch, precision, runtime, threads, target_error)
    if NO_SPACE in space and (len(space) > 1 or not model):
        raise UsageError(f"'--space {NO_SPACE}' leaves out every space: give it alone, with a --model")
    if model and (not space or NO_SPACE in space) and (image_size or num_classes):
        raise UsageError("--image-size and --num-classes are of spaces, a model has its own: name a --space")
    if not space and not model:
        space = DEFAULT_SPACES
        terminal.default("--space", " and ".join(DEFAULT_SPACES))
    names = [space_name(name) for name in space if name != NO_SPACE]
    spaces = [find_space(name, image_size=image_size, num_classes=num_classes) for name in names]
    models = _networks(model)
    quantised = [s.name for s in spaces if not isinstance(s, WidthSpace) and any(op.bits for op in s.supernet_ops())]
    quantised += [name for name, network in models.items() if network.quantised]
    if quantised:
        raise UsageError(f"{', '.join(quantised)}: no latency to measure, {NO_LOW_BITS}; search with --bitops")
    path = table_path(terminal, lut, profile)
    if models and not space:
        spaces = [*calibration_spaces(terminal, models, path)]
    terminal.kept = f"every finished measurement is in {path}"
    report = build_table(profile, path, spaces=spaces, models=models, progress=terminal.progress())
    document = _document(report, path)
    if terminal.json:
        terminal.document(document)
    else:
        _show(terminal, document)


def _networks(texts: tuple[str, ...]) -> dict[str, Network]:
    if not texts:
        return {}
    from hwnas.models import load_model

    return {text: load_model(text).network for text in texts}


def _document(report: BuildReport, path: Path) -> dict[str, Any]:
    from hwnas.latency.table import LatencyTable

    data = report.to_json()
    with LatencyTable.open(path) as table:
        measured = {network.name for network in table.networks()}
        unmeasured = [name for name in table.names("network") if name not in measured]
    failed = {"failed": len(data["failed"]), "failures": data["failed"], "unmeasured_networks": unmeasured}
    return {**data, **failed}


def _show(terminal: Terminal, data: dict[str, Any]) -> None:
    from rich.table import Table

    from hwnas.progress import duration

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("table", str(data["lut"]))
    setting = f"{data['precision']}, batch {data['batch_size']}, {count(data['threads'], 'thread')}"
    table.add_row("device", f"{data['device']}, {data['runtime']}, {setting}")
    entries = f"{data['measured']} measured, {data['reused']} reused, {data['failed']} failed"
    table.add_row("entries", f"{data['entries']}: {entries}")
    table.add_row("took", duration(data["seconds"]))
    table.add_row("calibration", _calibration(data["calibration"]))
    terminal.table(table)
    lines = {
        "failed operators": [failure["op"] for failure in data["failures"]],
        "operators that are not understood, so that their networks were not measured": data["unknown"],
        "whole networks without a measurement (failed or interrupted)": data["unmeasured_networks"],
    }
    terminal.table(*(f"{what}: {', '.join(names)}" for what, names in lines.items() if names))


def _calibration(figures: dict[str, float | int | None] | None) -> str:
    if not figures or figures.get("mape") is None:
        return "none: too few whole networks were measured"
    percent = {key: f"{100 * value:.1f}%" for key, value in figures.items() if isinstance(value, float)}
    tau = figures["kendall_tau"]  # one or two networks have no order to speak of
    return (
        f"{count(int(figures['networks'] or 0), 'network')}, each predicted without itself: "
        f"mean error {percent['mape']}, within 5% {percent['within_5']}, "
        f"interval holds {percent['interval_coverage']}" + ("" if tau is None else f", Kendall tau {tau:.2f}")
    )
