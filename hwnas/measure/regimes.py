"""Regimes: what a machine does to everything at once, for seconds, told from what entries themselves take.

On a shared machine all networks take 5, 10, 20% longer for a while, as other work wants the memory. Entries are visited
in turn, so each visit is ``log time = level of the entry + regime at that time + noise``. The regime at a visit is what
the visits before and behind it, of other entries, show; taken off, a network's level is known to half a percent where
its fastest visits alone, which depend on its luck with regimes, say 1 to 2%.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 5
"""Visits before, and as many behind, that show the regime of a visit."""

LEAST_ENTRIES = 5
"""Fewer different entries cannot tell a regime from their own noise."""

QUIET = 0.1
"""Levels are those of the quietest so many visits: this quantile of the regimes is the zero."""

_ROUNDS = 8

Vector = NDArray[np.float64]


def regimes(entry: NDArray[np.intp], log_ms: Vector) -> Vector:
    """The regime of each visit, above the quiet one, in logarithms.

    Args:
        entry: which entry each visit is of, in the order of time.
        log_ms: logarithm of each visit's time.

    Returns:
        for each visit what to take off; zeros where there are fewer than `LEAST_ENTRIES` entries.
    """
    names, index = np.unique(entry, return_inverse=True)
    if len(names) < LEAST_ENTRIES:
        return np.zeros(len(log_ms))
    level = _medians(index, log_ms, len(names))
    padded = np.full(len(log_ms) + 2 * NEIGHBOURS, np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * NEIGHBOURS + 1)
    others = np.delete(np.arange(2 * NEIGHBOURS + 1), NEIGHBOURS)
    regime = np.zeros(len(log_ms))
    for _ in range(_ROUNDS):
        padded[NEIGHBOURS:-NEIGHBOURS] = log_ms - level[index]
        regime = np.nanmedian(windows[:, others], axis=1)
        level = _medians(index, log_ms - regime, len(names))
    return np.asarray(regime - np.quantile(regime, QUIET))


def _medians(index: NDArray[np.intp], values: Vector, count: int) -> Vector:
    return np.array([np.median(values[index == one]) for one in range(count)])
