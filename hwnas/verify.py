"""Verification: builds nets for the device, measures them and says whether the promises hold.

Nets are timed by the interleaved protocol of a table. With a table, some of its calibration networks for the same input
shape are measured again in every pass, as witnesses, and times are brought to the level that the machine had then, so
that a prediction is judged for what it says and not for the hour; the times as measured are reported beside.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwnas.devices import DeviceProfile, Timing
from hwnas.errors import HwnasError
from hwnas.latency.levels import LEAST_FOR_LEVEL, Levels, NetworkVisit
from hwnas.latency.model import LatencyModel, Prediction
from hwnas.latency.plan import reference_network, session_bytes, whole_subject
from hwnas.latency.table import LatencyTable, MeasuredNetwork
from hwnas.measure.link import MeasurementError
from hwnas.measure.lock import device_lock
from hwnas.measure.passes import Entry, measure_in_passes
from hwnas.measure.process import MeasuringProcess, Subject
from hwnas.measure.statistics import Estimate, line_at
from hwnas.network import Network
from hwnas.ops import Shape
from hwnas.progress import Progress

if TYPE_CHECKING:
    from torch import nn

LEAST_S = 8.0
"""A verification lasts at least so long, since the regimes of a machine last for seconds."""

ROUNDS = 5
"""A verdict that is not clear is measured on, up to so many times as long."""

CLEAR = 0.01
"""Half-width of a measurement's interval, as a share of it, that is narrow enough without a verdict."""

WITNESSES = 7
"""Calibration networks of one input shape that are measured again."""

TOLERANCE = 1e-3
"""Largest difference of an output, as a share of the largest output, that counts as the same network."""

Images = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A net to verify.

    Attributes:
        name: what the report calls it.
        network: its operators, for the prediction.
        model: the ONNX file's bytes, with the batch of the profile.
        budget_ms: its latency budget, if it has one.
        module: the trained module and `images` [n, C, H, W] to compare outputs on, if there are any; n is a multiple of
            the batch.
    """

    name: str
    network: Network
    model: bytes
    budget_ms: float | None = None
    module: nn.Module | None = None
    images: Images | None = None


@dataclass(frozen=True, slots=True)
class Drift:
    """The machine's time now over its time at the table's level, with its relative standard error."""

    factor: float
    error: float
    known_by: str

    def undo(self, raw: Estimate) -> Estimate:
        """A measurement of now at the table's level; its interval holds the drift's uncertainty too."""
        half = float(np.hypot((raw.high_ms - raw.latency_ms) / raw.latency_ms, 1.64 * self.error))
        latency_ms = raw.latency_ms / self.factor
        return Estimate(latency_ms, max(0.0, latency_ms * (1 - half)), latency_ms * (1 + half), raw.samples)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """One net's verdict. Latencies in ms of one batch.

    Attributes:
        measured_ms, measured_low_ms, measured_high_ms: at the table's level where `judged_on` says so.
        raw_ms: as the clock showed it now; `drift` is the witnesses' time now over then.
        median_ms: of all runs now, disturbed ones included.
        within_budget: ``measured_high_ms <= budget_ms``; None without a budget.
        relative_error: prediction / measurement - 1.
        output_max_abs_diff, output_max_rel_diff: deployed net against torch module; None without a module. Relative
            to the largest output.
    """

    net: str
    predicted_ms: float | None
    predicted_low_ms: float | None
    predicted_high_ms: float | None
    measured_ms: float
    measured_low_ms: float
    measured_high_ms: float
    raw_ms: float
    median_ms: float
    drift: float | None
    judged_on: str
    budget_ms: float | None
    within_budget: bool | None
    relative_error: float | None
    output_max_abs_diff: float | None
    output_max_rel_diff: float | None
    same_outputs: bool | None
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """An entry of ``results`` of ``hwnas verify --json``."""
        return asdict(self)

    @property
    def holds(self) -> bool:
        """Whether everything that was claimed holds."""
        return self.within_budget is not False and self.same_outputs is not False


def verify(
    candidates: Sequence[Candidate], profile: DeviceProfile, *, table: LatencyTable | None, progress: Progress
) -> list[VerifyReport]:
    """Measures `candidates` interleaved with each other and the reference network.

    Raises:
        HwnasError: a net cannot be built or measured, or the table belongs to another set-up.
    """
    model = LatencyModel(table) if table is not None else None
    entries = [
        Entry(_subject(f"network {index}", candidate, profile.batch_size)) for index, candidate in enumerate(candidates)
    ]
    batch = profile.batch_size
    reference = Entry(whole_subject("reference", "reference", reference_network(), batch), reference=True)
    witnesses = _witnesses(table, {candidate.network.input_shape for candidate in candidates}, batch)
    with device_lock(profile.lock_name, progress), MeasuringProcess(profile, progress=progress) as process:
        if table is not None:
            table.check_bound_to(profile, process.describe)
        outputs = [
            _output_difference(process, entry, candidate) for entry, candidate in zip(entries, candidates, strict=True)
        ]
        progress.stage(f"Measuring {len(candidates)} net(s) on {process.describe['device']}")
        pairs: list[tuple[Network | MeasuredNetwork, Entry]] = [
            *zip((candidate.network for candidate in candidates), entries, strict=True),
            *witnesses,
        ]
        shapes = {entry.subject.name: network.input_shape for network, entry in pairs}
        shapes[reference.subject.name] = reference_network().input_shape
        rest, log = [reference, *(entry for _, entry in witnesses)], list[NetworkVisit]()
        for turn in range(1, ROUNDS + 1):
            _measure(process, candidates, entries, rest, turn, shapes, log, progress)
            levels = Levels(log)
            now = levels.networks("now")
            enough = len(reference.visits) >= LEAST_FOR_LEVEL
            level = levels.networks("reference")[reference.subject.name] if enough else None
            drifts = [
                _drift(candidate, entry, witnesses, table, now, level)
                for candidate, entry in zip(candidates, entries, strict=True)
            ]
            measured = [now[entry.subject.name] for entry in entries]
            judged = [raw if drift is None else drift.undo(raw) for raw, drift in zip(measured, drifts, strict=True)]
            if all(_clear(candidate, known) for candidate, known in zip(candidates, judged, strict=True)):
                break
    found = zip(candidates, entries, measured, judged, drifts, outputs, strict=True)
    return [_report(model, *parts) for parts in found]


def timing_of(profile: DeviceProfile, turn: int) -> Timing:
    """The protocol of round `turn`. A net's file is as large as it is, and far away it is sent once a round only."""
    timing = profile.timing
    passes = turn * timing.min_passes
    update = {"min_passes": passes, "max_passes": max(passes, timing.max_passes)}
    if profile.host and timing.visits_per_load:
        update["visits_per_load"] = timing.min_passes
    return timing.model_copy(update=update)


