"""Builds a table: collects the operators that spaces and models need and measures what is missing (`plan`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.devices import DeviceProfile
from hwnas.errors import HwnasError
from hwnas.latency import atoms
from hwnas.latency.covers import cover_archs
from hwnas.latency.kernels import assign
from hwnas.latency.lowering import Lower, lowering
from hwnas.latency.model import LatencyModel
from hwnas.latency.plan import (
    CALIBRATION_NETWORKS,
    Plan,
    calibration_archs,
    company_of,
    digest_of,
    entries_of,
    operators_of,
    unsure_entries,
)
from hwnas.latency.quality import Quality
from hwnas.latency.slots import SpaceKernels
from hwnas.latency.table import LatencyTable
from hwnas.latency.writer import TableWriter
from hwnas.measure.lock import device_lock
from hwnas.measure.passes import Entry, measure_in_passes
from hwnas.measure.process import MeasuringProcess
from hwnas.measure.runtimes.base import DISTURBED
from hwnas.network import Network
from hwnas.ops import Op
from hwnas.progress import Progress
from hwnas.spaces.base import Space
from hwnas.spaces.gated import GateSpace
from hwnas.spaces.widths import WidthSpace

NOISY = 0.15
"""Spread of the reference network (median / fastest - 1) above which the machine is said to be too noisy."""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a profile did. `entries` counts the table's operators; `measured` and `reused` what was asked for now."""

    lut: str
    device: str
    runtime: str
    precision: str
    batch_size: int
    threads: int
    entries: int
    measured: int
    reused: int
    failed: dict[str, str]
    seconds: float
    calibration: Quality
    unknown: tuple[str, ...] = ()
    estimator: str = ""

    def to_json(self) -> dict[str, Any]:
        """The document of ``hwnas profile --json``."""
        return {**asdict(self), "failed": [{"op": op, "reason": why} for op, why in self.failed.items()]}


MakePlan = Callable[[LatencyTable, Lower], Plan]


def build_table(
    profile: DeviceProfile,
    path: Path,
    *,
    spaces: Sequence[Space | WidthSpace] = (),
    models: Mapping[str, Network] | None = None,
    whole: Mapping[str, Network] | None = None,
    progress: Progress,
) -> BuildReport:
    """Measures every operator that `spaces` and `models` need, and calibration networks, into the table at `path`.

    What the table has is not measured again. Models are calibration networks themselves, and their operators are timed
    inside them. Networks of `whole` are measured whole only. Everything is durable when measured; calling it again goes
    on where it was killed.

    Raises:
        HwnasError: the table belongs to another set-up or cannot be written, the device cannot be measured.
    """
    models = dict(models or {})
    known = {name: network for name, network in models.items() if not network.unknown}
    unknown = tuple(dict.fromkeys(name for network in models.values() for name in network.unknown))

    def plan(_: LatencyTable, lower: Lower) -> Plan:
        ops = [op for network in models.values() for op in lower(network)]
        covers, networks = dict(known), {**known, **(whole or {})}
        for space in spaces:
            if isinstance(space, WidthSpace):
                ops += atoms.kernels(space, lower)
                for index, widths in enumerate(atoms.cover_archs(space)):
                    covers[f"{space.name} #{index}"] = space.network(widths)
                drawn = atoms.calibration_archs(space, CALIBRATION_NETWORKS)
                networks |= {f"{space.name} #{i}": space.network(widths) for i, widths in enumerate(drawn)}
                if isinstance(space, GateSpace):  # channels in and out go in pairs of which covers have only some
                    ops += [op for widths in drawn for op in lower(space.network(widths))]
                    for index, widths in enumerate(atoms.crossed_archs(space, drawn)):
                        covers[f"{space.name} calibration #{index}"] = space.network(widths)
                continue
            kernels = SpaceKernels.of(space, lower)
            ops += kernels.every()
            calibration = calibration_archs(space, CALIBRATION_NETWORKS)
            for index, arch in enumerate(cover_archs(space, kernels, without=calibration)):
                covers[f"{space.name} #{index}"] = space.network(arch)
            for index, arch in enumerate(calibration):
                networks[f"{space.name} #{index}"] = space.network(arch)
        return Plan(tuple(dict.fromkeys(ops)), covers, networks)

    return _measure(profile, path, plan, progress, unknown)


def measure_missing(profile: DeviceProfile, path: Path, network: Network, progress: Progress) -> BuildReport:
    """Measures what the table lacks of `network`'s kernels, inside it, without adding a calibration network."""

    def plan(table: LatencyTable, lower: Lower) -> Plan:
        ops = lower(network)
        lacking = not {op.key for op in ops} <= set(table.operators())
        begun = f"model {digest_of(network)}" in table.names("cover")
        inside = {"model": network} if (lacking or begun) and not network.unknown else {}
        return Plan(tuple(dict.fromkeys(ops)), inside, {}, company_of(table, network.input_shape) if inside else {})

    return _measure(profile, path, plan, progress, ())


def measure_again(
    profile: DeviceProfile,
    path: Path,
    ops: Sequence[Op],
    covers: Mapping[str, Network],
    networks: Mapping[str, Network],
    progress: Progress,
    *,
    least_s: float,
) -> BuildReport:
    """Measures parts of another table into one of their own, over `least_s` seconds.

    Args:
        profile, path: of the new table.
        ops: kernels that are timed alone.
        covers: networks whose kernels are timed.
        networks: timed whole.
        progress: is told.
        least_s: how long it takes at least.
    """
    return _measure(profile, path, lambda _, __: Plan(tuple(ops), covers, networks), progress, (), least_s)


def cache_folder(path: Path) -> Path:
    """Where a runtime keeps what it builds for the table at `path`: beside it."""
    return path.with_name(f"{path.name}.cache")


