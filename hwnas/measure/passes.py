"""The interleaved protocol: every entry in random order, over many short passes, a reference network in each.

A machine has regimes (clock, other work) that last for seconds. Measured one after the other, each operator would get a
regime of its own; in passes, every entry meets every regime, and sums of entries stay comparable with whole networks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.devices import Timing
from hwnas.measure.link import MeasurementError
from hwnas.measure.process import MeasuringProcess, Subject
from hwnas.measure.runtimes.base import WHOLE, KernelTime
from hwnas.measure.statistics import estimate

REFERENCE_EVERY = 25
"""The reference network is visited at the start of a pass and then every so many entries."""


@dataclass(slots=True)
class Entry:
    """A subject and what has been measured of it.

    Attributes:
        repeats: copies of the operator in one run.
        visits: the samples of each visit, in ms of ONE execution: the copies in a run change when it is loaded anew.
        failure: why it cannot be measured; it is not visited again.
        reference: visited several times a pass, never finished early.
        passes: visits that are enough, for entries whose kernels are timed; 0 where the profile says how many.
    """

    subject: Subject
    repeats: int = 1
    visits: list[NDArray[np.float64]] = field(default_factory=list)
    failure: str | None = None
    reference: bool = False
    passes: int = 0


@dataclass(frozen=True, slots=True)
class Visit:
    """One visit that was just made: what to store before anything else happens.

    Samples are ms of one run, of `entry.repeats` executions, or the sum of `kernels` that were timed in it. A failure
    has none. `state` is what the runtime tells of the device meanwhile.
    """

    entry: Entry
    number: int
    samples_ms: tuple[float, ...]
    kernels: tuple[KernelTime, ...] = ()
    state: Mapping[str, Any] = field(default_factory=dict)


def measure_in_passes(
    process: MeasuringProcess,
    entries: Sequence[Entry],
    *,
    seed: int = 0,
    least_s: float = 0.0,
    timing: Timing | None = None,
) -> Iterator[Visit]:
    """Visits all entries pass after pass until each is tight enough; yields every visit when it is made.

    An entry is finished after `timing.min_passes` visits once the half-width of its interval is within
    `timing.target_error`, at the latest after `timing.max_passes` visits; one that has `Entry.passes` after so many.
    Entries that already have visits (a resumed table) only get what is missing. Whole networks, the reference too, are
    loaded anew after every `timing.visits_per_load` visits.

    Args:
        process: owns the device.
        entries: what to visit, the reference among them.
        seed: of the order.
        least_s: the first `timing.min_passes` passes are spread over so many seconds, so that a few short entries
            meet several regimes of the machine too; in between the reference runs, unrecorded.
        timing: None is the profile's.
    """
    timing = timing or process.profile.timing
    rng = np.random.default_rng(seed)
    references = [entry for entry in entries if entry.reference]
    started = time.monotonic()
    most = max([timing.max_passes, *(entry.passes for entry in entries)])
    for number in range(most):
        while references and time.monotonic() - started < least_s * min(number, timing.min_passes) / timing.min_passes:
            process.time_ms(references[0].subject, timing.runs)
        open_entries = [entry for entry in entries if not entry.reference and is_open(entry, timing)]
        if not open_entries:
            break
        for position, index in enumerate(rng.permutation(len(open_entries))):
            if position % REFERENCE_EVERY == 0:
                for reference in references:
                    if reference.failure is None:
                        if _is_to_be_loaded(reference, timing):
                            process.forget(reference.subject)
                        yield _visit(process, reference, number, timing.runs)
            entry = open_entries[index]
            if _is_to_be_loaded(entry, timing):
                process.forget(entry.subject)
            yield _visit(process, entry, number, timing.runs)


def is_open(entry: Entry, timing: Timing) -> bool:
    """Whether an entry needs more visits; the same visits always give the same answer."""
    if entry.failure is not None or len(entry.visits) >= (entry.passes or timing.max_passes):
        return False
    if entry.passes:
        return True
    return len(entry.visits) < timing.min_passes or estimate(entry.visits).relative_error > timing.target_error


def _is_to_be_loaded(entry: Entry, timing: Timing) -> bool:
    """Whether enough visits were made of the network where it lies: its level is that of several loads."""
    if entry.subject.role != "network" or not timing.visits_per_load or not entry.visits:
        return False
    return len(entry.visits) % timing.visits_per_load == 0


def _visit(process: MeasuringProcess, entry: Entry, number: int, runs: int) -> Visit:
    for last_try in (False, True):
        kernels: list[KernelTime] = []
        try:
            if entry.subject.role == "kernels":
                kernels = process.time_kernels(entry.subject, runs)
                samples = _of_all(kernels)
            else:
                entry.repeats, samples = process.time_ms(entry.subject, runs)
        except MeasurementError as error:
            if error.process_died and not last_try:
                continue  # perhaps something else killed the process: one more try in a fresh one
            entry.failure = str(error)
            return Visit(entry, number, ())
        entry.visits.append(np.asarray(samples) / entry.repeats)
        return Visit(entry, number, tuple(samples), tuple(kernels), process.state)
    raise AssertionError("unreachable")


def _of_all(kernels: Sequence[KernelTime]) -> list[float]:
    """Durations of the whole network, where it was timed, else the sums of its kernels."""
    whole = [kernel.samples_ms for kernel in kernels if kernel.kind == WHOLE]
    samples: list[float] = np.sum(whole or [kernel.samples_ms for kernel in kernels], axis=0).tolist()
    return samples