def _measure(
    process: MeasuringProcess,
    candidates: Sequence[Candidate],
    entries: Sequence[Entry],
    rest: Sequence[Entry],
    turn: int,
    shapes: Mapping[str, Shape],
    log: list[NetworkVisit],
    progress: Progress,
) -> None:
    """One more round of visits of everything, added to `log`."""
    longer = timing_of(process.profile, turn)
    passes = longer.min_passes
    for entry in (*rest, *entries):
        entry.passes = 0 if entry.reference else passes
    named = {id(entry): candidate.name for entry, candidate in zip(entries, candidates, strict=True)}
    due = {id(entry): max(0, passes - len(entry.visits)) for entry in entries}
    with progress.start(sum(due.values()), "visits" if turn == 1 else "visits, for a clear verdict") as task:
        for visit in measure_in_passes(process, [*rest, *entries], seed=turn, least_s=LEAST_S, timing=longer):
            if visit.entry.failure is not None:
                name = named.get(id(visit.entry), "a network of the table")
                raise HwnasError(f"{name} cannot be measured: {visit.entry.failure}")
            name = visit.entry.subject.name
            role = "reference" if visit.entry.reference else "now"
            log.append(NetworkVisit(len(log), (role, name), 0, shapes[name], np.asarray(visit.samples_ms)))
            if due.get(id(visit.entry), 0) > 0:
                due[id(visit.entry)] -= 1
                task.advance(1)


def _subject(name: str, candidate: Candidate, batch_size: int) -> Subject:
    return Subject(name, "network", lambda: candidate.model, session_bytes(candidate.network, batch_size))


def _clear(candidate: Candidate, measured: Estimate) -> bool:
    """Whether more measuring would change nothing: narrow enough, or all of it on one side of the budget."""
    if candidate.budget_ms is None:
        return measured.relative_error <= CLEAR
    return measured.high_ms <= candidate.budget_ms or measured.low_ms > candidate.budget_ms