def _measure(
    profile: DeviceProfile,
    path: Path,
    make_plan: MakePlan,
    progress: Progress,
    unknown: tuple[str, ...],
    least_s: float = 0.0,
) -> BuildReport:
    started = time.monotonic()
    with (
        device_lock(profile.lock_name, progress),
        MeasuringProcess(profile, progress=progress, cache=cache_folder(path)) as process,
        TableWriter.open_or_create(path, profile, process.describe) as table,
    ):
        lower = lowering(process.describe)
        plan = make_plan(table, lower)
        if not process.describe.get("kernels"):
            plan = replace(plan, covers={})
        wanted = {op.key: op for op in plan.ops}
        entries, todo = entries_of(table, profile, plan, lower)
        asked = operators_of(todo, plan, lower)
        session = 0
        reference_ms: list[float] = []

        def run(entries: Mapping[tuple[str, str], Entry], least_s: float = 0.0) -> None:
            nonlocal session
            session = session or table.start_session({"load": process.load_average, **process.describe})
            reference_ms.extend(_run_passes(table, profile, process, entries, progress, least_s, lower, session))

        if todo:
            progress.stage(f"Measuring {len(todo)} entries on {process.describe['device']} ({profile.runtime}, "
                           f"batch {profile.batch_size}, {process.describe['threads']} threads)")  # fmt: skip

            run(entries, least_s)
        # what the runtime runs otherwise than it was assumed has no time inside a network
        late, rest = entries_of(table, profile, replace(plan, covers={}, networks={}), lower)
        if rest:
            asked |= {key for _, key in rest}
            run(late)
        told = False
        while unsure := unsure_entries(table, profile, plan, entries):
            if not told:
                progress.note(f"{len(unsure) - 1} networks are not certain enough yet: they get more visits, in rounds")
                told = True
            run(unsure)
        _say_if_busy(reference_ms, progress)
        if not session:
            progress.note(f"{path} has everything already: nothing to measure")
        model = LatencyModel(table)
        header = table.header
        failures = {key: why for key, why in table.failures().items() if key in wanted}
        asked &= set(wanted)
        return BuildReport(
            lut=str(path),
            device=str(header["device"]),
            runtime=f"{header['runtime']} {header['runtime_version']}",
            precision=profile.precision,
            batch_size=profile.batch_size,
            threads=int(header["threads"]),
            entries=len(model.operators),
            measured=len([key for key in asked if key not in failures]),
            reused=len(wanted) - len(asked),
            failed=failures,
            seconds=time.monotonic() - started,
            calibration=model.quality(),
            unknown=unknown,
            estimator=table.estimator,
        )


def _networks_of(table: LatencyTable, entries: Iterable[tuple[str, str]]) -> dict[str, Network]:
    """The networks whose kernels are timed, by name."""
    return {name: Network.from_json(table.content(role, name)) for role, name in entries if role == "cover"}


def _run_passes(
    table: TableWriter,
    profile: DeviceProfile,
    process: MeasuringProcess,
    entries: Mapping[tuple[str, str], Entry],
    progress: Progress,
    least_s: float,
    lower: Lower,
    session: int,
) -> list[float]:
    """Measures and stores; returns what the reference took, in ms."""
    names = {id(entry): key for key, entry in entries.items()}
    timing = profile.timing
    reference: list[float] = []
    due = {
        key: max(0, (entry.passes or timing.min_passes) - len(entry.visits))
        for key, entry in entries.items()
        if not entry.reference
    }
    steps = {key: lower.steps(network) for key, network in _networks_of(table, entries).items()}
    surprises: dict[str, None] = {}
    disturbed = 0
    with progress.start(sum(due.values()), "visits") as task:
        for visit in measure_in_passes(process, list(entries.values()), seed=session, least_s=least_s):
            role, name = names[id(visit.entry)]
            if visit.entry.failure is not None:
                table.add_failure(role, name, visit.entry.failure)
                progress.note(f"failed: {name}: {visit.entry.failure}")
                if role in ("reference", "overhead"):
                    raise HwnasError(f"the {role} network cannot be measured: {visit.entry.failure}")
                continue
            if role == "cover":
                timed = assign(steps[name], visit.kernels)
                surprises.update(dict.fromkeys(timed.unexpected))
                kernels = timed.samples_ms | timed.terms_ms
                table.add_kernels(session, name, visit.number, visit.samples_ms, kernels, timed.launches, visit.state)
            else:
                table.add_visit(session, role, name, visit.number, visit.entry.repeats, visit.samples_ms, visit.state)
            disturbed += bool(visit.state.get(DISTURBED))
            if role == "reference":
                reference += visit.samples_ms
            elif due[role, name] > 0:
                due[role, name] -= 1
                task.advance(1)
                if not any(due.values()) and any(role == "operator" for role, _ in due):
                    progress.note("every entry has its visits; operators that are not certain enough yet get more")
    if surprises:
        progress.note(f"{len(surprises)} operators run otherwise than assumed, such as {next(iter(surprises))}: "
                      "they are timed alone")  # fmt: skip
    if disturbed:
        progress.note(f"{disturbed} visits were made while the device was slowed, pauses and repetitions "
                      "notwithstanding: cool it, or give it more power")  # fmt: skip
    return reference


def _say_if_busy(reference_ms: Sequence[float], progress: Progress) -> None:
    """Says so where the reference mostly took longer than in its quietest moments."""
    low, middle = np.quantile(reference_ms or [1.0], [0.02, 0.5])
    if middle / low - 1 > NOISY:
        progress.note(
            f"the machine is busy: a run of one network takes {middle / low - 1:.0%} longer than when undisturbed; "
            "stop other work, or raise timing.max_passes in the profile, for tighter intervals"
        )
