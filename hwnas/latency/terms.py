"""What networks take that no operator does, as a price of its own: launches, and conversions between operators.

On a GPU every kernel is launched, which takes some microseconds where the kernel is too short to hide it, and TensorRT
adds layers that belong to no operator. For small batches that is much of a latency. A runtime that times its networks
whole beside their kernels (`hwnas.measure.runtimes.base.WHOLE`) tells how much it is: a part that every network has,
and one for each operator, fitted over the networks of the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hwnas.measure.runtimes.base import WHOLE
from hwnas.measure.runtimes.tensorrt_layers import NOBODYS

LAYERS = "layers"
"""The term that is the sum of all kernels, those that belong to no operator included."""

TERMS = (WHOLE, LAYERS, *NOBODYS)
"""What a table holds of a network's visit beside its operators, where the whole was timed too."""

GAPS = "gaps"
"""What a run of a network takes beside its kernels: launches, and what lies between them."""

MIN_NETWORKS = 4
"""Fewer networks cannot tell the part of each network from that of each operator."""


@dataclass(frozen=True, slots=True)
class Terms:
    """``fixed_ms + per_operator_ms * operators``, in ms of one batch; nothing where nothing was timed whole.

    Attributes:
        shares: of each kind in it, which add up to 1.
    """

    fixed_ms: float = 0.0
    per_operator_ms: float = 0.0
    shares: Mapping[str, float] = field(default_factory=dict)

    def ms(self, operators: int) -> float:
        """Of a network of so many operators."""
        return self.fixed_ms + self.per_operator_ms * operators

    def parts(self, total_ms: float) -> dict[str, float]:
        """A total, parted among the kinds; those that took nothing are left out."""
        return {kind: share * total_ms for kind, share in self.shares.items() if share * total_ms > 0}


def fit_terms(networks: Sequence[tuple[int, Mapping[str, float]]]) -> Terms:
    """Fits by least squares, neither part below zero.

    Args:
        networks: of each the number of its operators, and what it took by kind, in ms.
    """
    if not networks:
        return Terms()
    operators = np.array([count for count, _ in networks], float)
    taken = np.array([sum(terms.values()) for _, terms in networks])
    if len(networks) < MIN_NETWORKS or not np.ptp(operators):
        per = max(0.0, float(taken.sum() / max(1.0, operators.sum())))
        fixed = 0.0
    else:
        from scipy.optimize import nnls

        found, _ = nnls(np.stack([np.ones(len(networks)), operators], axis=1), taken)
        fixed, per = map(float, found)
    kinds = dict.fromkeys(kind for _, terms in networks for kind in terms)
    sums = {kind: max(0.0, sum(terms.get(kind, 0.0) for _, terms in networks)) for kind in kinds}
    total = sum(sums.values())
    return Terms(fixed, per, {kind: value / total for kind, value in sums.items()}) if total > 0 else Terms()
