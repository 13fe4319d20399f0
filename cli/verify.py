"""`hwnas verify`: measures networks on the device and compares with prediction and budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.errors import ClaimError, HwnasError, UsageError

from .choices import chosen_table, device_options, device_profile, table_profile
from .options import Command, common, file_path, option
from .pictures import pictures
from .subjects import Subject, refuse_quantised, subjects_of
from .terminal import Terminal, milliseconds, percent, plain

if TYPE_CHECKING:
    from hwnas.devices import DeviceProfile
    from hwnas.verify import Candidate, VerifyReport


PICTURES = 16
"""Outputs are compared on at least so many."""

KEPT, MISSED, UNSURE = "within budget", "OVER BUDGET", "NOT SHOWN to be within budget"


@click.command("verify", cls=Command)
@click.argument("model", required=False, metavar="[MODEL]")
@device_options
@option("--lut", type=file_path, metavar="FILE", help="The table  [default: the run's, else the newest that fits]")
@option("--latency", metavar="B", help="Budget: 17ms or zoo:NAME  [default: that of the run's nets]")
@option("--data", metavar="DATA", help="Pictures to compare outputs on  [default: the run's, else fashion-mnist]")
@common
@click.pass_obj
def command(
    terminal: Terminal,
    model: str | None,
    device: str | None,
    batch: int | None,
    precision: str | None,
    runtime: str | None,
    threads: int | None,
    lut: Path | None,
    latency: str | None,
    data: str | None,
) -> None:
    """Build networks for the device, measure them, and compare with prediction and budget.

    MODEL is a run  [default: the newest under runs/], RUN/nets/NAME, FILE.onnx, zoo:NAME or torchvision:NAME. Within
    budget is what meets it with the upper end of the measurement; else the exit code is 3.

    \b
    Example:
      hwnas verify
      hwnas verify runs/quickstart --device cpu
      hwnas verify net.onnx --latency 17ms
    """
    from hwnas.latency.shipped import table_file
    from hwnas.latency.table import LatencyTable
    from hwnas.verify import verify

    subjects = subjects_of(terminal, model)
    refuse_quantised(subjects)
    given = {"batch_size": batch, "precision": precision, "threads": threads}
    elsewhere = lut is None and _record(subjects).get("imported", False)
    if elsewhere and device is None:
        raise HwnasError(
            f"the run was searched for {_record(subjects).get('device')}, on a table that was imported: name the "
            "device to measure here with --device"
        )
    path = table_file(lut) if lut else None if elsewhere else _recorded_table(terminal, subjects)
    if path is None:
        if not elsewhere:
            given = _as_recorded(terminal, given, subjects)
            runtime = runtime or _recorded_runtime(terminal, device, subjects)
        path = chosen_table(terminal, None, device_profile(terminal, device, runtime=runtime), given=given)
    profile = _profile(terminal, device, runtime, given, path)
    budget_ms = _budget(latency, path)
    candidates = [_candidate(terminal, subject, profile, budget_ms, data) for subject in subjects]
    terminal.kept = "nothing was written"
    if path is None:
        terminal.note("no table: nothing is predicted")
        reports = verify(candidates, profile, table=None, progress=terminal.progress())
    else:
        with LatencyTable.open(path) as table:
            reports = verify(candidates, profile, table=table, progress=terminal.progress())
    document = _document(profile, path, subjects, reports)
    _keep(subjects, document)
    if terminal.json:
        terminal.document(document)
    else:
        _show(terminal, document)
    _judge(reports)
    _judge_counts(document["results"])


# -- with what it is verified ----------------------------------------------------------------------------------------


def _record(subjects: Sequence[Subject]) -> dict[str, Any]:
    """What run.toml says of the table that the run was searched with; empty where it had none."""
    return dict(subjects[0].run.get("notes", {}).get("table", {}))


def _recorded_table(terminal: Terminal, subjects: Sequence[Subject]) -> Path | None:
    """The run's table; None where it had none or it is gone."""
    from hwnas.latency.table import LatencyTable

    recorded = _record(subjects)
    if recorded:
        path = Path(str(recorded.get("lut", "")))
        # safe although a run may come from anywhere: the file is opened read-only as SQLite, only after a check that it
        # is a whole table, and used only if it was created at the very time that the run recorded
        try:
            with LatencyTable.open(path) as table:
                same = table.header["created"] == recorded.get("created")
        except HwnasError:
            same = False
        if same:
            terminal.default("--lut", path, "the run's")
            return path
        terminal.note(f"the table of the run is not at {path} any more")
    return None


def _as_recorded(terminal: Terminal, given: dict[str, Any], subjects: Sequence[Subject]) -> dict[str, Any]:
    """`given`, with what was not typed as the run's table was measured: its budgets and predictions are of that."""
    recorded, filled = _record(subjects), dict(given)
    for key, name in (("batch_size", "--batch"), ("precision", "--precision"), ("threads", "--threads")):
        if given[key] is None and key in recorded:
            filled[key] = recorded[key]
            terminal.default(name, recorded[key], "the run's")
    return filled


