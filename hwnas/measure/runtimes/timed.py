"""Timing runs on this machine's clock, for every runtime whose runs return when the device is done."""

from __future__ import annotations

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
the cache. On a server's core nets of 0.1 and 1.4 ms came within 2% of their level after ten runs, those of 6 ms after
three."""

REST_RUNS = 10
"""Of what is subtracted, before anything is timed."""

SHORTEST_MS = 1e-6
"""What an operator takes at least that is lost in the noise of the difference."""


def warm_up(run: Callable[[], object], seconds: float = WARM_S) -> None:
    """Runs for so long or `WARM_RUNS` times, at least once."""
    end = time.perf_counter() + seconds
    for _ in range(WARM_RUNS):
        run()
        if time.perf_counter() >= end:
            break


def undisturbed_ms(run: Callable[[], object], runs: int, *, warm_s: float = 0.0) -> list[float]:
    """Durations of `runs` runs in ms, after one that is not timed, or as many as take `warm_s`.

    Interrupted runs (involuntary context switches of this process) are tried again; where there are not enough others
    after that, the fastest interrupted ones fill up.
    """
    clock = time.perf_counter_ns
    warm_up(run, warm_s)
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
