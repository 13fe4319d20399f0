"""How well a calibrated table predicts, from leaving each of its networks out in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.latency.calibration import Calibration, scale_of
from hwnas.latency.kriging import FEW, Vector


@dataclass(frozen=True, slots=True)
class Quality:
    """How well left-out networks are predicted, as shares 0 to 1; `kendall_tau` is None where nothing can be ranked."""

    networks: int
    mape: float | None
    within_5: float | None
    within_10: float | None
    kendall_tau: float | None
    interval_coverage: float | None


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


def _widths_without_own_error(calibration: Calibration) -> Vector:
    """For each network the half-width that the errors of the others give."""
    if calibration.networks < FEW:
        return np.full(calibration.networks, calibration.half_width)
    expected = np.array(calibration.expected)
    squares = ((np.array(calibration.left_out_ms) / np.array(calibration.measured_ms) - 1) / expected) ** 2
    rest, count = squares.sum() - squares, len(squares) - 1
    others = np.array([scale_of(float(left), count, calibration.noise) for left in rest])
    deviations = calibration.half_width / max(calibration.relative_error, 1e-12)
    widths: Vector = others * expected * deviations
    return widths