def _recorded_runtime(terminal: Terminal, device: str | None, subjects: Sequence[Subject]) -> str | None:
    """The runtime that the run's table was measured with; None where there is none, or a device was named."""
    recorded = _record(subjects).get("runtime")
    if recorded is None or device is not None:
        return None
    terminal.default("--runtime", recorded, "the run's")
    return str(recorded)


def _profile(
    terminal: Terminal, device: str | None, runtime: str | None, given: dict[str, Any], path: Path | None
) -> DeviceProfile:
    """How to measure: as the table was measured, where there is one and nothing else is asked for."""
    wanted = {key: value for key, value in given.items() if value is not None}
    if path is None:
        return device_profile(terminal, device, runtime=runtime).override(**wanted)
    made = table_profile(path)
    if device is None:
        return made.override(runtime=runtime, **wanted)
    as_made = {"batch_size": made.batch_size, "precision": made.precision, "threads": made.threads}
    return device_profile(terminal, device, runtime=runtime).override(**{**as_made, **wanted})


def _budget(latency: str | None, path: Path | None) -> float | None:
    """The budget in ms that was typed.

    Raises:
        UsageError: it is no latency, a list, or a share (of what?).
    """
    if latency is None:
        return None
    from hwnas.budget import parse_budget
    from hwnas.latency.model import LatencyModel
    from hwnas.latency.table import LatencyTable
    from hwnas.zoo import zoo_network

    specs = parse_budget("latency", latency)
    if len(specs) != 1 or specs[0].share:
        raise UsageError(f"{latency!r} is no budget for verify: give one latency, as 17ms or zoo:NAME")
    if not specs[0].zoo:
        return specs[0].value
    if path is None:
        raise HwnasError(f"{latency} needs a table that says how much that is: make one with 'hwnas profile'")
    with LatencyTable.open(path) as table:
        predicted = LatencyModel(table).predict(zoo_network(specs[0].zoo)).latency_ms
    if predicted is None:
        raise HwnasError(f"{path} lacks operators of {latency}: run 'hwnas predict {latency} --lut {path} --measure'")
    return predicted