def _witnesses(
    table: LatencyTable | None, shapes: Collection[Shape], batch_size: int
) -> list[tuple[MeasuredNetwork, Entry]]:
    """Calibration networks to measure again: up to `WITNESSES` of each input shape, from the fastest to the slowest."""
    if table is None:
        return []
    found = []
    for shape in shapes:
        known = [net for net in table.networks() if net.input_shape == shape and net.network is not None]
        known.sort(key=lambda net: net.measured.latency_ms)
        for index in sorted({round(place) for place in np.linspace(0, len(known) - 1, WITNESSES)} if known else ()):
            network = known[index].network
            assert network is not None
            found.append((known[index], Entry(whole_subject("witness", known[index].name, network, batch_size))))
    return found


def _drift(
    candidate: Candidate,
    entry: Entry,
    witnesses: Sequence[tuple[MeasuredNetwork, Entry]],
    table: LatencyTable | None,
    now: Mapping[str, Estimate],
    reference: Estimate | None,
) -> Drift | None:
    """Time now over time at the table's level.

    Networks of one kind tell of each other: a net that stays in the cache does not feel what slows a large one down.
    Small ones and large ones of a kind drift apart too, by some percent, so that a line over the logarithm of their
    latencies says by how much one of the candidate's latency did.
    """
    own = now[entry.subject.name].latency_ms
    pairs = [
        (then.measured.latency_ms, now[witness.subject.name].latency_ms)
        for then, witness in witnesses
        if then.input_shape == candidate.network.input_shape
    ]
    if pairs:
        then_ms, now_ms = np.array(pairs).T
        drifts = np.log(now_ms / then_ms)
        log_drift, error = line_at(np.log(then_ms), drifts, float(np.log(own) - np.median(drifts)))
        return Drift(float(np.exp(log_drift)), error, "calibration networks measured again")
    level = table.reference() if table is not None else None
    if level is None or reference is None:
        return None
    error = float(np.hypot(reference.relative_error, level.relative_error)) / 1.64
    return Drift(reference.latency_ms / level.latency_ms, error, "reference network measured again")


def _output_difference(process: MeasuringProcess, entry: Entry, candidate: Candidate) -> tuple[float, float] | None:
    """(largest absolute difference, the same as a share of the largest output) of the deployed net to the module."""
    if candidate.module is None or candidate.images is None:
        return None
    import torch

    batch = process.profile.batch_size
    batches = [candidate.images[start : start + batch] for start in range(0, len(candidate.images), batch)]
    try:
        deployed = np.concatenate([process.run(entry.subject, images) for images in batches])
    except MeasurementError as error:
        raise HwnasError(f"{candidate.name} does not run on the device: {error}") from None
    was_training = candidate.module.training
    try:
        with torch.inference_mode():
            expected = candidate.module.eval()(torch.from_numpy(candidate.images)).numpy()
    finally:
        candidate.module.train(was_training)
    if deployed.shape != expected.shape:
        raise HwnasError(f"{candidate.name} gives outputs of shape {deployed.shape} on the device, its module of shape "
                         f"{expected.shape}: export it again")  # fmt: skip
    absolute = float(np.abs(deployed - expected).max())
    return absolute, absolute / max(1e-12, float(np.abs(expected).max()))


def _report(
    model: LatencyModel | None,
    candidate: Candidate,
    entry: Entry,
    raw: Estimate,
    judged: Estimate,
    drift: Drift | None,
    difference: tuple[float, float] | None,
) -> VerifyReport:
    predicted: Prediction | None = model.predict(candidate.network) if model is not None else None
    latency = predicted.latency_ms if predicted is not None else None
    budget = candidate.budget_ms
    return VerifyReport(
        net=candidate.name,
        predicted_ms=latency,
        predicted_low_ms=predicted.low_ms if predicted else None,
        predicted_high_ms=predicted.high_ms if predicted else None,
        measured_ms=judged.latency_ms,
        measured_low_ms=judged.low_ms,
        measured_high_ms=judged.high_ms,
        raw_ms=raw.latency_ms,
        median_ms=float(np.median(np.concatenate(entry.visits))),
        drift=drift.factor if drift is not None else None,
        judged_on=drift.known_by if drift is not None else "as measured",
        budget_ms=budget,
        within_budget=None if budget is None else judged.high_ms <= budget,
        relative_error=None if latency is None else latency / judged.latency_ms - 1,
        output_max_abs_diff=difference[0] if difference else None,
        output_max_rel_diff=difference[1] if difference else None,
        same_outputs=None if difference is None else difference[1] <= TOLERANCE,
        missing=predicted.missing if predicted else (),
    )
