"""Builds a table: collects the operators that spaces and models need and measures what is missing."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.costs import macs_cost
from hwnas.devices import DeviceProfile
from hwnas.errors import HwnasError
from hwnas.latency.calibration import Quality
from hwnas.latency.covers import cover_archs
from hwnas.latency.kernels import assign
from hwnas.latency.lowering import Lower, blocked_tensors, lowering
from hwnas.latency.model import LatencyModel
from hwnas.latency.slots import SpaceKernels
from hwnas.latency.table import LatencyTable
from hwnas.measure.lock import device_lock
from hwnas.measure.onnx_models import network_to_onnx, op_to_onnx
from hwnas.measure.passes import Entry, is_open, measure_in_passes
from hwnas.measure.process import MeasuringProcess, Subject
from hwnas.network import Network
from hwnas.ops import Op, Shape
from hwnas.progress import Progress
from hwnas.spaces.base import Arch, Space

CALIBRATION_NETWORKS = 30
"""Architectures of each space that are measured as whole networks."""

COVER_VISITS = 8
"""Visits of each network whose kernels are timed; each kernel is in at least two of them, mostly in many more."""

COMPANY = 7
"""Networks that are visited beside what is added to a table later."""

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


def reference_network() -> Network:
    """The network that is timed in every pass: MobileNetV2 for 128 pixel images, a few ms on a CPU core."""
    from hwnas.zoo import ZOO

    return replace(ZOO["mobilenet-v2"], input_shape=(3, 128, 128)).network()


def overhead_network() -> Network:
    """As good as nothing: what one run costs before any operator."""
    op = Op.activation((1, 1, 1), "relu")
    from hwnas.network import INPUT, Node

    return Network((1, 1, 1), (Node(op, (INPUT,)),), (0, 0))


def calibration_archs(space: Space, count: int, seed: int = 0) -> list[Arch]:
    """`count` architectures from about the cheapest to about the most expensive of a space.

    Uniform sampling would crowd around the mean. Here architecture i favours expensive or cheap choices with a strength
    that runs over the architectures, by the choices' MACs.
    """
    rng = np.random.default_rng([seed, 20])
    prices = macs_cost(space).prices.choices
    found: dict[Arch, None] = {}
    tilts = np.linspace(-6, 6, count)
    attempt = 0
    while len(found) < min(count, space.size) and attempt < 50 * count:
        tilt = tilts[min(len(found), count - 1)]
        genes = []
        for slot, choices in enumerate(space.slots):
            row = prices[slot, : len(choices)]
            weights = np.exp(tilt * (row - row.min()) / max(1.0, np.ptp(row)))
            genes.append(int(rng.choice(len(choices), p=weights / weights.sum())))
        found.setdefault(Arch(space.name, tuple(genes)))
        attempt += 1
    return list(found)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be known after a profile.

    Attributes:
        ops: kernels, as the runtime runs them.
        covers: networks inside which kernels are timed, by name.
        networks: measured whole, to calibrate on, by name.
        company: networks of the table that are visited again beside covers, so that the machine's regimes can be told.
    """

    ops: tuple[Op, ...]
    covers: Mapping[str, Network]
    networks: Mapping[str, Network]
    company: Mapping[str, Network] = field(default_factory=dict)


MakePlan = Callable[[LatencyTable, Lower], Plan]


