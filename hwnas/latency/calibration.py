"""Calibration: from the sum of measured operators to the latency of a network, with errors out of sample.

A sum of operators misses what lies between them by a nearly constant factor and an offset; both are fitted on whole
networks by least squares on the RELATIVE error. Every figure of quality is from leaving each network out in turn, and
so is the width of the intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.measure.statistics import CONFIDENCE

UNCALIBRATED_ERROR = 0.25
"""Relative standard error of a prediction without calibration networks: published raw sums miss by so much."""

FEW = 4
"""Fewer calibration networks give a factor only, and an interval that is assumed rather than estimated."""

FEASIBLE_CONFIDENCE = 0.999
"""One-sided confidence of the upper end that a search decides on. A search chooses among hundreds of networks, and
under a budget it favours those that are predicted too fast: at 99%, one of a hundred found nets was over."""

CHOSEN_ERROR = 0.005
"""Relative standard error more of networks that a search chose: it finds those that are predicted too fast, and they
run on another day. A hundred found nets were off by so much (`benchmarks/budget_audit.py`)."""

FEW_FOR_SHAPE = 12
"""Fewer networks cannot tell whether small ones are predicted worse than large ones."""

NOISE_WEIGHT = 20
"""Networks' worth of belief that a prediction is off by about as much as measurements are: thirty networks alone say
how much it is only to within a quarter."""

NOISE_SHARE = 1.2
"""By how much a prediction is off more than a measurement: found on 200 networks of each of two spaces."""

FOREIGN_ERROR = 0.025
"""Relative standard error more of networks none of whose operators are in a calibration network: what a table that is
calibrated on `proxyless` misses torchvision's networks by (`benchmarks/torchvision_nets.py`)."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """``latency = slope * (sum of operators) + offset`` and how far it may be off.

    Attributes:
        slope, offset_ms: fitted on all networks.
        relative_error: root mean square of the leave-one-out relative errors, drawn towards `noise`.
        networks: how many it was fitted on; 0 means uncalibrated.
        noise: relative standard error of a measured network, where it is known.
        relative_part, absolute_ms: standard deviation of a prediction as a share of it, and what comes on top: small
            networks can be predicted relatively worse.
        sums_ms, measured_ms, left_out_ms: for each network the operators' sum, what was measured, and what was
            predicted for it by a fit without it.
    """

    slope: float
    offset_ms: float
    relative_error: float
    networks: int
    noise: float | None = None
    relative_part: float = 0.0
    absolute_ms: float = 0.0
    sums_ms: tuple[float, ...] = ()
    measured_ms: tuple[float, ...] = ()
    left_out_ms: tuple[float, ...] = ()

    def latency_ms(self, sum_ms: float) -> float:
        """Predicted latency of a network whose operators add up to `sum_ms`."""
        return max(self.slope * sum_ms + self.offset_ms, 0.5 * self.slope * sum_ms)

    @property
    def half_width(self) -> float:
        """Half of the two-sided 90% interval, as a share of the prediction."""
        return self.relative_error * self._student((1 + CONFIDENCE) / 2)

    @property
    def upper_margin(self) -> float:
        """By how much the one-sided upper end of a search exceeds the prediction, as a share of it, on average."""
        return self.relative_error * self._student(FEASIBLE_CONFIDENCE)

    def half_width_ms(self, latency_ms: float) -> float:
        """Half of the two-sided 90% interval of a prediction."""
        return self._student((1 + CONFIDENCE) / 2) * (self.relative_part * latency_ms + self.absolute_ms)

    @property
    def upper(self) -> tuple[float, float]:
        """Factor and addition, in ms, that turn a prediction into the one-sided upper end of a search."""
        deviations = self._student(FEASIBLE_CONFIDENCE)
        relative = float(np.hypot(self.relative_part, CHOSEN_ERROR))
        return 1 + deviations * relative, deviations * self.absolute_ms

    def _student(self, probability: float) -> float:
        from scipy.special import ndtri, stdtrit

        if self.networks < FEW:  # the error is an assumption then, not an estimate from so many networks
            return float(ndtri(probability))
        return float(stdtrit(self.networks - 2 + (NOISE_WEIGHT if self.noise is not None else 0), probability))


def calibrate(sums_ms: Sequence[float], measured_ms: Sequence[float], noise: float | None = None) -> Calibration:
    """Fits on whole networks; with fewer than four only a factor is fitted, with none nothing is.

    Args:
        sums_ms: of each network's operators.
        measured_ms: of each network.
        noise: relative standard error of a measured network; what is learned from few networks about the size of
            errors is drawn towards it.
    """
    x, y = np.asarray(sums_ms, float), np.asarray(measured_ms, float)
    if not len(x):
        return Calibration(1.0, 0.0, UNCALIBRATED_ERROR, 0, None, UNCALIBRATED_ERROR)
    slope, offset = _fit(x, y)
    left_out = np.empty(len(x))
    for index in range(len(x)):
        others = np.arange(len(x)) != index
        a, b = _fit(x[others], y[others]) if len(x) > 1 else (1.0, 0.0)
        left_out[index] = a * x[index] + b
    error = float(np.sqrt(_mean_square(float(((left_out / y - 1) ** 2).sum()), len(x), noise)))
    if len(x) < FEW:
        error = max(error, UNCALIBRATED_ERROR / 2)  # so few networks cannot show how far the next one is off
    parts = _parts(y, left_out, error)
    return Calibration(slope, offset, error, len(x), noise, *parts, tuple(x), tuple(y), tuple(left_out))


def _parts(measured: Vector, left_out: Vector, error: float) -> tuple[float, float]:
    """The standard deviation of predictions as a relative part and an absolute one in ms; on average it is `error`."""
    if len(measured) < FEW_FOR_SHAPE or error <= 0:
        return error, 0.0
    from scipy.optimize import nnls

    shape = np.stack([np.ones(len(measured)), 1 / measured], axis=1)
    relative = np.abs(left_out / measured - 1)
    found, _ = nnls(shape, relative)
    level = float(np.sqrt(np.mean((shape @ found) ** 2)))
    if level <= 0:
        return error, 0.0
    return float(found[0] * error / level), float(found[1] * error / level)


def _mean_square(squares: float, count: int, noise: float | None) -> float:
    """Mean of `count` squared errors, drawn towards the noise's where that is known."""
    if noise is None:
        return squares / count
    return (squares + NOISE_WEIGHT * (NOISE_SHARE * noise) ** 2) / (count + NOISE_WEIGHT)


