"""From raw samples to a latency with an interval.

The estimate is a low quantile: on a machine that other work disturbs, the low end of many interleaved runs is what
the operator costs, and the same quantile is used for operators, calibration networks and verification. Runs of one
visit are correlated, so that the interval comes from resampling whole visits (block bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

QUANTILE = 0.1
"""The low quantile that estimates a latency; recorded in every table as ``p10``."""

CONFIDENCE = 0.9
"""Confidence of every two-sided interval that hwnas prints."""

RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class Estimate:
    """A latency in ms with the ends of its 90% interval."""

    latency_ms: float
    low_ms: float
    high_ms: float
    samples: int

    @property
    def relative_error(self) -> float:
        """Half the interval as a share of the latency."""
        return (self.high_ms - self.low_ms) / 2 / self.latency_ms if self.latency_ms > 0 else float("inf")

    def scaled(self, factor: float, offset: float = 0.0) -> Estimate:
        """(x - offset) * factor, ends included; never below a nanosecond."""
        ends = [max(1e-6, (x - offset) * factor) for x in (self.latency_ms, self.low_ms, self.high_ms)]
        return Estimate(ends[0], ends[1], ends[2], self.samples)


def estimate(visits: Sequence[NDArray[np.float64]], *, quantile: float = QUANTILE) -> Estimate:
    """Estimates from visits (arrays of ms).

    Raises:
        ValueError: there are no samples.
    """
    visits = [visit for visit in visits if len(visit)]
    if not visits:
        raise ValueError("no samples to estimate from")
    point = float(np.quantile(np.concatenate(visits), quantile))
    rng = np.random.default_rng(len(visits))  # fixed: the same samples always give the same interval
    length = min(map(len, visits))
    table = np.stack([visit[:length] for visit in visits])
    picks = rng.integers(len(visits), size=(RESAMPLES, len(visits)))
    resampled = np.quantile(table[picks].reshape(RESAMPLES, -1), quantile, axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(point, min(point, float(low)), max(point, float(high)), int(sum(map(len, visits))))
