"""Architectures that meet their budgets, by construction.

The costs are additive over slots, or over the states that slots leave. So the architectures within all budgets can be
counted on a grid (`hwnas.search.grid`) and drawn uniformly by walking through the counts. Prices are rounded DOWN to
the grid: no feasible architecture is lost, and the few that only this let in are rejected by their true upper ends.
Where they are not few, or little is feasible at all, that is listed one by one.

A search with few evaluations should not spend them on nets that leave the budget unused: with `min_use` only
architectures are drawn that use at least that share of it, counted the same way (ways within the budget less ways
within the floor).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.budget import at_least, format_cost
from hwnas.costs import Cost, Genes
from hwnas.errors import ClaimError
from hwnas.search.grid import Grid, Ints, Spending, States, every_within

_CELLS = {0: 0, 1: 1 << 14, 2: 512, 3: 64, 4: 24}
"""Cells of the grid along each budget, by how many budgets bind: 330,000 places at most, a fraction of a second."""

_REPAIR_CELLS = {0: 0, 1: 1 << 10, 2: 48, 3: 16, 4: 8}
"""The same for repairs, which count anew for every architecture."""

_RARE, _FEW = 0.02, 256
"""Acceptance below which, and count on the grid up to which, it is tried to list what is feasible."""

_MOST = 1 << 16
"""Architectures that are listed at most."""

_PROBE = 4096
"""Draws that the acceptance rate is estimated from."""

_MAX_DRAWS = 1 << 20
"""Draws without a feasible architecture after which several budgets count as impossible together."""

_REPAIR_DRAWS = 64
"""Draws at one number of changed genes before one more gene may change."""


class FeasibleSampler:
    """Draws, and repairs, architectures whose upper ends meet all limits.

    Args:
        costs: what is limited; architectures are judged on ``cost.upper``.
        limits: one for each cost, in its unit.
        space: the space's name, for messages.
        min_use: least share of the first binding limit that what is drawn uses, with its upper end. Where nothing
            does, and where no limit binds, there is no floor.

    Attributes:
        acceptance: share of the draws that truly meet limits and floor (1.0: the grid is exact, or they are listed).
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
        binding, choosy = self._binding()
        counted = binding + choosy
        walked = [self._costs[index].upper for index in counted]
        self._states = States.of(walked, self._exists)
        self._spending = self._spend(counted)
        self._grid, self._coarse = (
            Grid.of(self._exists, self._states, self._spending, max(1, round(cells[len(counted)] / self._thinner())))
            for cells in (_CELLS, _REPAIR_CELLS)
        )
        self._counts = self._banded = self._grid.count()
        self._listed: Ints | None = None
        self.floor, self._floored, self._floor_share = -math.inf, 0, 0.0
        self.acceptance, self.count = self._known()
        if not self.count:
            raise self._refuse_together()
        self.drawn_count = self.count
        self.fraction = self.count / math.prod(int(row.sum()) for row in self._exists)
        if binding and min_use > 0:
            self._set_floor(binding[0], min_use * limits[binding[0]])

    # -- judging ------------------------------------------------------------------------------------------------------

    def feasible(self, genes: Genes) -> NDArray[np.bool_]:
        """Which of `genes` [n, slots] meet every limit with their upper ends."""
        meets = np.ones(len(genes), dtype=np.bool_)
        for cost, limit in zip(self._costs, self._limits, strict=True):
            meets &= cost.upper.total(genes) <= min(limit, sys.float_info.max)  # a choice that does not exist is inf
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
        if self._listed is not None:
            return self._listed[rng.integers(len(self._listed), size=n)]
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
                    f"the cheapest predicted is {price}{end}, so give {at_least(cost.name, upper)} or more"
                )

    def _refuse_together(self) -> ClaimError:
        parts = []
        for cost, limit in zip(self._costs, self._limits, strict=True):
            least = format_cost(cost.name, cost.upper.total_of(cost.upper.cheapest()))
            parts.append(f"{cost.name} <= {format_cost(cost.name, limit)} (alone, {least} is possible)")
        return ClaimError(f"no architecture of {self._space} meets these budgets together: {' and '.join(parts)}")

    def _binding(self) -> tuple[list[int], list[int]]:
        """The costs that can break their limit, and others whose states do not allow every choice."""
        binding, choosy = [], []
        for index, cost in enumerate(self._costs):
            walk = cost.upper.walk
            if not cost.upper.total_of(cost.upper.dearest()) <= self._limits[index]:
                binding.append(index)
            elif walk is not None and np.isinf(walk.extra).any():
                choosy.append(index)
        return binding, choosy

    def _spend(self, counted: Sequence[int]) -> list[Spending]:
        """What choices spend of the budgets that are counted."""
        found = []
        for place, index in enumerate(counted):
            prices = self._costs[index].upper
            limit = prices.sum_at(min(self._limits[index], prices.total_of(prices.dearest())))
            spending = Spending.of(prices, limit, self._exists, self._states, place)
            if spending is None:  # the cheapest choices of this cost do not exist for another one
                raise self._refuse_together()
            found.append(spending)
        return found

    def _thinner(self) -> float:
        """By how much the cells of each axis are fewer, where several budgets and states make many places."""
        axes = len(self._spending)
        return float(len(self._states.single) ** (1 / axes)) if axes > 1 else 1.0

    def _known(self) -> tuple[float, float]:
        """(acceptance, estimated count) of what meets limits and floor; (0.0, 0.0) where nothing was found."""
        if self._listed is not None:
            return 1.0, float(self.admissible(self._listed).sum())
        grid = self._grid
        self._banded = grid.band(self._counts, self._below(grid))
        on_grid = grid.within(self._banded, grid.cells)
        accepted = self._probe(_PROBE) if on_grid > 0 else 0.0
        if self._spending and (accepted < _RARE or on_grid <= _FEW) and self.floor == -math.inf:
            every = every_within(self._states, self._spending, _MOST)
            if every is not None:
                self._listed = every[self.feasible(every)]
                return 1.0, float(len(self._listed))
        if on_grid > 0 and not accepted:
            accepted = self._probe(_MAX_DRAWS)
        return accepted, max(1.0, on_grid * accepted) if accepted else 0.0

    def _set_floor(self, cost: int, floor: float) -> None:
        """Notes the floor, unless everything reaches it or nothing does."""
        prices, slack = self._costs[cost].upper, self._spending[0].slack
        limit, least = prices.sum_at(self._limits[cost]), prices.sum_at(floor)
        cheapest = limit - slack
        if not cheapest < least <= limit:  # a share of a limit below zero lies above it
            return
        # the share of the first axis's slack that every admissible architecture spends
        self.floor, self._floored, self._floor_share = floor, cost, (least - cheapest) / slack
        accepted, count = self._known()
        if not count:
            self.floor, self._floor_share, self._banded = -math.inf, 0.0, self._counts
            return
        self.acceptance, self.drawn_count = accepted, min(self.count, count)
        if self._listed is not None:
            self._listed = self._listed[self.admissible(self._listed)]

    def _below(self, grid: Grid) -> tuple[int, ...]:
        """Budgets of what is surely under the floor on `grid`; rounding down takes up to a cell from each slot."""
        if self.floor == -math.inf:
            return (-1,) * len(grid.cells)
        return (math.floor(self._floor_share * grid.cells[0]) - len(self._exists) - 1, *grid.cells[1:])

    def _probe(self, most: int) -> float:
        """Share of the draws from the grid that are admissible; 0.0 where none of `most` was."""
        rng = np.random.default_rng(0)
        drawn = accepted = 0
        while not accepted and drawn < most:
            accepted += int(self.admissible(self._draw(_PROBE, rng)).sum())
            drawn += _PROBE
        return accepted / drawn

    def _draw(self, n: int, rng: np.random.Generator) -> Ints:
        """`n` architectures uniformly from those that meet limits and floor on the grid."""
        return self._grid.draw(self._banded, self._grid.cells, n, rng)

    def _nearest(self, genes: Ints, rng: np.random.Generator) -> Ints:
        """A feasible architecture that differs from `genes` in as few slots as the coarse grid can tell."""
        if self._listed is not None:
            differing = (self._listed != genes).sum(axis=1)
            return np.asarray(self._listed[rng.choice(np.flatnonzero(differing == differing.min()))])
        grid = self._coarse.near(genes)
        counts = grid.band(grid.count(), (len(genes), *self._below(self._coarse)))
        for changes in range(len(genes) + 1):
            budget = (changes, *self._coarse.cells)
            if grid.within(counts, budget) > 0:
                near = grid.draw(counts, budget, _REPAIR_DRAWS, rng)
                meets = np.flatnonzero(self.admissible(near))
                if len(meets):
                    return np.asarray(near[meets[0]])
        return np.asarray(self.sample(1, rng)[0])
