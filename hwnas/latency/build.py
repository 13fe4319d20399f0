"""Builds a table: collects the operators that spaces and models need and measures what is missing."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.costs import macs_cost
from hwnas.devices import DeviceProfile
from hwnas.errors import HwnasError
from hwnas.latency.calibration import Quality
from hwnas.latency.lowering import Lower, blocked_tensors, lowering
from hwnas.latency.model import LatencyModel
from hwnas.latency.slots import SpaceKernels
from hwnas.latency.table import LatencyTable
from hwnas.measure.lock import device_lock
from hwnas.measure.onnx_models import network_to_onnx, op_to_onnx
from hwnas.measure.passes import Entry, is_open, measure_in_passes
from hwnas.measure.process import MeasuringProcess, Subject
from hwnas.network import Network
from hwnas.ops import Op
from hwnas.progress import Progress
from hwnas.spaces.base import Arch, Space

CALIBRATION_NETWORKS = 20
"""Architectures of each space that are measured as whole networks."""

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


def build_table(
    profile: DeviceProfile,
    path: Path,
    *,
    spaces: Sequence[Space] = (),
    models: Mapping[str, Network] | None = None,
    progress: Progress,
) -> BuildReport:
    """Measures every operator that `spaces` and `models` need, and calibration networks, into the table at `path`.

    What the table has is not measured again. Models are calibration networks themselves. Everything is durable when
    measured; calling it again goes on where it was killed.

    Raises:
        HwnasError: the table belongs to another set-up or cannot be written, the device cannot be measured.
    """
    models = dict(models or {})

    def kernels(lower: Lower) -> list[Op]:
        found = [op for space in spaces for op in SpaceKernels.of(space, lower).every()]
        return found + [op for network in models.values() for op in lower(network)]

    networks = {name: network for name, network in models.items() if not network.unknown}
    for space in spaces:
        for index, arch in enumerate(calibration_archs(space, CALIBRATION_NETWORKS)):
            networks[f"{space.name} #{index}"] = space.network(arch)
    unknown = tuple(dict.fromkeys(name for network in models.values() for name in network.unknown))
    return _measure(profile, path, kernels, networks, progress, unknown)


def measure_missing(profile: DeviceProfile, path: Path, network: Network, progress: Progress) -> BuildReport:
    """Measures what the table lacks of `network`'s kernels, without adding calibration networks."""
    return _measure(profile, path, lambda lower: lower(network), {}, progress, ())


def measure_again(
    profile: DeviceProfile,
    path: Path,
    ops: Sequence[Op],
    networks: Mapping[str, Network],
    progress: Progress,
    *,
    least_s: float,
) -> BuildReport:
    """Measures `ops`, kernels of another table, and `networks` into a table of their own, over `least_s` seconds."""
    return _measure(profile, path, lambda _: ops, networks, progress, (), least_s)


def _measure(
    profile: DeviceProfile,
    path: Path,
    kernels: Callable[[Lower], Sequence[Op]],
    networks: Mapping[str, Network],
    progress: Progress,
    unknown: tuple[str, ...],
    least_s: float = 0.0,
) -> BuildReport:
    started = time.monotonic()
    with (
        device_lock(profile.device, progress),
        MeasuringProcess(profile) as process,
        LatencyTable.open_or_create(path, profile, process.describe) as table,
    ):
        wanted = {op.key: op for op in kernels(lowering(process.describe))}
        entries, todo = _entries(table, profile, wanted, networks)
        if todo:
            _run_passes(table, profile, process, entries, len(todo), progress, least_s)
        else:
            progress.note(f"{path} has everything already: nothing to measure")
        model = LatencyModel(table)
        header = table.header
        failures = {key: why for key, why in table.failures().items() if key in wanted}
        asked = [key for role, key in todo if role == "operator"]
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
        )


