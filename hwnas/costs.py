"""`Cost`: what the architectures of a space cost, as prices of choices.

Every cost hwnas searches under is additive over the slots of a space: a fixed part (stem, head, offset of the
calibration) and one price for each choice of each slot. A million architectures are then priced by one gather and sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwnas.ops import Op

if TYPE_CHECKING:
    from hwnas.spaces.base import Space

Genes = NDArray[np.integer]
"""Architectures as an integer array of shape [n, slots] (or [slots] for one)."""

_BLOCK = 8192
"""Architectures priced at a time: what the cache holds, three times as fast as all at once."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices in one unit: the total of an architecture is ``fixed + sum(choices[slot, gene])``.

    Attributes:
        fixed: what every architecture pays.
        choices: float array of shape [slots, most choices of a slot]; infinite where a slot has no such choice.
    """

    fixed: float
    choices: NDArray[np.float64]

    def total(self, genes: Genes) -> NDArray[np.float64]:
        """Totals of `genes` [n, slots], as an array [n]."""
        total = np.full(len(genes), self.fixed)
        for start in range(0, len(genes), _BLOCK):
            block, part = genes[start : start + _BLOCK], total[start : start + _BLOCK]
            # Slot by slot, so that an architecture has one total to the last bit, however many are priced with it.
            for slot, prices in enumerate(self.choices):
                part += prices.take(block[:, slot])
        return total

    def cheapest(self) -> tuple[int, ...]:
        """Genes of the cheapest architecture."""
        return tuple(int(gene) for gene in self.choices.argmin(axis=1))

    def dearest(self) -> tuple[int, ...]:
        """Genes of the most expensive architecture."""
        finite = np.where(np.isfinite(self.choices), self.choices, -np.inf)
        return tuple(int(gene) for gene in finite.argmax(axis=1))

    def total_of(self, genes: tuple[int, ...]) -> float:
        """Total of one architecture."""
        return float(self.total(np.asarray([genes]))[0])


@dataclass(frozen=True, slots=True)
class Cost:
    """One cost of a space's architectures.

    Attributes:
        name: ``latency``, ``macs``, ``params``: what a `Budget` names.
        prices: the prediction (latency in ms; the others are exact counts).
        upper: the one-sided upper end that feasibility is decided on; equal to `prices` for exact costs.
    """

    name: str
    prices: Prices
    upper: Prices


def op_prices(space: Space, price: Callable[[Op], float]) -> Prices:
    """Prices of `space` when every operator costs ``price(op)``."""
    return chain_prices(space, lambda ops: sum(price(op) for op in ops))


def chain_prices(space: Space, price: Callable[[Sequence[Op]], float]) -> Prices:
    """Prices of `space` when the operators of a choice, which follow each other, cost ``price(ops)`` together."""
    width = max(len(choices) for choices in space.slots)
    table = np.full((len(space.slots), width), np.inf)
    for slot, choices in enumerate(space.slots):
        for choice in range(len(choices)):
            table[slot, choice] = price(space.slot_ops(slot, choice))
    return Prices(float(price(space.fixed_ops())), table)


def macs_cost(space: Space) -> Cost:
    """Multiply-accumulates of one image (papers: FLOPs)."""
    prices = op_prices(space, lambda op: op.macs)
    return Cost("macs", prices, prices)


def params_cost(space: Space) -> Cost:
    """Parameters of the module, BatchNorm included."""
    prices = op_prices(space, lambda op: op.params)
    return Cost("params", prices, prices)
