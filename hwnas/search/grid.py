"""Counting and drawing architectures by what they spend, on a grid.

Every cost is additive over the slots, where a `Walk` also depends on the state that the slots before leave. So an
architecture is a path over (slot, state), and those within all budgets are counted by dynamic programming over (slot,
state, what is left of each budget).

What a choice spends is how much dearer it makes the cheapest completion (its price, and the cheapest way on from the
state that it leaves, less the cheapest way on from where it was taken). These never are negative and add up to what an
architecture costs above the cheapest one. So the grid spans what is left above the cheapest architecture, as fine for
a budget that one architecture in 10^9 meets as for a generous one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.costs import Prices

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class States:
    """The states that the slots' walks can be in together.

    Attributes:
        after: [slots, states, choices], the state that each choice leaves. All start in state 0.
        single: [states, costs], the state of each cost's own walk.
    """

    after: Ints
    single: Ints

    @classmethod
    def of(cls, costs: Sequence[Prices], exists: Bools) -> States:
        """Of prices that are walked side by side; only what can be reached by choices that exist [slots, choices]."""
        start: tuple[int, ...] = (0,) * len(costs)
        numbers = {start: 0}
        steps: list[dict[tuple[int, int], int]] = []
        reached = {start}
        for slot, row in enumerate(exists):
            step = {}
            following: set[tuple[int, ...]] = set()
            for joint in sorted(reached):
                allowed = row.copy()
                for cost, single in zip(costs, joint, strict=True):
                    if cost.walk is not None:
                        allowed &= np.isfinite(cost.walk.extra[slot, single])
                for choice in np.flatnonzero(allowed).tolist():
                    end: tuple[int, ...] = tuple(
                        int(cost.walk.after[slot, single, choice]) if cost.walk is not None else 0
                        for cost, single in zip(costs, joint, strict=True)
                    )
                    step[numbers[joint], choice] = numbers.setdefault(end, len(numbers))
                    following.add(end)
            steps.append(step)
            reached = following
        after = np.zeros((len(exists), len(numbers), exists.shape[1]), dtype=np.int64)
        for slot, step in enumerate(steps):
            for (state, choice), number in step.items():
                after[slot, state, choice] = number
        return cls(after, np.array(list(numbers), dtype=np.int64).reshape(len(numbers), len(costs)))


@dataclass(frozen=True, slots=True)
class Spending:
    """What choices spend of one budget.

    Attributes:
        above: [slots, states, choices], never negative; infinite for a choice that does not exist, or not in that
            state, or after which no other one does.
        slack: the budget less what the cheapest architecture costs; never negative.
    """

    above: Floats
    slack: float

    @classmethod
    def of(cls, prices: Prices, limit: float, exists: Bools, states: States, cost: int) -> Spending | None:
        """Of the prices of `states`' cost number `cost`; None where no architecture of what exists meets `limit`."""
        table = np.where(exists, prices.choices, np.inf)[:, None, :]
        walk, single = prices.walk, states.single[:, cost]
        table = np.repeat(table, len(single), axis=1) if walk is None else table + walk.extra[:, single]
        ahead = np.zeros(len(single)) if walk is None else walk.tail[single]
        rounding = abs(limit) + abs(prices.fixed) + float(np.abs(ahead).max())
        above = np.empty_like(table)
        for slot in reversed(range(len(table))):
            whole = table[slot] + ahead[states.after[slot]]
            ahead = whole.min(axis=1)
            above[slot] = np.subtract(whole, ahead[:, None], out=np.full_like(whole, np.inf), where=np.isfinite(whole))
            least = table[slot].min(axis=1)
            rounding += float(np.abs(least[np.isfinite(least)]).max(initial=0.0))
        rounding *= 1e-12
        slack = limit - prices.fixed - float(ahead[0])
        return None if slack < -rounding else cls(above, max(0.0, slack) + rounding)


