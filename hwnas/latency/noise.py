"""How uncertain the measured latency of a network is: the shorter it is, the more, relative to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POWER, POWER_ERROR = -0.5, 0.3
"""Of the latency, that the relative error goes with, before anything was measured. On 21 tables of one server, of
networks of 2 to 14 ms, it was -0.2 to -1.0: what disturbs a visit lasts as long whatever is visited."""

SCATTER = 0.45
"""Of the errors of single networks around that, in logarithms: few visits tell an error only so well."""

LEAST_ERROR = 1e-4
"""Relative. Less says nothing: single visits, and visits that a coarse clock shows alike, do not differ."""

STEEPEST = -1.5
"""Power at least; at most it is 0."""


@dataclass(frozen=True, slots=True)
class Noise:
    """A power law, of networks between the shortest and the longest that were measured; beyond, that of the nearest.

    Attributes:
        error: relative standard error of a network that takes `typical_ms`.
        power: of the latency.
        range_ms: the least and the largest latency that it was fitted on.
    """

    error: float
    typical_ms: float
    power: float
    range_ms: tuple[float, float]

    def of(self, latency_ms: float) -> float:
        """Relative standard error of the measurement of a network that takes so long."""
        nearest = min(max(latency_ms, self.range_ms[0]), self.range_ms[1])
        return float(self.error * (nearest / self.typical_ms) ** self.power)


def fit_noise(measured_ms: Sequence[float], errors: Sequence[float]) -> Noise:
    """Fits to networks: least squares on logarithms, drawn towards `POWER`.

    Args:
        measured_ms: latencies, one at least.
        errors: relative standard error of each; networks whose error nobody knows yet (`LEAST_ERROR`) have no say.
    """
    ends = float(min(measured_ms)), float(max(measured_ms))
    told = np.array(errors) > LEAST_ERROR
    if not told.any():
        return Noise(LEAST_ERROR, ends[0], 0.0, ends)
    sizes, logs = np.log(np.array(measured_ms)[told]), np.log(np.array(errors)[told])
    about = sizes - sizes.mean()
    power = (about @ logs / SCATTER**2 + POWER / POWER_ERROR**2) / (about @ about / SCATTER**2 + 1 / POWER_ERROR**2)
    typical = float(np.exp(sizes.mean()))
    return Noise(float(np.exp(logs.mean())), typical, float(np.clip(power, STEEPEST, 0.0)), ends)
