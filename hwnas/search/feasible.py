"""Architectures that meet their budgets, by construction.

The costs are additive over slots. So the architectures within all budgets can be counted by dynamic programming over
what is left of each budget, on a grid, and drawn uniformly by walking through the counts. Prices are rounded DOWN to
the grid, and what a `Walk` adds is left out: no feasible architecture is lost, and the few that only this let in are
rejected by their true upper ends.
The grid spans what is left when every slot takes its cheapest choice, so that it is as fine for a budget that one
architecture in 10^9 meets as for a generous one.

A search with few evaluations should not spend them on nets that leave the budget unused: with `min_use` only
architectures are drawn that use at least that share of it, counted the same way (ways within the budget less ways
within the floor).
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

    def draw(
        self, counts: list[Floats], budget: Sequence[int], below: Sequence[int], n: int, rng: np.random.Generator
    ) -> Ints:
        """`n` architectures [n, slots] uniformly from those within `budget` on every axis but not within `below`."""
        genes = np.zeros((n, len(self.units)), dtype=np.int64)
        left = np.tile(np.asarray(budget, dtype=np.int64), (n, 1))
        low = np.tile(np.asarray(below, dtype=np.int64), (n, 1))
        for slot, units in enumerate(self.units):
            after = counts[slot + 1]
            ways = _ways(after, left[:, None, :] - units[None]) - _ways(after, low[:, None, :] - units[None])
            genes[:, slot] = _choose(np.maximum(ways, 0.0), rng)
            left -= units[genes[:, slot]]
            low -= units[genes[:, slot]]
        return genes


class FeasibleSampler:
    """Draws, and repairs, architectures whose upper ends meet all limits.

    Args:
        costs: what is limited; architectures are judged on ``cost.upper``.
        limits: one for each cost, in its unit.
        space: the space's name, for messages.
        min_use: least share of the first binding limit that what is drawn uses, with its upper end. Where nothing
            does, and where no limit binds, there is no floor.

    Attributes:
        acceptance: share of the draws from the grid that truly meet limits and floor (1.0: the grid is exact).
        fraction: estimated share of all architectures that meet the limits, whatever the floor.
        count: estimated number of architectures that meet the limits, whatever the floor.
        drawn_count: estimated number of architectures that can be drawn: those that meet limits and floor.
        floor: what is drawn costs at least so much of the first binding cost; minus infinity where there is none.

    Raises:
        ClaimError: no architecture meets the limits; it says what the cheapest one costs.
    """

    def __init__(
        self, costs: Sequence[Cost], limits: Sequence[float], *, space: str = "the space", min_use: float = 0.0
    ) -> None:
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
        prices, slacks, binding = self._binding()
        self._grid = _Grid.of(self._exists, prices, slacks, _CELLS[len(prices)])
        self._coarse = _Grid.of(self._exists, prices, slacks, _REPAIR_CELLS[len(prices)])
        self._counts = self._grid.count()
        self.floor, self._floored, self._floor_share = -math.inf, 0, 0.0
        if (on_grid := self._on_grid()) <= 0 or not (accepted := self._probe()):
            raise self._refuse_together()
        self.acceptance = accepted
        self.count = self.drawn_count = max(1.0, on_grid * accepted)
        self.fraction = self.count / math.prod(int(row.sum()) for row in self._exists)
        if binding and min_use > 0 and limits[binding[0]] > 0:  # of less than nothing there is no share
            self._set_floor(binding[0], min_use * limits[binding[0]], slacks[0])
        if self.floor > -math.inf:
            if (on_grid := self._on_grid()) > 0 and (accepted := self._probe()):
                self.acceptance = accepted
                self.drawn_count = min(self.count, max(1.0, on_grid * accepted))
            else:
                self.floor, self._floor_share = -math.inf, 0.0

    # -- judging ------------------------------------------------------------------------------------------------------

    def feasible(self, genes: Genes) -> NDArray[np.bool_]:
        """Which of `genes` [n, slots] meet every limit with their upper ends."""
        meets = np.ones(len(genes), dtype=np.bool_)
        for cost, limit in zip(self._costs, self._limits, strict=True):
            meets &= cost.upper.total(genes) <= limit
        return meets

    def admissible(self, genes: Genes) -> NDArray[np.bool_]:
        """Which of `genes` [n, slots] meet every limit and reach the floor."""
        meets = self.feasible(genes)
        if self.floor > -math.inf:
            meets &= self._costs[self._floored].upper.total(genes) >= self.floor
        return meets

    # -- drawing ------------------------------------------------------------------------------------------------------

    def sample(self, n: int, rng: np.random.Generator) -> Genes:
        """`n` architectures [n, slots], independently and uniformly from all that meet the limits and the floor."""
        found = np.empty((0, len(self._exists)), dtype=np.int64)
        while len(found) < n:
            missing = n - len(found)
            drawn = self._draw(min(_PROBE * 16, math.ceil(missing / self.acceptance) + 8), rng)
            found = np.concatenate([found, drawn[self.admissible(drawn)]])
        return found[:n]

    def repair(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """`genes` [n, slots] with as few genes changed as it takes to meet limits and floor; what does is unchanged.

        Drawn uniformly from the nearest feasible architectures (to within the grid).
        """
        repaired = np.array(genes, dtype=np.int64)
        for row in np.flatnonzero(~self.admissible(repaired)):
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

    def _set_floor(self, cost: int, floor: float, slack: float) -> None:
        """Notes the floor, and the share of the first axis's slack that every admissible architecture spends."""
        cheapest = self._limits[cost] - slack
        if floor > cheapest:
            walk = self._costs[cost].upper.walk  # what the grid does not see: it counts least prices
            unseen = walk.most if walk is not None else 0.0
            self.floor, self._floored, self._floor_share = floor, cost, (floor - unseen - cheapest) / slack

    def _below(self, grid: _Grid) -> tuple[int, ...]:
        """Budgets of what is surely under the floor on `grid`; rounding down takes up to a cell from each slot."""
        if self.floor == -math.inf:
            return (-1,) * len(grid.cells)
        return (math.floor(self._floor_share * grid.cells[0]) - len(self._exists) - 1, *grid.cells[1:])

    def _on_grid(self) -> float:
        """Architectures between floor and limits, as the grid sees it."""
        grid = self._grid
        return float(_ways(self._counts[0], np.array(grid.cells)) - _ways(self._counts[0], np.array(self._below(grid))))

    def _binding(self) -> tuple[list[Floats], list[float], list[int]]:
        """Of the costs that can break their limit: prices above the cheapest choice, what may be spent, which it is."""
        prices, slacks, binding = [], [], []
        for index, (cost, limit) in enumerate(zip(self._costs, self._limits, strict=True)):
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
            binding.append(index)
        return prices, slacks, binding

    def _probe(self) -> float:
        """Share of the draws from the grid that are admissible; 0.0 where none was found."""
        rng = np.random.default_rng(0)
        drawn = accepted = 0
        while not accepted and drawn < _MAX_DRAWS:
            accepted += int(self.admissible(self._draw(_PROBE, rng)).sum())
            drawn += _PROBE
        return accepted / drawn

    def _draw(self, n: int, rng: np.random.Generator) -> Ints:
        """`n` architectures uniformly from those that meet limits and floor on the grid."""
        return self._grid.draw(self._counts, self._grid.cells, self._below(self._grid), n, rng)

    def _nearest(self, genes: Ints, rng: np.random.Generator) -> Ints:
        """A feasible architecture that differs from `genes` in as few slots as the coarse grid can tell."""
        grid = self._coarse.near(genes)
        counts = grid.count()
        for changes in range(len(genes) + 1):
            budget, below = (changes, *self._coarse.cells), (changes, *self._below(self._coarse))
            if _ways(counts[0], np.array(budget)) > _ways(counts[0], np.array(below)):
                near = grid.draw(counts, budget, below, _REPAIR_DRAWS, rng)
                meets = np.flatnonzero(self.admissible(near))
                if len(meets):
                    return np.asarray(near[meets[0]])
        return np.asarray(self.sample(1, rng)[0])


def _ways(counts: Floats, left: Ints) -> Floats:
    """Entries of `counts` at `left` [..., axes]; where an axis is overspent there is no way."""
    ways = counts[tuple(np.moveaxis(np.maximum(left, 0), -1, 0))]
    return np.where((left >= 0).all(axis=-1), ways, 0.0)


def _choose(weights: Floats, rng: np.random.Generator) -> Ints:
    """For each row of `weights` an index drawn in proportion to them; never one without weight."""
    sums = np.cumsum(weights, axis=1)
    points = rng.random(len(weights)) * sums[:, -1]
    chosen = (sums <= points[:, None]).sum(axis=1)
    # A point that rounding puts on the total itself belongs to the last index with weight.
    last = weights.shape[1] - 1 - np.argmax(weights[:, ::-1] > 0, axis=1)
    return np.asarray(np.minimum(chosen, last), dtype=np.int64)
