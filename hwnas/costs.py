"""`Cost`: what the architectures of a space cost, as prices of choices.

Every cost hwnas searches under is additive over the slots of a space: a fixed part (stem, head, offset of the
calibration) and one price for each choice of each slot. A million architectures are then priced by one gather and sum.
Where a latency depends on what stands before a slot, a `Walk` adds the difference, exactly. And where it is no straight
line in the sum (small networks stay in the cache), a `Curve` says what it is; a limit is one of sums then too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwnas.ops import Op

if TYPE_CHECKING:
    from hwnas.spaces.base import Space

Genes = NDArray[np.integer]
"""Architectures as an integer array of shape [n, slots] (or [slots] for one)."""

Floats = NDArray[np.float64]

_BLOCK = 8192
"""Architectures priced at a time: what the cache holds, three times as fast as all at once."""


@dataclass(frozen=True, slots=True)
class Walk:
    """What choices cost above their least price, by the state in which the slots before leave things.

    A conversion of layout, for one, is paid or not by what stands before. An architecture is priced by a walk over its
    slots, from state 0.

    Attributes:
        extra: [slots, states, choices], never negative; infinite for a choice that a state does not allow.
        after: [slots, states, choices], the state that each choice leaves.
        tail: [states], what each state costs after the last slot, never negative.
    """

    extra: Floats
    after: NDArray[np.intp]
    tail: Floats

    def add_to(self, total: Floats, genes: Genes) -> None:
        """Adds what `genes` [n, slots] cost to `total` [n]."""
        state = np.zeros(len(genes), np.intp)
        width = self.extra.shape[2]
        for slot, (extra, after) in enumerate(zip(self.extra, self.after, strict=True)):
            place = state * width + genes[:, slot]
            total += extra.take(place)
            state = after.take(place)
        total += self.tail.take(state)

    def scaled(self, factor: float) -> Walk:
        """Everything `factor` times as expensive."""
        return Walk(self.extra * factor, self.after, self.tail * factor)


@dataclass(frozen=True, slots=True)
class Curve:
    """A rising function of a sum, straight between knots: what architectures cost that is not quite a sum.

    Attributes:
        knots, values: rising, at least one.
        rises: slopes before the first knot and behind the last one, above 0.
    """

    knots: tuple[float, ...] = (0.0,)
    values: tuple[float, ...] = (0.0,)
    rises: tuple[float, float] = (1.0, 1.0)

    def at(self, sums: Floats) -> Floats:
        """Values at `sums`, of any shape."""
        return _straight(sums, self.knots, self.values, self.rises)

    def sum_at(self, value: float) -> float:
        """The sum whose value is `value`."""
        rises = 1 / self.rises[0], 1 / self.rises[1]
        return float(_straight(np.array(value), self.values, self.knots, rises))

    def scaled(self, factor: float, more: float = 0.0) -> Curve:
        """Each value times `factor`, above 0, plus `more`."""
        values = tuple(factor * value + more for value in self.values)
        return Curve(self.knots, values, (factor * self.rises[0], factor * self.rises[1]))


def _straight(at: Floats, knots: Sequence[float], values: Sequence[float], rises: tuple[float, float]) -> Floats:
    before, behind = np.minimum(at - knots[0], 0.0), np.maximum(at - knots[-1], 0.0)
    return np.asarray(np.interp(at, knots, values) + rises[0] * before + rises[1] * behind)


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices in one unit: the sum of an architecture is ``fixed + sum(choices[slot, gene])``, and what `walk` adds.

    Its total is what `curve` makes of the sum. As that rises, whatever compares architectures may compare sums.

    Attributes:
        fixed: what every architecture pays.
        choices: float array of shape [slots, most choices of a slot], least prices; infinite where a slot has no such
            choice.
        walk: None where no price depends on the slots before it.
        curve: None where totals are the sums.
    """

    fixed: float
    choices: Floats
    walk: Walk | None = None
    curve: Curve | None = None

    @classmethod
    def of(cls, fixed: float, slots: Iterable[Sequence[float]]) -> Prices:
        """From the prices of each slot's choices, of which slots may have different numbers."""
        rows = list(slots)
        table = np.full((len(rows), max(map(len, rows))), np.inf)
        for row, prices in zip(table, rows, strict=True):
            row[: len(prices)] = prices
        return cls(float(fixed), table)

    @classmethod
    def of_walk(cls, fixed: float, table: Floats, after: NDArray[np.intp], tail: Floats) -> Prices:
        """From the prices [slots, states, choices] in each state; infinite where there is no such state or choice.

        A choice that only some states have cannot be taken in the others; a state that is reached has one at least.
        """
        least = table.min(axis=1)
        known, exists = np.isfinite(table), np.isfinite(least)[:, None, :]
        forbidden = exists & ~known & known.any(axis=2, keepdims=True)
        extra = np.where(known, table - np.where(exists, least[:, None, :], 0.0), np.where(forbidden, np.inf, 0.0))
        end = tail.min()
        behind = np.where(np.isfinite(tail), tail - end, 0.0)
        walk = Walk(extra, after, behind) if extra.any() or behind.any() else None
        return cls(float(fixed + end), least, walk)

    def total(self, genes: Genes) -> Floats:
        """Totals of `genes` [n, slots], as an array [n]."""
        total = np.full(len(genes), self.fixed)
        for start in range(0, len(genes), _BLOCK):
            block, part = genes[start : start + _BLOCK], total[start : start + _BLOCK]
            # Slot by slot, so that an architecture has one total to the last bit, however many are priced with it.
            for slot, prices in enumerate(self.choices):
                part += prices.take(block[:, slot])
            if self.walk is not None:
                self.walk.add_to(part, block)
        return total if self.curve is None else self.curve.at(total)

    def sum_at(self, total: float) -> float:
        """The sum of prices whose total is `total`: a limit of totals as one of sums."""
        return total if self.curve is None else self.curve.sum_at(total)

    def cheapest(self) -> tuple[int, ...]:
        """Genes of the cheapest architecture."""
        return self._extreme(1.0)

    def dearest(self) -> tuple[int, ...]:
        """Genes of the most expensive architecture."""
        return self._extreme(-1.0)

    def _extreme(self, sign: float) -> tuple[int, ...]:
        """Genes with the least ``sign * total``."""
        table = sign * np.where(np.isfinite(self.choices), self.choices, sign * np.inf)
        if self.walk is None:
            return tuple(int(gene) for gene in table.argmin(axis=1))
        best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}  # the best way to each state
        for prices, extra, after in zip(table, self.walk.extra, self.walk.after, strict=True):
            reached: dict[int, tuple[float, tuple[int, ...]]] = {}
            for state, (paid, genes) in best.items():
                for gene in np.flatnonzero(np.isfinite(prices + extra[state])).tolist():
                    way = (paid + float(prices[gene] + sign * extra[state, gene]), (*genes, gene))
                    end = int(after[state, gene])
                    reached[end] = min(reached.get(end, way), way)
            best = reached
        tail = self.walk.tail
        return min((paid + sign * float(tail[state]), genes) for state, (paid, genes) in best.items())[1]

    def scaled(self, factor: float) -> Prices:
        """Everything `factor` times as expensive."""
        if self.curve is not None:
            return replace(self, curve=self.curve.scaled(factor))
        return Prices(self.fixed * factor, self.choices * factor, self.walk and self.walk.scaled(factor))

    def total_of(self, genes: tuple[int, ...]) -> float:
        """Total of one architecture."""
        return float(self.total(np.asarray([genes]))[0])


