"""The simplest law that latencies follow: launch, bytes, MACs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Law:
    """``launch + bytes / bandwidth + MACs / rate``, in ms; the three coefficients are never negative."""

    coefficients: tuple[float, float, float]

    @classmethod
    def fit(cls, costs: np.ndarray, ms: np.ndarray, weights: np.ndarray | None = None) -> Law:
        """Least squares of the relative error, then scaled so that as many are slower as faster.

        Args:
            costs: bytes and MACs of each entry, as float array [n, 2].
            ms: latencies [n].
            weights: of the entries [n]; default equal.
        """
        from scipy.optimize import nnls

        design = np.column_stack([np.ones(len(ms)), costs]) / ms[:, None]
        scale = design.max(axis=0)
        scale[scale <= 0] = 1.0
        root = np.ones(len(ms)) if weights is None else np.sqrt(weights)
        found, _ = nnls(design / scale * root[:, None], root)
        launch, per_byte, per_mac = map(float, found / scale)
        law = cls((launch, per_byte, per_mac))
        middle = math.exp(float(np.median(np.log(ms) - law.log_ms(costs))))
        return cls((launch * middle, per_byte * middle, per_mac * middle))

    def log_ms(self, costs: np.ndarray) -> np.ndarray:
        """Natural logarithm of the latency for `costs` [n, 2]."""
        launch, per_byte, per_mac = self.coefficients
        return np.log(np.maximum(launch + per_byte * costs[:, 0] + per_mac * costs[:, 1], 1e-9))
