"""Timing runs on this machine's clock, for every runtime whose runs return when the device is done."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

ATTEMPTS = 2
"""A run during which the kernel gave the core to other work says nothing of the device: it is tried again so often."""


def undisturbed_ms(run: Callable[[], object], runs: int) -> list[float]:
    """Durations of `runs` runs in ms, after one that is not timed.

    Interrupted runs (involuntary context switches of this process) are tried again; where there are not enough others
    after that, the fastest interrupted ones fill up.
    """
    clock = time.perf_counter_ns
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
