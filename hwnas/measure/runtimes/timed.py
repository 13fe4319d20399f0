"""Timing runs on this machine's clock, for every runtime whose runs return when the device is done."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hwnas.measure.runtimes.base import Session

ATTEMPTS = 2
"""A run during which the kernel gave the core to other work says nothing of the device: it is tried again so often."""

WARM_S, WARM_RUNS = 0.015, 10
"""Whole networks run for so long, or so often, before they are timed: what ran before has taken their weights out of
the cache. On a server's core nets of 0.1 and 1.4 ms came within 2% of their level after ten runs, those of 2.5 ms
within 1% after six, those of 4 ms after four."""

LONG_S = 0.005
"""On a CPU a network that takes so long is warm after one run: within half a percent of its level
(`benchmarks/visits.py`)."""

VISIT_S = 0.006
"""On a CPU whole networks are timed for so long in a visit, or as often as is asked for, at least once. What disturbs a
run disturbs the next one too, for some 50 ms: another visit tells more than another run, and the sooner the next
network's turn comes, the better its visits tell the regime (`hwnas.measure.regimes`). Against four runs of every
network visits that are that short halve the error of a level in the same time (`benchmarks/visits.py`)."""

REST_RUNS = 10
"""Of what is subtracted, before anything is timed."""

SHORTEST_MS = 1e-6
"""What an operator takes at least that is lost in the noise of the difference."""


def warm_up(run: Callable[[], object], *, long_s: float = LONG_S) -> float:
    """Runs for `WARM_S`, or `WARM_RUNS` times, or until a run took `long_s`; returns what the last run took, in s."""
    end = time.perf_counter() + WARM_S
    taken_s = 0.0
    for _ in range(WARM_RUNS):
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        taken_s = max(1e-9, now - start)
        if now >= end or taken_s >= long_s:
            break
    return taken_s


def visit_ms(run: Callable[[], object], runs: int) -> list[float]:
    """Durations in ms of a whole network on a CPU, warm, of `runs` runs at most: as many as take `VISIT_S`."""
    return undisturbed_ms(run, min(runs, math.ceil(VISIT_S / warm_up(run))), warm=True)


def long_visit_ms(run: Callable[[], object], runs: int) -> list[float]:
    """Durations in ms of `runs` runs of a whole network, after `WARM_S`: on devices of which nobody has seen that less
    is enough."""
    warm_up(run, long_s=math.inf)
    return undisturbed_ms(run, runs, warm=True)


def undisturbed_ms(run: Callable[[], object], runs: int, *, warm: bool = False) -> list[float]:
    """Durations of `runs` runs in ms, after one that is not timed unless it is `warm`.

    Interrupted runs (involuntary context switches of this process) are tried again; where there are not enough others
    after that, the fastest interrupted ones fill up.
    """
    clock = time.perf_counter_ns
    if not warm:
        run()
    undisturbed: list[float] = []
    disturbed: list[float] = []
    for _ in range(ATTEMPTS * runs):
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        start = clock()
        run()
        duration = (clock() - start) / 1e6
        taken_away = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw != switches
        (disturbed if taken_away else undisturbed).append(duration)
        if len(undisturbed) == runs:
            break
    return undisturbed + sorted(disturbed)[: runs - len(undisturbed)]


class DifferenceSession(Session):
    """A graph with copies of an operator and what is left of it without them: a duration is the difference.

    The shortest that the rest ever took is subtracted: with one that was disturbed, a duration would be too short, and
    the shortest ones are what an estimate is made of.
    """

    def __init__(self, whole: Callable[[], object], rest: Callable[[], object], copies: int) -> None:
        self.repeats = copies
        self._whole = whole
        self._rest = rest
        self._rest_ms = min(undisturbed_ms(rest, REST_RUNS))

    def time_ms(self, runs: int) -> list[float]:
        self._rest_ms = min(self._rest_ms, *undisturbed_ms(self._rest, runs))
        return [max(SHORTEST_MS, duration - self._rest_ms) for duration in undisturbed_ms(self._whole, runs)]

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        raise NotImplementedError("an operator is timed only")