def _entries(
    table: LatencyTable, profile: DeviceProfile, wanted: Mapping[str, Op], networks: Mapping[str, Network]
) -> tuple[dict[tuple[str, str], Entry], list[tuple[str, str]]]:
    """Entries by (role, name), and those of them that still need measuring (the reference only keeps them company)."""
    batch, block = profile.batch_size, int(table.header.get("channel_block", 0))
    subjects: dict[tuple[str, str], Subject] = {}
    content: dict[tuple[str, str], dict[str, Any]] = {}
    plain = {("reference", "reference"): reference_network(), ("overhead", "overhead"): overhead_network()}
    # named by content too: a network that was defined otherwise before is another one
    plain |= {("network", f"{name} {_digest(network)}"): network for name, network in networks.items()}
    for (role, name), network in plain.items():
        subjects[role, name] = Subject(
            f"{role} {name}",
            "network",
            lambda network=network: network_to_onnx(network, batch_size=batch),  # type: ignore[misc]
            4 * sum(op.traffic_bytes(4, batch) for op in network.ops) // 10,
        )
        content[role, name] = network.to_json()
    for key, op in wanted.items():
        subjects["operator", key] = Subject(
            f"operator {key}",
            "operator",
            lambda op=op: op_to_onnx(op, batch_size=batch, blocked=blocked_tensors(op, block)),  # type: ignore[misc]
            4 * op.traffic_bytes(4, batch),
        )
        content["operator", key] = {}
    entries = {
        (role, name): Entry(subject, visits=table.visits(role, name), reference=role == "reference")
        for (role, name), subject in subjects.items()
    }
    failed = {("operator", key) for key in table.failures()}
    todo = [
        name
        for name, entry in entries.items()
        if not entry.reference and (name in failed or is_open(entry, profile.timing))
    ]
    if todo:
        for (role, name), data in content.items():
            table.add_entry(role, name, data)
    return {name: entry for name, entry in entries.items() if name in todo or entry.reference}, todo


def _digest(network: Network) -> str:
    text = "\n".join([str(network.input_shape), *(op.key for op in network.ops)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _run_passes(
    table: LatencyTable,
    profile: DeviceProfile,
    process: MeasuringProcess,
    entries: Mapping[tuple[str, str], Entry],
    count: int,
    progress: Progress,
    least_s: float,
) -> None:
    session = table.start_session({"load": list(os.getloadavg()), **process.describe})
    names = {id(entry): key for key, entry in entries.items()}
    timing = profile.timing
    progress.stage(f"Measuring {count} entries on {process.describe['device']} ({profile.runtime}, "
                   f"batch {profile.batch_size}, {profile.thread_count} threads)")  # fmt: skip
    reference: list[float] = []
    due = {key: max(0, timing.min_passes - len(entry.visits)) for key, entry in entries.items() if not entry.reference}
    with progress.start(sum(due.values()), "visits") as task:
        for visit in measure_in_passes(process, list(entries.values()), seed=session, least_s=least_s):
            role, name = names[id(visit.entry)]
            if visit.entry.failure is not None:
                table.add_failure(role, name, visit.entry.failure)
                progress.note(f"failed: {name}: {visit.entry.failure}")
                if role in ("reference", "overhead"):
                    raise HwnasError(f"the {role} network cannot be measured: {visit.entry.failure}")
                continue
            table.add_visit(session, role, name, visit.number, visit.entry.repeats, visit.samples_ms)
            if role == "reference":
                reference += visit.samples_ms
            elif due[role, name] > 0:
                due[role, name] -= 1
                task.advance(1)
                if not any(due.values()):
                    progress.note("every entry has its visits; those that are not certain enough yet get more")
    low, middle = np.quantile(reference or [1.0], [0.02, 0.5])
    if middle / low - 1 > NOISY:
        progress.note(
            f"the machine is busy: a run of one network takes {middle / low - 1:.0%} longer than when undisturbed; "
            "stop other work, or raise timing.max_passes in the profile, for tighter intervals"
        )