def _fit(x: Vector, y: Vector) -> tuple[float, float]:
    """Slope and offset that minimise the squared relative error.

    A negative offset is as true as a positive one: large networks leave the cache and grow faster than their sums. But
    the least network that was measured keeps at least half of its latency.
    """
    if len(x) >= FEW and np.ptp(x) > 0.05 * x.mean():
        design = np.stack([x / y, 1 / y], axis=1)
        (slope, offset), *_ = np.linalg.lstsq(design, np.ones(len(x)), rcond=None)
        if slope > 0 and slope * x.min() + offset > 0.5 * slope * x.min():
            return float(slope), float(offset)
    ratio = x / y
    return float(ratio.sum() / (ratio**2).sum()), 0.0


@dataclass(frozen=True, slots=True)
class Quality:
    """How well left-out networks are predicted, as shares 0 to 1; `kendall_tau` is None where nothing can be ranked."""

    networks: int
    mape: float | None
    within_5: float | None
    within_10: float | None
    kendall_tau: float | None
    interval_coverage: float | None


def _widths_without_own_error(calibration: Calibration) -> Vector:
    """For each network the half-width that the errors of the others give."""
    if calibration.networks < 3:
        return np.full(calibration.networks, calibration.half_width)
    squares = (np.array(calibration.left_out_ms) / np.array(calibration.measured_ms) - 1) ** 2
    rest, count = squares.sum() - squares, len(squares) - 1
    others = np.sqrt([_mean_square(float(left), count, calibration.noise) for left in rest])
    own = np.array([calibration.half_width_ms(latency) / latency for latency in calibration.left_out_ms])
    widths: Vector = others * own / max(calibration.relative_error, 1e-12)
    return widths


def quality(calibrations: Sequence[Calibration]) -> Quality:
    """Leave-one-out quality over the networks of all `calibrations` together."""
    fitted = [c for c in calibrations if c.networks]
    if not fitted:
        return Quality(0, None, None, None, None, None)
    from scipy.stats import kendalltau

    predicted = np.concatenate([c.left_out_ms for c in fitted])
    measured = np.concatenate([c.measured_ms for c in fitted])
    width = np.concatenate([_widths_without_own_error(c) for c in fitted])
    errors = np.abs(predicted / measured - 1)
    ranked = len(errors) > 2 and np.ptp(predicted) > 0 and np.ptp(measured) > 0
    tau = float(kendalltau(predicted, measured).statistic) if ranked else None
    return Quality(
        len(errors),
        float(errors.mean()),
        float((errors <= 0.05).mean()),
        float((errors <= 0.10).mean()),
        tau,
        float((errors <= width * predicted / measured).mean()),
    )