def build_table(
    profile: DeviceProfile,
    path: Path,
    *,
    spaces: Sequence[Space] = (),
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
        begun = f"model {_digest(network)}" in table.names("cover")
        inside = {"model": network} if (lacking or begun) and not network.unknown else {}
        return Plan(tuple(dict.fromkeys(ops)), inside, {}, _company(table, network.input_shape) if inside else {})

    return _measure(profile, path, plan, progress, ())


def _company(table: LatencyTable, input_shape: Shape) -> dict[str, Network]:
    """Some calibration networks, of that input shape where there are enough."""
    known = [net for net in table.networks() if net.network is not None]
    alike = [net for net in known if net.input_shape == input_shape]
    chosen = sorted(alike if len(alike) >= COMPANY else known, key=lambda net: net.measured.latency_ms)
    places = sorted({round(place) for place in np.linspace(0, len(chosen) - 1, COMPANY)}) if chosen else []
    return {chosen[place].name: network for place in places if (network := chosen[place].network) is not None}


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
        device_lock(profile.device, progress),
        MeasuringProcess(profile, cache=cache_folder(path)) as process,
        LatencyTable.open_or_create(path, profile, process.describe) as table,
    ):
        lower = lowering(process.describe)
        plan = make_plan(table, lower)
        if not process.describe.get("kernels"):
            plan = replace(plan, covers={})
        wanted = {op.key: op for op in plan.ops}
        entries, todo = _entries(table, profile, plan, lower)
        asked = _keys_of(todo, plan, lower)
        session = 0

        def run(entries: Mapping[tuple[str, str], Entry], count: int, least_s: float = 0.0) -> None:
            nonlocal session
            session = session or table.start_session({"load": list(os.getloadavg()), **process.describe})
            _run_passes(table, profile, process, entries, count, progress, least_s, lower, session)

        if todo:
            run(entries, len(todo), least_s)
        # what the runtime runs otherwise than it was assumed has no time inside a network
        late, rest = _entries(table, profile, replace(plan, covers={}, networks={}), lower)
        if rest:
            asked |= {key for _, key in rest}
            run(late, len(rest))
        while unsure := _unsure(table, profile, plan, entries):
            progress.note(f"{len(unsure) - 1} networks are not certain enough yet: they get more visits")
            run(unsure, len(unsure) - 1)
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
            threads=profile.thread_count,
            entries=len(model.operators),
            measured=len([key for key in asked if key not in failures]),
            reused=len(wanted) - len(asked),
            failed=failures,
            seconds=time.monotonic() - started,
            calibration=model.quality(),
            unknown=unknown,
            estimator=table.estimator,
        )