@dataclass(frozen=True, slots=True)
class Cost:
    """One cost of a space's architectures.

    Attributes:
        name: ``latency``, ``macs``, ``params``, ``bitops``: what a `Budget` names.
        prices: the prediction (latency in ms; the others are exact counts).
        upper: the one-sided upper end that feasibility is decided on; equal to `prices` for exact costs.
    """

    name: str
    prices: Prices
    upper: Prices


def op_prices(space: Space, price: Callable[[Op], float]) -> Prices:
    """Prices of `space` when every operator costs ``price(op)``."""
    slots = (
        [sum(price(op) for op in space.slot_ops(slot, choice)) for choice in range(len(choices))]
        for slot, choices in enumerate(space.slots)
    )
    return Prices.of(sum(price(op) for op in space.fixed_ops()), slots)


def macs_cost(space: Space) -> Cost:
    """Multiply-accumulates of one image (papers: FLOPs)."""
    prices = op_prices(space, lambda op: op.macs)
    return Cost("macs", prices, prices)


def params_cost(space: Space) -> Cost:
    """Parameters of the module, BatchNorm included."""
    prices = op_prices(space, lambda op: op.params)
    return Cost("params", prices, prices)


def bitops_cost(space: Space) -> Cost | None:
    """MACs times weight bits times activation bits of one image; None where nothing of the space is quantised."""
    prices = op_prices(space, lambda op: op.bitops)
    if prices.total_of(prices.dearest()) == 0:
        return None
    return Cost("bitops", prices, prices)
