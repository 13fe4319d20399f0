"""From raw samples to a latency with an interval.

The estimate is the floor: the mean of the fastest runs of the three fastest visits. A shared machine has regimes that
last for seconds, in which everything takes a third longer; they say nothing of the device, and the visits of two
entries meet them differently. What an operator takes when nothing disturbs it is what adds up. Operators,
calibration networks and verification use the same estimator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FASTEST = 3
"""Visits whose fastest runs are averaged."""

ESTIMATOR = f"fastest-{FASTEST}"
"""What tables and reports call the estimate."""

CONFIDENCE = 0.9
"""Confidence of every two-sided interval that hwnas prints."""

RESAMPLES = 200

KEPT = 0.75
"""Share of a kernel's runs in a visit that are averaged, the fastest: a clock of whole microseconds wants a mean."""

LEAST_FOR_LINE = 5
"""Fewer points have no slope."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A latency in ms with the ends of its 90% interval.

    Attributes:
        samples: that it was estimated from.
        spread: of an operator, its relative standard deviation from one network to the next; None where not known.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    samples: int
    spread: float | None = None

    @property
    def relative_error(self) -> float:
        """Half the interval as a share of the latency."""
        return (self.high_ms - self.low_ms) / 2 / self.latency_ms if self.latency_ms > 0 else float("inf")

    def scaled(self, factor: float, offset: float = 0.0) -> Estimate:
        """(x - offset) * factor, ends included; never below a nanosecond."""
        ends = [max(1e-6, (x - offset) * factor) for x in (self.latency_ms, self.low_ms, self.high_ms)]
        return Estimate(ends[0], ends[1], ends[2], self.samples, self.spread)


def estimate(visits: Sequence[NDArray[np.float64]]) -> Estimate:
    """Estimates from visits (arrays of ms).

    The interval comes from resampling whole visits, since runs of one visit are correlated. The fastest of a resample
    are never faster than what was seen, so that what is known of the upper side is taken for the lower side too.

    Raises:
        ValueError: there are no samples.
    """
    minima = np.array([visit.min() for visit in visits if len(visit)])
    if not len(minima):
        raise ValueError("no samples to estimate from")
    point = float(np.sort(minima)[:FASTEST].mean())
    rng = np.random.default_rng(len(minima))  # fixed: the same samples always give the same interval
    resampled = np.sort(minima[rng.integers(len(minima), size=(RESAMPLES, len(minima)))], axis=1)[:, :FASTEST].mean(
        axis=1
    )
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    half = max(0.0, point - float(low), float(high) - point)
    return Estimate(point, max(0.0, point - half), point + half, int(sum(map(len, visits))))


def fastest_mean(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the fastest of the runs [..., runs]."""
    kept = max(1, round(KEPT * samples.shape[-1]))
    mean: NDArray[np.float64] = np.sort(samples, axis=-1)[..., :kept].mean(axis=-1)
    return mean


def fastest_means(visits: Sequence[NDArray[np.float64]]) -> list[float]:
    """`fastest_mean` of each of many visits; all that have as many runs in one go."""
    places: dict[int, list[int]] = {}
    for place, samples in enumerate(visits):
        places.setdefault(len(samples), []).append(place)
    means = np.empty(len(visits))
    for alike in places.values():
        means[alike] = fastest_mean(np.stack([visits[place] for place in alike]))
    return [float(mean) for mean in means]


def steady_mean(values: NDArray[np.float64], *, within: float) -> NDArray[np.float64]:
    """Mean of those of [..., n] that lie near their median: `within` of it, or four times as far as half of them do."""
    apart = np.abs(values - np.median(values, axis=-1, keepdims=True))
    near = apart <= np.maximum(within, 4 * np.median(apart, axis=-1, keepdims=True))
    mean: NDArray[np.float64] = np.where(near, values, 0.0).sum(axis=-1) / near.sum(axis=-1)
    return mean


def line_at(x: NDArray[np.float64], y: NDArray[np.float64], place: float) -> tuple[float, float]:
    """What a line through points says at `place`, and its standard error, about.

    It is one that outliers do not bend: the median of the slopes between all pairs (Theil 1950, Sen 1968). Beyond the
    points it goes on level.
    """
    from scipy.stats import theilslopes

    inclined = len(x) >= LEAST_FOR_LINE and np.ptp(x) > 0
    slope = float(theilslopes(y, x).slope) if inclined else 0.0
    rest, place = y - slope * x, float(np.clip(place, x.min(), x.max()))
    middle = float(np.median(rest))
    # about the standard error of a median, from the median absolute deviation; as of a fitted line, it grows outwards
    error = 1.86 * float(np.median(np.abs(rest - middle))) / len(x) ** 0.5
    if inclined:
        outwards = len(x) * (place - float(x.mean())) ** 2 / float(((x - x.mean()) ** 2).sum())
        error *= (len(x) / (len(x) - 2) * (1 + outwards)) ** 0.5
    return middle + slope * place, error
