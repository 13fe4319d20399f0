"""What to change where budgets contradict each other: the least that each could be with the others kept.

The least value of one cost under limits on the others is found by dynamic programming over what is left of those, on a
grid. Prices are rounded UP there and what a `Walk` adds is taken at its most, so that the architecture found truly
meets the others; it costs what it costs, at most a little more than the best one would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.budget import at_least, format_cost
from hwnas.costs import Cost
from hwnas.errors import ClaimError

Floats = NDArray[np.float64]

_CELLS = {1: 1 << 12, 2: 1 << 8, 3: 48}
"""Cells along each of the other budgets, by how many there are."""


def contradiction(costs: Sequence[Cost], limits: Sequence[float], space: str) -> ClaimError | None:
    """The refusal of budgets that can be met one by one and not together; None where one cannot be met at all.

    It names the budget that has to give way least, and what each would have to be.
    """
    if len(costs) < 2 or any(
        cost.upper.total_of(cost.upper.cheapest()) > limit for cost, limit in zip(costs, limits, strict=True)
    ):
        return None
    needed: list[tuple[float, str]] = []
    for index, (cost, limit) in enumerate(zip(costs, limits, strict=True)):
        others = [place for place in range(len(costs)) if place != index]
        genes = least_within(cost, [costs[place] for place in others], [limits[place] for place in others])
        if genes is not None:
            value = cost.upper.total_of(genes)
            needed.append((value / limit, f"{cost.name} <= {at_least(cost.name, value)}"))
    together = " and ".join(
        f"{cost.name} <= {format_cost(cost.name, limit)}" for cost, limit in zip(costs, limits, strict=True)
    )
    advice = "each alone can be met"
    if needed:
        needed.sort()
        binding, *rest = [text for _, text in needed]
        advice = f"the nearest that can be met is {binding} with the others kept" + "".join(f", or {r}" for r in rest)
    return ClaimError(f"no architecture of {space} meets {together} together: {advice}")


def least_within(cost: Cost, others: Sequence[Cost], limits: Sequence[float]) -> tuple[int, ...] | None:
    """Genes of (nearly) the cheapest architecture by `cost` that meets the `limits` of `others`, at their upper ends.

    None where the grid sees none.
    """
    cells = _CELLS[len(others)]
    shape = (cells + 1,) * len(others)
    exists = np.logical_and.reduce([np.isfinite(one.upper.choices) for one in (cost, *others)])
    units = np.stack([_units(one, limit, exists, cells) for one, limit in zip(others, limits, strict=True)], axis=-1)
    prices = _most(cost)
    best: Floats = np.zeros(shape)
    taken: list[NDArray[np.int16]] = []
    for slot in reversed(range(len(prices))):
        cheapest: Floats = np.full(shape, np.inf)
        chosen = np.full(shape, -1, dtype=np.int16)
        for choice in np.flatnonzero(exists[slot]).tolist():
            spent = units[slot, choice].tolist()
            if any(unit > cells for unit in spent):
                continue
            paid = tuple(slice(unit, None) for unit in spent)
            total = prices[slot, choice] + best[tuple(slice(None, cells + 1 - unit) for unit in spent)]
            better = total < cheapest[paid]
            cheapest[paid][better] = total[better]
            chosen[paid][better] = choice
        best = cheapest
        taken.insert(0, chosen)
    if not np.isfinite(best[(cells,) * len(others)]):
        return None
    left, genes = [cells] * len(others), []
    for slot, chosen in enumerate(taken):
        genes.append(int(chosen[tuple(left)]))
        left = [have - unit for have, unit in zip(left, units[slot, genes[-1]].tolist(), strict=True)]
    return tuple(genes)


def _most(cost: Cost) -> Floats:
    """Prices [slots, choices] with what a walk may add."""
    walk = cost.upper.walk
    table = cost.upper.choices
    return table if walk is None else table + walk.extra.max(axis=1)


def _units(cost: Cost, limit: float, exists: NDArray[np.bool_], cells: int) -> NDArray[np.int64]:
    """Prices above each slot's cheapest in cells of what may be spent, rounded up; one cell too many is never met."""
    table = np.where(exists, _most(cost), np.inf)
    cheapest = table.min(axis=1, keepdims=True)
    tail = float(cost.upper.walk.tail.max()) if cost.upper.walk is not None else 0.0
    slack = cost.upper.sum_at(limit) - cost.upper.fixed - tail - float(cheapest.sum())
    if slack <= 0:
        return np.where(table <= cheapest, 0 if slack == 0 else cells + 1, cells + 1).astype(np.int64)
    scaled = np.ceil((table - cheapest) * (cells / slack))
    return np.where(np.isfinite(scaled), np.minimum(scaled, cells + 1), cells + 1).astype(np.int64)
