"""How wide an interval has to be, learned from entries that were left out."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from hwnas.measure.statistics import CONFIDENCE

NORMAL_90 = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""Standard deviations from the middle to either end of an interval."""

ASSUMED_WIDTH = math.log(2.0)
"""Log half-width where too little can be left out to learn it: half to twice the latency."""

LAW_COVERS = math.log(2.0)
"""Least log half-width of an estimate from bytes and MACs alone."""

BINS = 6
"""Of the distance, over which the width is learned."""

FLOOR = 0.5
"""Share of the median error that counts as scatter everywhere: neighbours can agree by chance."""

LEAST = 20
"""Left-out entries that are enough to learn a width from."""


def conformal(errors: np.ndarray) -> float:
    """The width that covers a further error with the confidence of all intervals; infinite where there are too few.

    It is the ceil(0.9 * (n + 1))-th of the n errors: that covers the next one with at least 90% if all are alike.
    """
    ordered = np.sort(np.abs(errors))
    rank = math.ceil(CONFIDENCE * (len(ordered) + 1))
    return float(ordered[rank - 1]) if rank <= len(ordered) else math.inf


@dataclass(frozen=True, slots=True)
class Widths:
    """Log half-width as a function of the distance to the nearest neighbour and of the scatter around the fit.

    ``factor(distance) * hypot(floor, scatter)``; `factors` at `distances` never fall, between them the factor is
    linear, beyond the last it grows in proportion to the distance.
    """

    distances: tuple[float, ...]
    factors: tuple[float, ...]
    floor: float

    @classmethod
    def assumed(cls, width: float) -> Widths:
        """The same width everywhere up to a factor of two in distance, then growing."""
        return cls((math.log(2.0),), (1.0,), width)

    @classmethod
    def learn(cls, left_out: np.ndarray) -> Widths:
        """From rows of distance, scatter, log error and depth (`Field.left_out`)."""
        plain = left_out[left_out[:, 3] == 0]
        if len(plain) < LEAST:
            return cls.assumed(max([ASSUMED_WIDTH, *np.abs(left_out[:, 2])]))
        floor = max(1e-3, FLOOR * float(np.median(np.abs(plain[:, 2]))))
        scaled = np.abs(left_out[:, 2]) / np.hypot(floor, left_out[:, 1])
        edges = np.unique(np.quantile(left_out[:, 0], np.linspace(0, 1, BINS + 1)))
        distances, factors = [], []
        for low, high in itertools.pairwise(edges):
            inside = (left_out[:, 0] >= low) & (left_out[:, 0] <= high)
            factor = conformal(scaled[inside])
            if math.isfinite(factor):
                distances.append(float(np.median(left_out[inside, 0])))
                factors.append(factor)
        if not factors:
            distances, factors = [float(np.median(left_out[:, 0]))], [conformal(scaled)]
        # entries of the table's own grid are what the width is promised for
        rising = np.maximum.accumulate(factors)
        own = np.interp(plain[:, 0], distances, rising)
        needed = conformal(np.abs(plain[:, 2]) / np.hypot(floor, plain[:, 1]) / own)
        return cls(tuple(distances), tuple(rising * needed), floor)

    def of(self, distance: np.ndarray, scatter: np.ndarray) -> np.ndarray:
        """Log half-widths [n]."""
        beyond = np.maximum(1.0, distance / max(self.distances[-1], 1e-9))
        widths: np.ndarray = np.interp(distance, self.distances, self.factors) * beyond * np.hypot(self.floor, scatter)
        return widths
