"""Calibration: from the sum of measured operators to the latency of a network, with errors out of sample.

A sum of operators misses what lies between them by a nearly constant factor and an offset; both are fitted on whole
networks by least squares on the RELATIVE error. What is left is shared out among the operators that the networks have:
a kernel takes another time after other neighbours, and timing one costs more than timing one that does nothing shows.
Each operator's latency gets a factor near 1. And networks of one size err alike: what of them stays in the cache bends
the law a little. That is universal kriging (Matheron 1969) whose drift is the factor and the offset, and whose
covariance says how much of their operators two networks share, and of their number, and how near they are in size.
Prices stay sums over operators, of which a `Curve` makes the latency. The width of intervals is from leaving each
network out in turn: kriging tells how much wider that of one network has to be than another's.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

import numpy as np

from hwnas.costs import Curve
from hwnas.latency.kriging import FEW, OPERATOR_ERROR, RUN_ERROR_MS, Fit, Kriging, Matrix, Vector, fit
from hwnas.latency.noise import Noise, fit_noise
from hwnas.measure.statistics import CONFIDENCE

UNCALIBRATED_ERROR = 0.25
"""Relative standard error of a prediction without calibration networks: published raw sums miss by so much."""

FEASIBLE_CONFIDENCE = 0.99
"""One-sided confidence of the upper end that a search decides on. A search chooses among hundreds of networks, and
under a budget it favours those that are predicted too fast (`CHOSEN_ERROR`). At 99.5% none of a hundred found nets was
over its budget, the most that one used was 98.8%, and half used less than 95.7% (`benchmarks/budget_audit.py`)."""

CHOSEN_ERROR = 0.005
"""Relative standard error more of networks that a search chose: it finds those that are predicted too fast, and they
run on another day. A hundred found nets were off by so much (`benchmarks/budget_audit.py`)."""

FEW_FOR_SHAPE = 12
"""Fewer networks cannot tell whether small ones are predicted worse than large ones."""

BELIEF = 35
"""Networks' worth of belief that predictions are off by as much as noise and `model_error` say: thirty networks alone
say how much it is only to within a quarter. With less, the coverage of intervals differs more from one choice of
calibration networks to the next; with more, from table to table (`benchmarks/splits.py`)."""

MODEL_ERROR = 0.007
"""Relative standard error of a prediction beside a measurement's own, where nothing is known of the operators."""

LEAST_MODEL_ERROR = 0.002
"""The same where all operators take the same in all networks: some of it is in no operator."""

SPREAD_PART = 0.72
"""Share of the operators' spread that is left in a calibrated prediction. This and `LEAST_MODEL_ERROR` were chosen on
nine tables with 60 or 200 networks each, of three spaces, batch 1, 8 and 32, one thread and two."""

ROUNDS, DAMPED, SETTLED = 20, 3, 0.01
"""Of fits at most, those that take the whole step, and how far what is left of an operator may still move."""

TINY_MS = 1e-9
"""Below all sums of operators."""

UNKNOWN_SPREAD = 0.03
"""Of operators that were not timed in several networks."""

KNOT_SPACING, MOST_KNOTS = 0.05, 200
"""Of the curve, in the logarithm of sums; and how many there are at most."""

LEAST_RISE = 0.2
"""Of the law's own slope, that the curve keeps everywhere."""

LEAST_FACTOR = 0.05
"""What networks say of an operator may not take more of it away: prices stay positive."""

