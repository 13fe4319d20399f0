"""`hwnas predict`: what a network costs, from arithmetic and a table."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.errors import UsageError

from .choices import calibration_spaces, chosen_table, device_profile, named_table, table_path, table_profile
from .options import Command, common, file_path, option
from .terminal import Terminal, count, milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from hwnas.latency.model import Prediction
    from hwnas.models import LoadedModel
    from hwnas.network import Network
    from hwnas.ops import Op


@click.command("predict", cls=Command)
@click.argument("model", metavar="MODEL")
@option("--lut", type=file_path, metavar="FILE", help="The table  [default: the newest of the device under tables/]")
@option("--device", metavar="DEVICE", help="Whose tables are looked for without --lut  [default: cpu]")
@option("--measure", is_flag=True, help="Measure what the table lacks, and add it.")
@option("--limit", type=click.IntRange(1), default=10, metavar="N", help="Operators to show  [default: 10; JSON: all]")
@common
@click.pass_obj
def command(terminal: Terminal, model: str, lut: Path | None, device: str | None, measure: bool, limit: int) -> None:
    """Predict a network: MACs and parameters, and, with a table, the latency of one batch with its interval.

    MODEL is FILE.onnx, zoo:NAME, torchvision:NAME, a run folder, or space:NAME (a whole search space: MACs and
    parameters only). Operators that the table lacks are named, never counted as zero.

    \b
    Example:
      hwnas predict zoo:proxyless-r-mobile
      hwnas predict torchvision:mobilenet_v2 --lut p.lut --measure
      hwnas predict net.onnx --json
    """
    document = _predicted(terminal, model, lut, device, measure)
    if terminal.json:
        terminal.document(document)
    else:
        _show(terminal, document, limit)


def _predicted(terminal: Terminal, text: str, lut: Path | None, device: str | None, measure: bool) -> dict[str, Any]:
    from hwnas.latency.model import LatencyModel
    from hwnas.latency.table import LatencyTable
    from hwnas.models import load_model
    from hwnas.network import NO_LOW_BITS

    loaded = load_model(text)
    network = loaded.network
    if loaded.supernet:
        notes = {"bitops": None, **loaded.notes}  # a supernet holds a weight once, at no bits of its own
        return _document(text, network.ops) | notes
    if network.quantised:
        _check_measurable(text, lut, measure)
        terminal.note(f"no latency: {NO_LOW_BITS}")
        return _document(text, network.ops)
    path = _measured(terminal, loaded, lut, device) if measure else _known_table(terminal, lut, device)
    document = _document(text, network.ops)
    document["unknown"] = list(network.unknown)
    if path is None:
        terminal.note(
            f"no table: no latency; make one with 'hwnas profile --device {device or 'cpu'}', or add --measure"
        )
        return document
    with LatencyTable.open(path) as table:
        model = LatencyModel(table)
        prediction = model.predict(network)
    return document | {"lut": path, "imported": model.imported} | _latency(prediction, network)


def _check_measurable(text: str, lut: Path | None, measure: bool) -> None:
    """Refuses options that ask for the latency of a quantised network.

    Raises:
        UsageError: one of them was given.
    """
    from hwnas.network import NO_LOW_BITS

    if measure or lut is not None:
        raise UsageError(f"{text} has no latency: {NO_LOW_BITS}; leave --lut and --measure out")


def _known_table(terminal: Terminal, lut: Path | None, device: str | None) -> Path | None:
    if lut is not None:
        return named_table(terminal, lut, device)
    return chosen_table(terminal, None, device_profile(terminal, device))


def _measured(terminal: Terminal, loaded: LoadedModel, lut: Path | None, device: str | None) -> Path:
    """The table after what it lacks of the network has been measured into it."""
    from hwnas.latency.build import build_table, measure_missing

    path = _known_table(terminal, lut, device)
    if path is not None and path.exists():
        profile = table_profile(path, device)
    else:
        profile = device_profile(terminal, device)
        path = table_path(terminal, lut, profile)
    terminal.kept = f"every finished measurement is in {path}"
    if path.exists():
        measure_missing(profile, path, loaded.network, terminal.progress())
    else:  # a new table also gets networks to calibrate on, this one among them
        models = {loaded.name: loaded.network}
        spaces = calibration_spaces(terminal, models, path)
        build_table(profile, path, spaces=spaces, models=models, progress=terminal.progress())
    return path


def _document(text: str, ops: Sequence[Op]) -> dict[str, Any]:
    """The JSON document as far as arithmetic goes."""
    from collections import Counter

    counts = Counter(op.deployed() for op in ops)
    found = [{"op": op.key, "count": n, "latency_ms": None, "macs": op.macs * n} for op, n in counts.items()]
    return {
        "model": text,
        "lut": None,
        "latency_ms": None,
        "low_ms": None,
        "high_ms": None,
        "macs": sum(op.macs for op in ops),
        "params": sum(op.params for op in ops),
        "conv_fc_params": sum(op.conv_fc_params for op in ops),
        "bitops": sum(op.bitops for op in ops) or None,  # only quantised networks have them
        "coverage": None,
        "interpolated": None,
        "estimated": None,
        "guessed": None,
        "calibrated": None,
        "missing": [],
        "unknown": [],
        "terms": {},
        "ops": sorted(found, key=lambda entry: -int(str(entry["macs"]))),
    }


def _latency(prediction: Prediction, network: Network) -> dict[str, Any]:
    ops = [
        {
            "op": estimate.key,
            "count": estimate.count,
            "latency_ms": estimate.latency_ms,
            "macs": estimate.macs,
            "how": estimate.how or None,
            "failure": estimate.failure,
        }
        for estimate in prediction.ops
    ]
    return {
        "latency_ms": prediction.latency_ms,
        "low_ms": prediction.low_ms,
        "high_ms": prediction.high_ms,
        "coverage": prediction.coverage,
        "interpolated": prediction.interpolated,
        "estimated": prediction.estimated,
        "guessed": prediction.guessed or None,
        "calibrated": prediction.calibrated,
        "missing": [name for name in prediction.missing if name not in network.unknown],
        "terms": dict(prediction.terms),
        "ops": ops,
    }


def _show(terminal: Terminal, document: dict[str, Any], limit: int) -> None:
    from rich.table import Table

    head = Table(box=None, show_header=False, pad_edge=False)
    head.add_row("model", document["model"])
    if document["latency_ms"] is not None:
        interval = milliseconds(document["low_ms"], document["high_ms"])
        head.add_row("latency", f"{milliseconds(document['latency_ms'])} ms ({interval})")
    if document["terms"]:
        parts = ", ".join(f"{milliseconds(value)} ms {kind}" for kind, value in document["terms"].items())
        head.add_row("of these", f"{parts}, which are no operator's")
    if document["coverage"] is not None:
        head.add_row("coverage", _coverage(document))
    head.add_row("MACs", f"{document['macs']:,} (papers: FLOPs)")
    if document["bitops"]:
        head.add_row("BitOps", f"{document['bitops']:,} ({document['bitops'] / 2**30:.2f}G, G is 2^30)")
    head.add_row("parameters", f"{document['params']:,} ({document['conv_fc_params']:,} without BatchNorm)")
    if "log10_architectures" in document:
        head.add_row("architectures", f"10^{document['log10_architectures']:.1f}")
        parts = "channels of groups" if document["unit"] == "channels" else "atoms of blocks"
        head.add_row(parts, ", ".join(map(str, document["atoms"])))
    terminal.table(head, _operators(document["ops"][:limit], "missing" if document["lut"] else ""))
    rest = len(document["ops"]) - limit
    if rest > 0:
        terminal.table(f"and {count(rest, 'operator')} more (--limit, --json)")
    for name in document["unknown"]:
        terminal.table(f"not understood: {name}; its costs are in none of these figures")
    if document["missing"]:
        measuring = shlex.join(["hwnas", "predict", document["model"], "--lut", str(document["lut"]), "--measure"])
        terminal.table(f"the table lacks {count(len(document['missing']), 'operator')}, so there is no latency:")
        mend = "it was imported: nothing can be added" if document["imported"] else f"measure with: {measuring}"
        terminal.table(*(f"  {key}" for key in document["missing"][:limit]), mend)


def _coverage(document: dict[str, Any]) -> str:
    """How the operators are known."""
    share = f"{document['coverage']:.1%} of the operators are in {document['lut']}"
    text = f"in {document['lut']}: {document['guessed']}" if document["guessed"] else share
    return text if document["calibrated"] else f"{text}; uncalibrated: no whole networks were measured"


def _operators(ops: list[dict[str, Any]], absent: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("operator", overflow="fold")
    for title in ("times", "ms", "MACs"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for entry in ops:
        latency = absent if entry["latency_ms"] is None else milliseconds(entry["latency_ms"])
        how = entry.get("how")
        mark = "" if how in (None, "measured") else f"({how})"
        table.add_row(entry["op"], str(entry["count"]), latency, f"{entry['macs']:,}", mark)
    return table