@dataclass(frozen=True, slots=True)
class Grid:
    """What may be spent, and what choices spend, in whole cells.

    Attributes:
        units: [slots, states, choices, axes]; a choice that cannot be taken has more than its axis has cells.
        after: [slots, states, choices], the state that each choice leaves.
        cells: what may be spent on each axis.
    """

    units: Ints
    after: Ints
    cells: tuple[int, ...]

    @classmethod
    def of(cls, exists: Bools, states: States, budgets: Sequence[Spending], cells: int) -> Grid:
        """One axis of `cells` for each of `budgets`; what is spent is rounded DOWN, so that nothing feasible is lost.

        Without budgets there is one axis without cells, that only says which choices exist.
        """
        never = cells + 1
        units = np.zeros((*states.after.shape, max(1, len(budgets))), dtype=np.int64)
        for axis, budget in enumerate(budgets):
            with np.errstate(divide="ignore", over="ignore"):  # nothing may be left: then all that costs is too dear
                share = np.divide(budget.above, budget.slack, out=np.zeros_like(budget.above), where=budget.above > 0)
                # A hair less than the price: rounding errors of the sums must not lose an architecture either.
                units[..., axis] = np.clip(np.floor(share * cells - 1e-6), 0, never)
        units[np.broadcast_to(~exists[:, None, :], states.after.shape)] = never
        return cls(units, states.after, (cells,) * units.shape[3])

    def near(self, genes: Ints) -> Grid:
        """With one more axis in front, of the slots that differ from `genes`."""
        differs = np.arange(self.units.shape[2])[None, :] != genes[:, None]
        front = np.broadcast_to(differs[:, None, :, None], (*self.units.shape[:3], 1)).astype(np.int64)
        return Grid(np.concatenate([front, self.units], axis=3), self.after, (len(genes), *self.cells))

    def count(self) -> list[Floats]:
        """For each slot [states, left on each axis]: in how many ways the slots from it on can be filled.

        Floats: exact to 2^53 and to 16 digits beyond, far more than the draws need.
        """
        shape = tuple(cells + 1 for cells in self.cells)
        counts = [np.ones((self.units.shape[1], *shape))]
        for rows, ends in zip(self.units[::-1], self.after[::-1], strict=True):
            ways = np.zeros_like(counts[0])
            for state, (row, row_ends) in enumerate(zip(rows.tolist(), ends.tolist(), strict=True)):
                for units, end in zip(row, row_ends, strict=True):
                    if all(unit <= cells for unit, cells in zip(units, self.cells, strict=True)):
                        paid = tuple(slice(unit, None) for unit in units)
                        left = tuple(slice(None, size - unit) for unit, size in zip(units, shape, strict=True))
                        ways[state][paid] += counts[0][end][left]
            counts.insert(0, ways)
        return counts

    def band(self, counts: Sequence[Floats], below: Sequence[int]) -> list[Floats]:
        """Of `counts`, the ways that spend more than `below` of all that `cells` has; all where that is negative."""
        if min(below) < 0:
            return list(counts)
        apart = [cells - spent for cells, spent in zip(self.cells, below, strict=True)]  # the same after every choice
        high = (slice(None), *(slice(lag, None) for lag in apart))
        low = (slice(None), *(slice(None, cells + 1 - lag) for cells, lag in zip(self.cells, apart, strict=True)))
        found = []
        for ways in counts:
            between = ways.copy()
            between[high] = np.maximum(ways[high] - ways[low], 0.0)
            found.append(between)
        return found

    def within(self, counts: Sequence[Floats], budget: Sequence[int]) -> float:
        """In how many ways all slots can be filled within `budget`."""
        return float(counts[0][(0, *budget)])

    def draw(self, counts: Sequence[Floats], budget: Sequence[int], n: int, rng: np.random.Generator) -> Ints:
        """`n` architectures [n, slots] uniformly from those that `counts` has within `budget` on every axis."""
        genes = np.zeros((n, len(self.units)), dtype=np.int64)
        state = np.zeros(n, dtype=np.int64)
        left = np.repeat(np.asarray(budget, dtype=np.int64)[:, None], n, axis=1)
        several = self.units.shape[1] > 1
        for slot, (units, after) in enumerate(zip(self.units, self.after, strict=True)):
            # [choices, n] or [choices, 1], and [axes, choices, n] or [axes, choices, 1]
            following = after[state].T if several else after[0][:, None]
            paid = np.moveaxis(units[state] if several else units, -1, 0).swapaxes(1, 2)
            chosen = _choose(_ways(counts[slot + 1], following, left, paid), rng)
            genes[:, slot] = chosen
            left -= units[state, chosen].T
            state = after[state, chosen]
        return genes


def every_within(states: States, budgets: Sequence[Spending], most: int) -> Ints | None:
    """All architectures [n, slots] within `budgets`, to rounding, one after the other.

    `budgets` are one or more. None where that leads over more than `most` beginnings at a time. With one budget every
    beginning has an end that meets it.
    """
    genes = np.zeros((1, 0), dtype=np.int64)
    state = np.zeros(1, dtype=np.int64)
    left = np.array([[budget.slack for budget in budgets]])
    prices = np.stack([budget.above for budget in budgets], axis=-1)
    for above, after in zip(prices, states.after, strict=True):
        row, choice = np.nonzero((above[state] <= left[:, None, :]).all(axis=2))
        if len(row) > most:
            return None
        left = left[row] - above[state[row], choice]
        genes = np.concatenate([genes[row], choice[:, None]], axis=1)
        state = after[state[row], choice]
    return genes


def _ways(counts: Floats, state: Ints, left: Ints, paid: Ints) -> Floats:
    """Entries [choices, n] of `counts` [states, left...] where `paid` [axes, choices, n] is spent of `left` [axes, n].

    Where an axis is overspent there is no way.
    """
    place = np.broadcast_to(state, (paid.shape[1], left.shape[1]))
    solvent = np.ones(place.shape, dtype=np.bool_)
    for cells, have, spent in zip(counts.shape[1:], left, paid, strict=True):
        after = have - spent
        solvent &= after >= 0
        place = place * cells + after
    return np.where(solvent, counts.take(place, mode="clip"), 0.0)


def _choose(weights: Floats, rng: np.random.Generator) -> Ints:
    """For each column of `weights` [choices, n] an index drawn in proportion to them; never one without weight."""
    sums = np.cumsum(weights, axis=0)
    points = rng.random(weights.shape[1]) * sums[-1]
    np.minimum(points, np.nextafter(sums[-1], 0), out=points)  # rounding may put a point on the total itself
    return np.asarray(np.minimum((sums <= points).sum(axis=0), len(weights) - 1), dtype=np.int64)
