"""Architectures that meet their budgets, by construction.

The costs are additive over slots. So the architectures within all budgets can be counted by dynamic programming over
what is left of each budget, on a grid, and drawn uniformly by walking through the counts. Prices are rounded DOWN to
the grid: no feasible architecture is lost, and the few that only rounding let in are rejected by their true upper ends.
The grid spans what is left when every slot takes its cheapest choice, so that it is as fine for a budget that one
architecture in 10^9 meets as for a generous one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.budget import format_cost
from hwnas.costs import Cost, Genes
from hwnas.errors import ClaimError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CELLS = {0: 0, 1: 1 << 14, 2: 512, 3: 64, 4: 24}
"""Cells of the grid along each budget, by how many budgets bind: 330,000 states at most, a fraction of a second."""

_REPAIR_CELLS = {0: 0, 1: 1 << 10, 2: 48, 3: 16, 4: 8}
"""The same for repairs, which count anew for every architecture."""

_PROBE = 4096
"""Draws that the acceptance rate is estimated from."""

_MAX_DRAWS = 1 << 20
"""Draws without a feasible architecture after which several budgets count as impossible together."""

_REPAIR_DRAWS = 64
"""Draws at one number of changed genes before one more gene may change."""


@dataclass(frozen=True, slots=True)
class _Grid:
    """What may be spent, and what choices cost, in whole cells; prices are above each slot's cheapest, rounded down.

    Attributes:
        units: [slots, choices, axes]; a choice that cannot be taken has more than its axis has cells.
        cells: what may be spent on each axis.
    """

    units: Ints
    cells: tuple[int, ...]

    @classmethod
    def of(cls, exists: NDArray[np.bool_], prices: Sequence[Floats], slacks: Sequence[float], cells: int) -> _Grid:
        """One axis of `cells` for each of `prices` [slots, choices], of which `slacks` may be spent.

        Without prices there is one axis without cells, that only says which choices exist.
        """
        never = cells + 1
        units = np.full((*exists.shape, max(1, len(prices))), 0, dtype=np.int64)
        for axis, (above, slack) in enumerate(zip(prices, slacks, strict=True)):
            # A hair less than the price: rounding errors of the sums must not lose an architecture either.
            scaled = np.floor(above * (cells / slack) - 1e-6) if slack > 0 else np.where(above > 0, never, 0)
            units[:, :, axis] = np.clip(np.where(np.isfinite(scaled), scaled, never), 0, never)
        units[~exists] = never
        return cls(units, (cells,) * units.shape[2])

    def near(self, genes: Ints) -> _Grid:
        """With one more axis in front, of the slots that differ from `genes`."""
        differs = np.arange(self.units.shape[1])[None, :] != genes[:, None]
        units = np.concatenate([differs[:, :, None].astype(np.int64), self.units], axis=2)
        return _Grid(units, (len(genes), *self.cells))

    def count(self) -> list[Floats]:
        """For each slot, by what is left to spend, in how many ways the slots from it on can be filled.

        Floats: exact to 2^53 and to 16 digits beyond, far more than the draws need.
        """
        shape = tuple(cells + 1 for cells in self.cells)
        counts = [np.ones(shape)]
        for slot in reversed(range(len(self.units))):
            ways = np.zeros(shape)
            for units in self.units[slot].tolist():
                if all(unit <= cells for unit, cells in zip(units, self.cells, strict=True)):
                    paid = tuple(slice(unit, None) for unit in units)
                    left = tuple(slice(None, size - unit) for unit, size in zip(units, shape, strict=True))
                    ways[paid] += counts[0][left]
            counts.insert(0, ways)
        return counts

    def draw(self, counts: list[Floats], budget: Sequence[int], n: int, rng: np.random.Generator) -> Ints:
        """`n` architectures [n, slots] uniformly from those that cost at most `budget` on every axis."""
        genes = np.zeros((n, len(self.units)), dtype=np.int64)
        left = np.tile(np.asarray(budget, dtype=np.int64), (n, 1))
        for slot, units in enumerate(self.units):
            after = left[:, None, :] - units[None]
            ways = counts[slot + 1][tuple(np.moveaxis(np.maximum(after, 0), 2, 0))]
            genes[:, slot] = _choose(np.where((after >= 0).all(axis=2), ways, 0.0), rng)
            left -= units[genes[:, slot]]
        return genes


class FeasibleSampler:
    """Draws, and repairs, architectures whose upper ends meet all limits.

    Args:
        costs: what is limited; architectures are judged on ``cost.upper``.
        limits: one for each cost, in its unit.
        space: the space's name, for messages.

    Attributes:
        acceptance: share of the draws from the grid that truly meet the limits (1.0: the grid is exact).
        fraction: estimated share of all architectures that meet them.
        count: estimated number of architectures that meet them.

    Raises:
        ClaimError: no architecture meets the limits; it says what the cheapest one costs.
    """

    def __init__(self, costs: Sequence[Cost], limits: Sequence[float], *, space: str = "the space") -> None:
        if not costs or len(costs) != len(limits):
            raise ValueError("one limit for each cost is needed, and at least one cost")
        self._costs, self._limits, self._space = tuple(costs), tuple(limits), space
        tables = [cost.upper.choices for cost in costs]
        if any(np.isnan(table).any() or np.isneginf(table).any() for table in tables):
            raise ValueError("prices must be numbers, or infinite where a slot has no such choice")
        self._exists: NDArray[np.bool_] = np.logical_and.reduce([np.isfinite(table) for table in tables])
        if not self._exists.any(axis=1).all():
            raise ValueError("a slot has no choice at all")
        self._refuse_impossible()
        prices, slacks = self._binding()
        self._grid = _Grid.of(self._exists, prices, slacks, _CELLS[len(prices)])
        self._coarse = _Grid.of(self._exists, prices, slacks, _REPAIR_CELLS[len(prices)])
        self._counts = self._grid.count()
        on_grid = float(self._counts[0][self._grid.cells])
        self.acceptance = self._probe(on_grid)
        self.count = max(1.0, on_grid * self.acceptance)
        self.fraction = self.count / math.prod(int(row.sum()) for row in self._exists)

    # -- judging ------------------------------------------------------------------------------------------------------

    def feasible(self, genes: Genes) -> NDArray[np.bool_]:
        """Which of `genes` [n, slots] meet every limit with their upper ends."""
        meets = np.ones(len(genes), dtype=np.bool_)
        for cost, limit in zip(self._costs, self._limits, strict=True):
            meets &= cost.upper.total(genes) <= limit
        return meets

    # -- drawing ------------------------------------------------------------------------------------------------------

    def sample(self, n: int, rng: np.random.Generator) -> Genes:
        """`n` architectures [n, slots], independently and uniformly from all that meet the limits."""
        found = np.empty((0, len(self._exists)), dtype=np.int64)
        while len(found) < n:
            missing = n - len(found)
            drawn = self._draw(min(_PROBE * 16, math.ceil(missing / self.acceptance) + 8), rng)
            found = np.concatenate([found, drawn[self.feasible(drawn)]])
        return found[:n]

    def repair(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """`genes` [n, slots] with as few genes changed as it takes to meet the limits; what meets them is unchanged.

        Drawn uniformly from the nearest feasible architectures (to within the grid).
        """
        repaired = np.array(genes, dtype=np.int64)
        for row in np.flatnonzero(~self.feasible(repaired)):
            repaired[row] = self._nearest(repaired[row], rng)
        return repaired

    # -- inside -------------------------------------------------------------------------------------------------------

    def _refuse_impossible(self) -> None:
        for cost, limit in zip(self._costs, self._limits, strict=True):
            genes = cost.upper.cheapest()
            upper, predicted = cost.upper.total_of(genes), cost.prices.total_of(genes)
            if not upper <= limit:
                price = format_cost(cost.name, predicted)
                end = f" (upper end {format_cost(cost.name, upper)})" if upper != predicted else ""
                raise ClaimError(
                    f"no architecture of {self._space} meets {cost.name} <= {format_cost(cost.name, limit)}: "
                    f"the cheapest predicted is {price}{end}"
                )

    def _refuse_together(self) -> ClaimError:
        parts = []
        for cost, limit in zip(self._costs, self._limits, strict=True):
            least = format_cost(cost.name, cost.upper.total_of(cost.upper.cheapest()))
            parts.append(f"{cost.name} <= {format_cost(cost.name, limit)} (alone, {least} is possible)")
        return ClaimError(f"no architecture of {self._space} meets these budgets together: {' and '.join(parts)}")

    def _binding(self) -> tuple[list[Floats], list[float]]:
        """Of the costs that can break their limit: prices above the cheapest choice, and what may be spent on them."""
        prices, slacks = [], []
        for cost, limit in zip(self._costs, self._limits, strict=True):
            if cost.upper.total_of(cost.upper.dearest()) <= limit:
                continue
            table = np.where(self._exists, cost.upper.choices, np.inf)
            cheapest = table.min(axis=1, keepdims=True)
            rounding = 1e-12 * (abs(cost.upper.fixed) + float(np.abs(cheapest).sum()))
            slack = limit - cost.upper.fixed - float(cheapest.sum())
            if slack < -rounding:  # the cheapest choices of this cost do not exist for another one
                raise self._refuse_together()
            prices.append(table - cheapest)
            slacks.append(max(0.0, slack) + rounding)
        return prices, slacks

    def _probe(self, on_grid: float) -> float:
        if on_grid == 0:
            raise self._refuse_together()
        rng = np.random.default_rng(0)
        drawn = accepted = 0
        while not accepted and drawn < _MAX_DRAWS:
            accepted += int(self.feasible(self._draw(_PROBE, rng)).sum())
            drawn += _PROBE
        if not accepted:
            raise self._refuse_together()
        return accepted / drawn

    def _draw(self, n: int, rng: np.random.Generator) -> Ints:
        """`n` architectures uniformly from those that meet the limits on the grid."""
        return self._grid.draw(self._counts, self._grid.cells, n, rng)

    def _nearest(self, genes: Ints, rng: np.random.Generator) -> Ints:
        """A feasible architecture that differs from `genes` in as few slots as the coarse grid can tell."""
        grid = self._coarse.near(genes)
        counts = grid.count()
        for changes in range(len(genes) + 1):
            budget = (changes, *self._coarse.cells)
            if counts[0][budget] > 0:
                near = grid.draw(counts, budget, _REPAIR_DRAWS, rng)
                meets = np.flatnonzero(self.feasible(near))
                if len(meets):
                    return np.asarray(near[meets[0]])
        return np.asarray(self.sample(1, rng)[0])


def _choose(weights: Floats, rng: np.random.Generator) -> Ints:
    """For each row of `weights` an index drawn in proportion to them; never one without weight."""
    sums = np.cumsum(weights, axis=1)
    points = rng.random(len(weights)) * sums[:, -1]
    chosen = (sums <= points[:, None]).sum(axis=1)
    # A point that rounding puts on the total itself belongs to the last index with weight.
    last = weights.shape[1] - 1 - np.argmax(weights[:, ::-1] > 0, axis=1)
    return np.asarray(np.minimum(chosen, last), dtype=np.int64)