def _candidate(
    terminal: Terminal, subject: Subject, profile: DeviceProfile, budget_ms: float | None, data: str | None
) -> Candidate:
    from hwnas.verify import Candidate

    loaded = subject.loaded
    module = loaded.module()
    if budget_ms is None:
        budget_ms = subject.latency_budget_ms
    images = None
    if module is not None:
        count = profile.batch_size * -(-PICTURES // profile.batch_size)
        images = pictures(terminal, data, subject.found, subject.run, count, loaded.network.input_shape)
    return Candidate(loaded.name, loaded.network, _deployed(subject, module, profile), budget_ms, module, images)


def _deployed(subject: Subject, module: Any, profile: DeviceProfile) -> bytes:
    """The ONNX file's bytes with the profile's batch: the net's own file where it fits, else exported now."""
    import tempfile

    from hwnas.export import export_onnx

    loaded = subject.loaded
    if loaded.onnx_path is not None and (module is None or profile.batch_size == 1):
        return _with_batch(loaded.onnx_path, profile.batch_size)
    assert module is not None
    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(module, loaded.network.input_shape, path, batch_size=profile.batch_size)
        return path.read_bytes()


def _with_batch(path: Path, batch_size: int) -> bytes:
    """The file with the batch it leaves open fixed.

    Raises:
        HwnasError: its batch is fixed to another number, or its weights, in a file beside it, cannot be read.
    """
    import onnx

    try:
        model = onnx.load(path)
    except Exception as error:  # of many types; the file itself has been read before
        why = " ".join(str(error).split())[:160]
        raise HwnasError(f"{path}: its weights cannot be read ({why}): export the model again") from None
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in weights or not value.type.tensor_type.shape.dim:
            continue
        dim = value.type.tensor_type.shape.dim[0]
        if not dim.HasField("dim_value"):
            dim.dim_value = batch_size
        elif dim.dim_value != batch_size:
            raise HwnasError(f"{path} takes batches of {dim.dim_value}: verify it with --batch {dim.dim_value}")
    return bytes(model.SerializeToString())


# -- what comes out ------------------------------------------------------------------------------------------------


def _document(
    profile: DeviceProfile, path: Path | None, subjects: Sequence[Subject], reports: Sequence[VerifyReport]
) -> dict[str, Any]:
    results = []
    for subject, report in zip(subjects, reports, strict=True):
        network, found = subject.loaded.network, subject.found
        costs = network.counts
        rival = found.get("baseline") or {}
        alike = bool(found.get("trained")) == bool(rival.get("trained"))  # else the comparison would be unfair
        baseline = rival.get("accuracy") if alike else None
        limits = {budget["cost"]: budget["limit"] for budget in found.get("budgets") or () if budget["cost"] in costs}
        said = {
            "limits": limits,
            "accuracy": found.get("accuracy"),
            "baseline_accuracy": baseline,
            "folder": subject.loaded.folder,
        }
        results.append({**report.to_json(), **costs, **said})
    setting = {"batch_size": profile.batch_size, "threads": profile.thread_count, "precision": profile.precision}
    return {"device": profile.address, "runtime": profile.runtime, **setting, "lut": path, "results": results}


def _keep(subjects: Sequence[Subject], document: dict[str, Any]) -> None:
    """Writes verify.json beside each found net."""
    from hwnas.runs import NetFolder

    head = {key: value for key, value in document.items() if key != "results"}
    for subject, result in zip(subjects, document["results"], strict=True):
        if subject.loaded.folder is not None:
            NetFolder(subject.loaded.folder).write_json("verify.json", plain({**head, **result}))


def _show(terminal: Terminal, document: dict[str, Any]) -> None:
    """One column for each net."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    rows: dict[str, list[str]] = {}
    for result in document["results"]:
        for name, cell in _cells(result).items():
            rows.setdefault(name, []).append(cell)
    for name, cells in rows.items():
        if any(cell != "-" for cell in cells):
            table.add_row(name, *cells)
    terminal.table(table)


def _cells(result: dict[str, Any]) -> dict[str, str]:
    def interval(name: str) -> str:
        if result[f"{name}_ms"] is None:
            return "-"
        ends = milliseconds(result[f"{name}_low_ms"], result[f"{name}_high_ms"])
        return f"{milliseconds(result[f'{name}_ms'])} ms ({ends})"

    def counted(cost: str) -> str:
        limit = result["limits"].get(cost)
        return f"{result[cost]:,}" + (f" of {limit:,.0f}" if limit is not None else "")

    budget, within = result["budget_ms"], result["within_budget"]
    error, difference = result["relative_error"], result["output_max_rel_diff"]
    normalised = result["drift"] is not None and result["judged_on"] != "as measured"
    raw = f"{milliseconds(result['raw_ms'])} ms (drift: {result['drift']:.3f} times)" if normalised else "-"
    return {
        "net": result["net"],
        "budget": "-" if budget is None else f"{milliseconds(budget)} ms",
        "predicted": interval("predicted") if not result["missing"] else "- (operators are missing, see hwnas predict)",
        "measured": interval("measured"),
        "judged on": result["judged_on"],
        "by the clock now": raw,
        "median, disturbed runs included": f"{milliseconds(result['median_ms'])} ms",
        "verdict": "-" if within is None else verdict(result["measured_low_ms"], result["measured_high_ms"], budget),
        "prediction off by": "-" if error is None else f"{100 * error:+.1f}%",
        "outputs differ by": "-" if difference is None else f"{difference:.1g} of the largest",
        "accuracy": percent(result["accuracy"]),
        "random baseline": percent(result["baseline_accuracy"]),
        "MACs": counted("macs"),
        "parameters": counted("params"),
        "bytes": counted("bytes") if "bytes" in result["limits"] else "-",
        "files": str(result["folder"] or "-"),
    }


def verdict(low_ms: float, high_ms: float, budget_ms: float) -> str:
    """What a measurement says of a budget: kept, missed, or neither for sure."""
    if high_ms <= budget_ms:
        return KEPT
    return MISSED if low_ms > budget_ms else UNSURE


def _judge(reports: Sequence[VerifyReport]) -> None:
    """Raises:
    ClaimError: a claim does not hold.
    """
    broken = [report for report in reports if not report.holds]
    if not broken:
        return
    first = broken[0]
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    if first.within_budget is False and first.budget_ms is not None:
        over = f"measured up to {milliseconds(first.measured_high_ms)} ms"
        unsure = verdict(first.measured_low_ms, first.measured_high_ms, first.budget_ms) == UNSURE
        advice = (
            " (the budget is inside the interval: stop other work on the device and verify again)" if unsure else ""
        )
        raise ClaimError(f"{first.net}{more}: {over}, over its budget of {milliseconds(first.budget_ms)} ms{advice}")
    raise ClaimError(f"{first.net}{more}: the deployed net's outputs differ from the trained one's: export it again")


def _judge_counts(results: Sequence[dict[str, Any]]) -> None:
    """Raises:
    ClaimError: a net has more MACs, parameters or bytes than its budget.
    """
    for result in results:
        for cost, limit in result["limits"].items():
            if result[cost] > limit:
                raise ClaimError(f"{result['net']}: {cost} {result[cost]:,}, over its budget of {limit:,.0f}")
