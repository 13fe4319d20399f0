"""Nets that need no search, as wide as their limits allow: one width multiplier, or random operators and one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hwnas.budget import at_least
from hwnas.errors import ClaimError
from hwnas.search.atom_projection import Limit
from hwnas.spaces.gated import GateSpace
from hwnas.spaces.widths import STAIRS, Branch, Widths, WidthSpace, multiplied_by, with_number


def multiplied(space: WidthSpace, limits: Sequence[Limit]) -> Widths:
    """The widest net with one multiplier on all branches that meets every limit (by bisection).

    In stairs one multiplier comes in coarse steps: see `_fuller`.

    Raises:
        ClaimError: the least multiplier does not; it says what that net costs.
    """
    stairs = any(limit.cost.in_stairs for limit in limits)

    def at(factor: float) -> Widths:
        rows = multiplied_by(space.full, factor)
        if stairs:
            rows = tuple(
                tuple(max(s for s in space.stairs(block, place) if s <= atoms) for place, atoms in enumerate(row))
                for block, row in enumerate(rows)
            )
        return space.revived(rows, {branch: -branch[1] for branch in space.branches()}, STAIRS[0][1] if stairs else 1)

    low, high = 0.0, 1.0
    if all(limit.met(at(1.0)) for limit in limits):
        return at(1.0)
    for limit in limits:
        if not limit.met(at(0.0)):
            least = at_least(limit.cost.name, limit.cost.upper(at(0.0)))
            raise ClaimError(f"no width multiplier meets the budget for {limit.cost.name}: give {least} or more")
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if all(limit.met(at(middle)) for limit in limits) else (low, middle)
    return _fuller(space, at(low), limits) if stairs else at(low)


def _fuller(space: WidthSpace, widths: Widths, limits: Sequence[Limit]) -> Widths:
    """What is left of the budget goes to the branches that are there, the first ones first, a stair to each."""
    for branch in space.branches():
        now = widths[branch[0]][branch[1]]
        higher = space.next_stair(branch, now)
        if now and higher is not None:
            more = with_number(widths, branch, higher)
            widths = more if all(limit.met(more) for limit in limits) else widths
    return widths


def random_arch(space: GateSpace, limits: Sequence[Limit], seed: int, number: int) -> Widths:
    """The random sub-network `number` of a seed, as wide as the limits allow.

    Raises:
        ClaimError: none that was drawn can meet them.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xF165, number]))
    stairs = any(limit.cost.in_stairs for limit in limits)
    least = STAIRS[0][1] if stairs else 1
    for _, (empty, factor) in zip(range(100), random_widths(space, rng), strict=False):

        def at(scale: float, empty: frozenset[tuple[int, int]] = empty) -> Widths:
            rows = tuple(
                (0 if (number, 0) in empty else min(row[0], max(least, int(scale * row[0]))),)
                for number, row in enumerate(space.full)
            )
            if stairs:
                rows = tuple((max(s for s in space.stairs(n, 0) if s <= row[0]),) for n, row in enumerate(rows))
            return space.revived(rows, {}, least)

        if not limits:
            return at(factor)
        low, high = 0.0, 1.0
        if not all(limit.met(at(low)) for limit in limits):
            continue
        if all(limit.met(at(high)) for limit in limits):
            return at(high)
        for _ in range(16):
            middle = (low + high) / 2
            low, high = (middle, high) if all(limit.met(at(middle)) for limit in limits) else (low, middle)
        return _fuller(space, at(low), limits) if stairs else at(low)
    raise ClaimError(f"none of 100 random nets of {space.name} meets the budget: give a larger one")


def random_widths(space: GateSpace, rng: np.random.Generator) -> Iterator[tuple[frozenset[Branch], float]]:
    """Random sub-networks without end: groups that are empty, and one multiplier from 0.25 to 1 (figure 2, right)."""
    branches = space.branches()
    while True:
        share = rng.uniform(0, 0.5)
        wish = {branch: float(rng.random()) for branch in branches}
        kept = {branch for branch in branches if rng.random() >= share}
        needed = space.survivors({branch: wish[branch] + (10.0 if branch in kept else 0.0) for branch in branches})
        yield frozenset(set(branches) - kept - needed), float(rng.uniform(0.25, 1.0))