FOREIGN_ERROR = 0.025
"""Relative standard error more of networks none of whose operators are in a calibration network: what a table that is
calibrated on `proxyless` misses torchvision's networks by (`benchmarks/torchvision_nets.py`)."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """``latency = curve(slope * (sum of corrected operators) + offset)`` and how far it may be off.

    Attributes:
        slope, offset_ms: fitted on all networks.
        curve: of what networks of one size take more, or less, than that. It is near the straight line.
        relative_error: of a network like those that it was fitted on: root mean square of the leave-one-out relative
            errors, drawn towards what was to be expected of each.
        networks: how many it was fitted on; 0 means uncalibrated.
        noise: how uncertain measured networks are, where it is known.
        relative_part, absolute_ms: standard deviation of a prediction as a share of it, and what comes on top, for the
            upper end of a search: small networks can be predicted relatively worse.
        measured_ms, left_out_ms: of each network, and what was predicted for it by a fit without it.
        expected: relative standard error that was to be expected of each network's prediction, by the others: noise,
            model error, and what `kriging` says.
        scale: by how much errors are larger than that.
        kriging: of the fit; None where so few networks only give a factor.
        range_ms: the least and the largest of their sums, corrected; () without any.
        factors: what the latency of an operator is to be multiplied by before it is added up, by its key; operators of
            no calibration network have none.
        usual_factor, per_run_ms: what `factor_of` makes of operators that no network tells of.
    """

    slope: float
    offset_ms: float
    relative_error: float
    networks: int
    noise: Noise | None = None
    relative_part: float = 0.0
    absolute_ms: float = 0.0
    measured_ms: tuple[float, ...] = ()
    left_out_ms: tuple[float, ...] = ()
    expected: tuple[float, ...] = ()
    range_ms: tuple[float, ...] = ()
    factors: Mapping[str, float] = field(default_factory=dict)
    usual_factor: float = 1.0
    per_run_ms: float = 0.0
    scale: float = 1.0
    curve: Curve = field(default_factory=Curve)
    kriging: Kriging | None = field(default=None, repr=False, compare=False)

    def factor_of(self, latency_ms: float) -> float:
        """What to multiply the latency of an operator by that no network tells of.

        What timing a kernel costs is so much for each run, however long it takes: a larger share of a short one.
        """
        return max(LEAST_FACTOR, self.usual_factor + self.per_run_ms / latency_ms)

    def corrects(self, key: str) -> bool:
        """Whether networks tell how far an operator is off: one at `LEAST_FACTOR` is taken as it is then."""
        return self.kriging is not None and key in self.kriging.columns

    def open_runs(self, counts: Mapping[str, int], corrected: Container[str]) -> int:
        """How often operators run, of `counts` by key, that this calibration corrects, or would: none of `corrected`,
        those of all calibrations of a table."""
        return sum(n for key, n in counts.items() if self.corrects(key) or key not in corrected)

    def corrected_ms(self, sum_ms: float, operators_ms: Mapping[str, float]) -> float:
        """The sum `latency_ms` wants, from one of operators as they were measured; `operators_ms` are those by key."""
        return sum_ms + sum((self.factors.get(key, 1.0) - 1) * taken for key, taken in operators_ms.items())

    def latency_ms(self, sum_ms: float) -> float:
        """Predicted latency of a network whose operators, corrected by `factors`, add up to `sum_ms`."""
        return max(float(self.curve.at(np.array(self.slope * sum_ms + self.offset_ms))), 0.5 * self.slope * sum_ms)

    def foreign_ms(self, sum_ms: float) -> float:
        """As `latency_ms`, for a network of another kind: beyond all that were measured the factor is the nearest's.

        The offset is what small networks of one kind differ by from large ones. It says nothing of one that takes five
        times as long as the largest of them.
        """
        if not self.range_ms or sum_ms <= 0:
            return self.latency_ms(sum_ms)
        nearest = min(max(sum_ms, self.range_ms[0]), self.range_ms[-1])
        return self.latency_ms(nearest) * sum_ms / nearest

    @property
    def half_width(self) -> float:
        """Half of the two-sided 90% interval, as a share of the prediction."""
        return self.relative_error * self._student((1 + CONFIDENCE) / 2)

    @property
    def upper_margin(self) -> float:
        """By how much the one-sided upper end of a search exceeds the prediction, as a share of it, on average."""
        return self.relative_error * self._student(FEASIBLE_CONFIDENCE)

    def half_width_ms(
        self, latency_ms: float, model_error: float, sum_ms: float, parts_ms: Mapping[str, float], runs: int
    ) -> float:
        """Half of the two-sided 90% interval of a network's prediction.

        Args:
            latency_ms: the prediction.
            model_error: what `model_error` says of the network.
            sum_ms: of its operators, corrected by `factors`.
            parts_ms: of that sum, by operator.
            runs: of the operators that this calibration corrects, or would.
        """
        if self.kriging is None or latency_ms <= 0:
            return self.half_width * latency_ms
        raw = {key: taken / self.factors[key] if self.corrects(key) else taken for key, taken in parts_ms.items()}
        raw_sum_ms = sum_ms + sum(raw[key] - taken for key, taken in parts_ms.items())
        size = float(np.log(max(sum_ms, TINY_MS)))
        kriged = self.kriging.variance(raw_sum_ms, latency_ms, raw, runs, size)
        noise = self.noise.of(latency_ms) if self.noise is not None else 0.0
        variance = model_error**2 + noise**2 + kriged
        return self._student((1 + CONFIDENCE) / 2) * self.scale * latency_ms * float(np.sqrt(variance))

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
        return float(stdtrit(self.networks - 2 + (BELIEF if self.noise is not None else 0), probability))


def model_error(sum_ms: float, operators: Iterable[tuple[int, float, float | None]]) -> float:
    """Relative standard error of a network's prediction beside a measurement's own.

    Operators take another time from one network to the next, each time it runs another one, independently.

    Args:
        sum_ms: of all operators.
        operators: of each how often it runs, what it takes then in ms, and its spread.
    """
    variance = sum(
        runs * (taken * (UNKNOWN_SPREAD if spread is None else spread)) ** 2 for runs, taken, spread in operators
    )
    return float(np.hypot(LEAST_MODEL_ERROR, SPREAD_PART * variance**0.5 / sum_ms)) if sum_ms > 0 else MODEL_ERROR


def calibrate(
    sums_ms: Sequence[float],
    measured_ms: Sequence[float],
    noise: Sequence[float] | None = None,
    operators_ms: Sequence[Mapping[str, float]] = (),
    counts: Sequence[Mapping[str, int]] = (),
    model_errors: Sequence[float] = (),
) -> Calibration:
    """Fits on whole networks; with fewer than four only a factor is fitted, with none nothing is.

    Args:
        sums_ms: of each network's operators.
        measured_ms: of each network.
        noise: relative standard error of each measured network, of which a law by latency is made (`fit_noise`): single
            networks are not weighted by their own. What is learned from few networks about the size of errors is drawn
            towards that and `model_errors` together.
        operators_ms: of each network its part of the sum by operator, all occurrences together. Without them operators
            are not corrected.
        counts: how often each of these runs in each network. Without them what every run of an operator takes more,
            or less, is not told apart.
        model_errors: what `model_error` says of each network; without them it is `MODEL_ERROR` of all.
    """
    x, y = np.asarray(sums_ms, float), np.asarray(measured_ms, float)
    if not len(x):
        return Calibration(1.0, 0.0, UNCALIBRATED_ERROR, 0, None, UNCALIBRATED_ERROR)
    keys = sorted({key for taken in operators_ms for key in taken}) if len(x) >= FEW else []
    parts = np.zeros((len(x), len(keys)))
    if keys:
        parts[:] = [[taken.get(key, 0.0) for key in keys] for taken in operators_ms]
    runs = np.array([[ran.get(key, 0) for key in keys] for ran in counts], float) if keys and counts else parts[:, :0]
    law = fit_noise(measured_ms, noise) if noise is not None else None
    noises = [law.of(latency) for latency in y.tolist()] if law is not None else np.zeros(len(y))
    own = np.hypot(np.asarray(model_errors or [MODEL_ERROR] * len(x), float), noises)
    found, factors, usual, per_run_ms = _fit_operators(x, y, keys, parts, runs, own)
    slope, offset, errors, expected = found.slope, found.offset_ms, found.errors, found.expected
    corrected = x + parts @ (np.array([factors[key] for key in keys]) - 1)
    left_out = y * (1 - errors)
    scale = scale_of(float(((errors / expected) ** 2).sum()), len(x), law)
    error = scale * float(np.sqrt((expected**2).mean()))
    if len(x) < FEW:
        error = max(error, UNCALIBRATED_ERROR / 2)  # so few networks cannot show how far the next one is off
    shape = _parts(y, left_out, error)
    return Calibration(
        slope, offset, error, len(x), law, *shape, tuple(y), tuple(left_out), tuple(expected.tolist()),
        (float(corrected.min()), float(corrected.max())), factors, usual, per_run_ms, scale,
        *((_curve(found, corrected), found.kriging) if len(x) >= FEW else ()),
    )  # fmt: skip


def _curve(found: Fit, sums_ms: Vector) -> Curve:
    """What the fit says that networks take, between the least and the largest of `sums_ms`; beyond, it is off by as
    much as there, relative."""
    if sums_ms.min() <= 0 or found.slope * sums_ms.min() + found.offset_ms <= 0:  # corrected, less than was fitted on
        return Curve()
    first, last = np.log([sums_ms.min(), sums_ms.max()])
    sizes = np.linspace(first, last, min(MOST_KNOTS, 2 + int((last - first) / KNOT_SPACING)) if last > first else 1)
    knots = found.slope * np.exp(sizes) + found.offset_ms
    values = knots * (1 + np.clip(found.kriging.bend(sizes), -0.5, 0.5))
    rise = np.maximum(np.diff(values), LEAST_RISE * np.diff(knots))
    values[1:] = values[0] + np.cumsum(rise)
    rises = float(values[0] / knots[0]), float(values[-1] / knots[-1])
    return Curve(tuple(knots.tolist()), tuple(values.tolist()), rises)


def _fit_operators(
    x: Vector, y: Vector, keys: Sequence[str], parts: Matrix, runs: Matrix, own: Vector
) -> tuple[Fit, dict[str, float], float, float]:
    """Fits the law and what operators are off by, in rounds.

    Operators err by a share of what they take, not of what timing them costs, which the fit tells: it is left out of
    their shares in the next. And where less than `LEAST_FACTOR` would be left of an operator, the next one has it at
    that: what it cannot give is to be found elsewhere. Cut off afterwards, the conversions between layouts of networks
    that take 0.04 ms, two dozen in each and about as short as what timing them costs, made these 2 to 4% too slow. What
    is predicted of networks that are left out has the bounds and weights that all of them show.

    Args:
        x, y: sums and latencies.
        keys: of the operators.
        parts: of the sums, [networks, operators].
        runs: how often each runs, [networks, operators]; without columns where nobody counted.
        own: relative standard error of each network.

    Returns:
        The fit, each operator's factor, and `Calibration.usual_factor` and `per_run_ms`.
    """
    free, weights, sizes = np.ones(len(keys), np.bool_), np.ones(len(keys)), np.log(np.maximum(x, TINY_MS))
    per_ms = runs.sum(axis=0) / parts.sum(axis=0) if runs.size else 0.0
    for number_of_round in range(ROUNDS):
        columns = {key: place for place, key in enumerate(compress(keys, free))}
        weighted = (parts * weights)[:, free]
        number = RUN_ERROR_MS / OPERATOR_ERROR * runs[:, free].sum(axis=1, keepdims=True) if runs.size else runs
        sums = x - (1 - LEAST_FACTOR) * parts[:, ~free].sum(axis=1)
        found = fit(sums, y, np.concatenate([weighted, number], axis=1), own, columns, weights[free], sizes)
        changes = np.zeros(len(keys))
        changes[free] = found.shifts[: len(columns)] / found.slope * weights[free]
        usual = 1 + float((parts @ changes).sum() / parts[:, free].sum()) if columns else 1.0
        per_run_ms = float(found.shifts[-1]) * RUN_ERROR_MS / OPERATOR_ERROR / found.slope if runs.size else 0.0
        factors = np.where(free, 1 + changes + per_run_ms * per_ms, LEAST_FACTOR)
        before, weights = weights, np.clip(1 + per_run_ms * per_ms, LEAST_FACTOR, 1) * np.ones(len(keys))
        if number_of_round >= DAMPED:
            weights = (before + weights) / 2
        free &= factors > LEAST_FACTOR
        corrected = np.log(np.maximum(x + parts @ (np.maximum(factors, LEAST_FACTOR) - 1), TINY_MS))
        moved = max(np.abs(weights - before).max(initial=0.0), np.abs(corrected - sizes).max())
        if len(columns) == free.sum() and moved < SETTLED:
            break
        sizes = corrected
    return found, dict(zip(keys, np.maximum(factors, LEAST_FACTOR).tolist(), strict=True)), usual, per_run_ms


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


def scale_of(squares: float, count: int, noise: Noise | None) -> float:
    """By how much errors are larger than was to be expected, from the squares of `count` ratios; believed to be 1
    where the noise is known."""
    belief = 0 if noise is None else BELIEF
    return float(np.sqrt((squares + belief) / (count + belief)))
