"""Universal kriging (Matheron 1969) of what whole networks take: the law, what operators are off by, how sure it is.

The drift is a factor and an offset on the sum of operators; the covariance of two networks says how much of their
operators they share, and how near they are in size. All of it is relative to the measured latency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

FEW = 4
"""Fewer calibration networks give a factor only, and an interval that is assumed rather than estimated."""

OFFSET_ERROR = 0.07
"""Standard error of the offset, before anything was measured, as a share of the least network's sum. Networks that are
alike hardly tell an offset from what each run of a kernel costs; of small ones (`atomnas-tiny`, `figs-fbnet-tiny`) the
worst of sixty were predicted 3 to 5% off without it, 2 to 4% with it, and none of the others worse."""

OPERATOR_ERROR = 0.07
"""Relative standard error of an operator's latency from one network to the next: with 0.05 to 0.1, calibration on 30
networks predicted 200 others of `proxyless` and `fbnet` best."""

RUN_ERROR_MS = 5e-4
"""Standard error of what each run of a kernel is timed too long or too short, whatever it takes: timing one that does
nothing shows less than timing one that works. As much as OPERATOR_ERROR allows of a mean kernel, tens of microseconds,
would be what sizes of networks make in truth, and networks of other kernels would be predicted up to 6% off."""

SIZE_ERROR, SIZE_LENGTH = 0.02, 0.5
"""Standard error of the law at one size, relative, and over which difference of sizes (logarithms of the sum) it is the
same: networks that stay in the cache, those that leave it and those that never were in it follow no straight line. On
one server networks of `fbnet` of 2, 5 and 12 ms were predicted 2% too slow, 1% too fast and 1% too slow by one."""

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Kriging:
    """What the fit says of how sure it is of a network, by how much that is like those that it was fitted on.

    Attributes:
        columns: of `shares`, by operator; where runs are counted the last column is that of their number.
        weights: by what each operator was multiplied for its share.
        shares: of each network, what its operators take of its latency, [networks, columns].
        inverse: of the networks' covariance, [networks, networks].
        weighted: the same times the drift, [networks, coefficients].
        normal: covariance of the drift's coefficients.
        sizes: of each network, [networks].
        residual: what each network says, [networks]: a new one is off the drift by its covariances with them times
            this.
    """

    columns: Mapping[str, int]
    weights: Vector
    shares: Matrix
    inverse: Matrix
    weighted: Matrix
    normal: Matrix
    sizes: Vector
    residual: Vector

    def bend(self, sizes: Vector) -> Vector:
        """What networks of `sizes` take more than the law says of their sums, relative."""
        return np.asarray(alike(sizes, self.sizes) @ self.residual)

    def variance(
        self, sum_ms: float, latency_ms: float, parts_ms: Mapping[str, float], runs: int, size: float
    ) -> float:
        """Relative variance of a prediction beside that of the network itself.

        Args:
            sum_ms: of all operators, as they were measured; those that the fit does not correct as it has them.
            latency_ms: the prediction.
            parts_ms: of the sum, by operator, as they were measured; those without a column say nothing.
            runs: of the operators that this fit corrects.
            size: logarithm of the sum of all operators, corrected.
        """
        share = np.zeros(self.shares.shape[1])
        known = {self.columns[key]: taken for key, taken in parts_ms.items() if key in self.columns}
        share[list(known)] = [self.weights[column] * taken / latency_ms for column, taken in known.items()]
        if self.shares.shape[1] > len(self.columns):
            share[-1] = RUN_ERROR_MS / OPERATOR_ERROR * runs / latency_ms
        common = OPERATOR_ERROR**2 * self.shares @ share + alike(np.array([size]), self.sizes)[0]
        drift = np.array([sum_ms / latency_ms, 1 / latency_ms])[: len(self.normal)] - self.weighted.T @ common
        own = OPERATOR_ERROR**2 * share @ share + SIZE_ERROR**2 - common @ self.inverse @ common
        return max(0.0, float(own + drift @ self.normal @ drift))


@dataclass(frozen=True, slots=True)
class Fit:
    """What a fit found.

    Attributes:
        slope, offset_ms: of the law.
        shifts: what each column's share of a latency is off by.
        errors: of each network, relative, left out.
        expected: the relative standard error that was to be expected of these.
        kriging: of new networks.
    """

    slope: float
    offset_ms: float
    shifts: Vector
    errors: Vector
    expected: Vector
    kriging: Kriging


def alike(a: Vector, b: Vector) -> Matrix:
    """Covariance of what networks of sizes `a` and `b` are off the law by, [a, b]."""
    return np.asarray(SIZE_ERROR**2 * np.exp(-0.5 * ((a[:, None] - b) / SIZE_LENGTH) ** 2))


def fit(
    x: Vector, y: Vector, parts: Matrix, own: Vector, columns: Mapping[str, int], weights: Vector, sizes: Vector
) -> Fit:
    """Fits the law, with an offset where there are enough networks.

    A negative offset is as true as a positive one: large networks leave the cache and grow faster than their sums. But
    the least network that was measured keeps at least half of its latency.

    Args:
        x, y: sums and latencies.
        parts: of the sums, times `weights`, [networks, columns].
        own: relative standard error of each network.
        columns: of the operators.
        weights: of the operators: what is left of each without what timing it costs, and errs as operators do.
        sizes: of the networks: logarithms of their sums, corrected as far as is known.
    """
    shares = parts / y[:, None]
    covariance = OPERATOR_ERROR**2 * shares @ shares.T + np.diag(own**2)
    if len(x) >= FEW:
        covariance = covariance + alike(sizes, sizes)
    inverse = np.linalg.inv(covariance).astype(np.float64)
    small = float(x.min())
    if len(x) >= FEW and small > 0:
        belief = np.diag([0, (OFFSET_ERROR * small) ** -2])
        found = _krige(np.stack([x / y, 1 / y], axis=1), belief, inverse, shares, columns, weights, sizes)
        if found.slope > 0 and found.slope * small + found.offset_ms > 0.5 * found.slope * small:
            return found
    found = _krige((x / y)[:, None], np.zeros((1, 1)), inverse, shares, columns, weights, sizes)
    if len(x) == 1:  # left out it is predicted by a sum that is not calibrated
        return replace(found, errors=1 - x / y, expected=own)
    return found


def _krige(
    drift: Matrix,
    belief: Matrix,
    inverse: Matrix,
    shares: Matrix,
    columns: Mapping[str, int],
    weights: Vector,
    sizes: Vector,
) -> Fit:
    """Universal kriging of the value 1 (every network, relative to what was measured).

    How far each network is off when it is left out is had in closed form (Dubrule 1983); what is believed of the
    drift's coefficients before is one more term of its normal equations (Omre 1987, Bayesian kriging).

    Args:
        drift: [networks, coefficients].
        belief: inverse of the coefficients' covariance, before; their mean is 0.
        inverse: of the covariance, [networks, networks].
        shares: of the columns, [networks, columns].
        columns, weights: of the operators.
        sizes: of the networks.

    Raises:
        LinAlgError: the covariance is none that can be told, of latencies that no device has.
    """
    weighted = inverse @ drift
    normal = np.linalg.inv(drift.T @ weighted + belief).astype(np.float64)
    precision = inverse - weighted @ normal @ weighted.T
    residual = precision.sum(axis=1)
    alone = np.maximum(np.diag(precision), 1e-12 * np.abs(np.diag(inverse)))
    if not (alone > 0).all():
        raise np.linalg.LinAlgError("latencies that no device has")
    slope, *offset = normal @ weighted.sum(axis=0)
    return Fit(
        float(slope),
        float(offset[0]) if offset else 0.0,
        OPERATOR_ERROR**2 * shares.T @ residual,
        residual / alone,
        1 / np.sqrt(alone),
        Kriging(columns, weights, shares, inverse, weighted, normal, sizes, residual),
    )