def _unsure(
    table: LatencyTable, profile: DeviceProfile, plan: Plan, entries: Mapping[tuple[str, str], Entry]
) -> dict[tuple[str, str], Entry]:
    """Networks whose interval, regimes of the machine taken off, is too wide, with more visits granted to each.

    Empty when all are certain enough, or have as many visits as the profile allows.
    """
    timing = profile.timing
    widths = {net.name: net.measured.relative_error for net in table.networks()}
    step = max(1, timing.min_passes // 3)
    unsure = {}
    for name, network in plan.networks.items():
        key = ("network", _cover_name(name, network))
        entry = entries.get(key)
        if entry is not None and entry.failure is None and widths.get(key[1], 0.0) > timing.target_error:
            entry.passes = min(timing.max_passes, len(entry.visits) + step)
            if is_open(entry, timing):
                unsure[key] = entry
    reference = {key: entry for key, entry in entries.items() if entry.reference}
    return {**unsure, **reference} if unsure else {}


def _keys_of(todo: Sequence[tuple[str, str]], plan: Plan, lower: Lower) -> set[str]:
    """Operators that are measured with the entries of `todo`."""
    covers = {_cover_name(name, network): network for name, network in plan.covers.items()}
    covers["overhead"] = overhead_network()
    found = {name for role, name in todo if role == "operator"}
    for role, name in todo:
        if role == "cover":
            found.update(op.key for op in lower(covers[name]))
    return found


def _cover_name(name: str, network: Network) -> str:
    # named by content too: a network that was defined otherwise before is another one
    return f"{name} {_digest(network)}"


def _entries(
    table: LatencyTable, profile: DeviceProfile, plan: Plan, lower: Lower
) -> tuple[dict[tuple[str, str], Entry], list[tuple[str, str]]]:
    """Entries by (role, name), and those of them that still need measuring.

    The reference keeps them company; networks that have their visits may need more once all is seen (`_unsure`).
    """
    batch, block = profile.batch_size, int(table.header.get("channel_block", 0))
    subjects: dict[tuple[str, str], Subject] = {}
    content: dict[tuple[str, str], dict[str, Any]] = {}
    plain = {("reference", "reference"): reference_network()}
    plain |= {("network", _cover_name(name, network)): network for name, network in plan.networks.items()}
    failed_covers = table.failed("cover")
    covers = {_cover_name(name, network): network for name, network in plan.covers.items()}
    if covers:  # what the profiler itself costs
        covers = {"overhead": overhead_network(), **covers}
    plain |= {("cover", name): network for name, network in covers.items() if name not in failed_covers}
    inside = set(table.inside())
    for name, network in covers.items():
        if name not in failed_covers:
            inside.update(op.key for op in lower(network))
    alone = {op.key: op for op in plan.ops if op.key not in inside}
    if alone:
        plain["overhead", "overhead"] = overhead_network()
    for (role, name), network in plain.items():
        subjects[role, name] = _whole(role, name, network, batch)
        content[role, name] = network.to_json()
    for key, op in alone.items():
        subjects["operator", key] = Subject(
            f"operator {key}",
            "operator",
            lambda op=op: op_to_onnx(op, batch_size=batch, blocked=blocked_tensors(op, block)),  # type: ignore[misc]
            4 * op.traffic_bytes(4, batch),
        )
        content["operator", key] = {}
    # more visits than there are passes would leave covers open for ever: each profile would measure them again
    cover_visits = min(COVER_VISITS, profile.timing.max_passes)
    entries = {
        (role, name): Entry(
            subject,
            visits=table.visits(role, name),
            reference=role == "reference",
            passes={"cover": cover_visits, "network": profile.timing.min_passes}.get(role, 0),
        )
        for (role, name), subject in subjects.items()
    }
    for name, network in plan.company.items():
        visits = table.visits("network", name)
        entries["network", name] = Entry(_whole("network", name, network, batch), visits=visits, passes=len(visits))
    failed = {("operator", key) for key in table.failures()}
    todo = [
        name
        for name, entry in entries.items()
        if not entry.reference and (name in failed or is_open(entry, profile.timing))
    ]
    if todo:
        for (role, name), data in content.items():
            table.add_entry(role, name, data)
    if any(role == "cover" for role, _ in todo):
        for name in plan.company:
            entries["network", name].passes += cover_visits
            todo.append(("network", name))
    kept = {name: entry for name, entry in entries.items() if name in todo or name[0] in ("reference", "network")}
    return kept, todo


def _whole(role: str, name: str, network: Network, batch: int) -> Subject:
    """A network as something to measure, whole or kernel by kernel."""
    return Subject(
        f"{role} {name}",
        "kernels" if role == "cover" else "network",
        lambda: network_to_onnx(network, batch_size=batch),
        0 if role == "cover" else 2 * max(op.traffic_bytes(4, batch) for op in network.ops),
    )


def _digest(network: Network) -> str:
    text = "\n".join([str(network.input_shape), *(op.key for op in network.ops)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _networks_of(table: LatencyTable, entries: Iterable[tuple[str, str]]) -> dict[str, Network]:
    """The networks whose kernels are timed, by name."""
    return {name: Network.from_json(table.content(role, name)) for role, name in entries if role == "cover"}


def _run_passes(
    table: LatencyTable,
    profile: DeviceProfile,
    process: MeasuringProcess,
    entries: Mapping[tuple[str, str], Entry],
    count: int,
    progress: Progress,
    least_s: float,
    lower: Lower,
    session: int,
) -> None:
    names = {id(entry): key for key, entry in entries.items()}
    timing = profile.timing
    progress.stage(f"Measuring {count} entries on {process.describe['device']} ({profile.runtime}, "
                   f"batch {profile.batch_size}, {profile.thread_count} threads)")  # fmt: skip
    reference: list[float] = []
    due = {
        key: max(0, (entry.passes or timing.min_passes) - len(entry.visits))
        for key, entry in entries.items()
        if not entry.reference
    }
    steps = {key: lower.steps(network) for key, network in _networks_of(table, entries).items()}
    surprises: dict[str, None] = {}
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
                table.add_kernels(session, name, visit.number, visit.samples_ms, timed.samples_ms, timed.launches)
            else:
                table.add_visit(session, role, name, visit.number, visit.entry.repeats, visit.samples_ms)
            if role == "reference":
                reference += visit.samples_ms
            elif due[role, name] > 0:
                due[role, name] -= 1
                task.advance(1)
                if not any(due.values()):
                    progress.note("every entry has its visits; those that are not certain enough yet get more")
    if surprises:
        progress.note(f"{len(surprises)} operators run otherwise than assumed, such as {next(iter(surprises))}: "
                      "they are timed alone")  # fmt: skip
    low, middle = np.quantile(reference or [1.0], [0.02, 0.5])
    if middle / low - 1 > NOISY:
        progress.note(
            f"the machine is busy: a run of one network takes {middle / low - 1:.0%} longer than when undisturbed; "
            "stop other work, or raise timing.max_passes in the profile, for tighter intervals"
        )
