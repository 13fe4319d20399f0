"""By how much builds of one network differ: TensorRT picks its kernels by its own timing, another time others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def builds_error(networks: Iterable[Sequence[Sequence[float]]]) -> float:
    """Relative standard error of a network's latency from which builds it was timed with; 0 where none was built twice.

    Two builds of one network say little of how far builds are apart, those of all networks together say it well.

    Args:
        networks: for each its visits, in each the median ms of every build, always in the same order.
    """
    variances, counts = [], []
    for visits in networks:
        count = min((len(visit) for visit in visits), default=0)
        if count > 1:
            levels = np.median(np.log([visit[:count] for visit in visits]), axis=0)  # noise of single visits goes
            variances.append(float(levels.var(ddof=1)))
            counts.append(count)
    return float(np.sqrt(np.mean(variances) / np.mean(counts))) if variances else 0.0
