"""From a net near its budget onto it, exactly: the atoms with the least importance for what they cost go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.atom_costs import AtomCost, Branch, LatencyCost
from hwnas.spaces.atoms import AtomArch, AtomSpace, Widths

STEPS_DOWN = 6
"""Stairs that one removal may go down: some are flat."""

Importance = Mapping[Branch, NDArray[np.float64]]
"""For each branch the absolute importance factors of its atoms."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A cost that must not exceed `most`."""

    cost: AtomCost
    most: float

    def met(self, widths: Widths) -> bool:
        """Whether the upper end is within the limit."""
        return self.cost.upper(widths) <= self.most


@dataclass(frozen=True, slots=True)
class Projected:
    """What a projection decided.

    Attributes:
        keep: for each branch the number of atoms that stay: its most important ones.
        widths: of the deployed net: with costs in stairs, branches are filled up to theirs.
        met: every limit is.
    """

    keep: dict[Branch, int]
    widths: Widths
    met: bool


def project(space: AtomSpace, importance: Importance, limits: Sequence[Limit], equal: bool = False) -> Projected:
    """Removes atoms until every upper end is within its limit; as few as that takes, in order of importance per cost.

    Args:
        space: of the net.
        importance: of the net's atoms; a branch that is not there has none.
        limits: at least one.
        equal: atoms go by importance alone, as if all cost the same (the paper's baseline).
    """
    state = _State(space, importance)
    while broken := next((limit for limit in limits if not limit.met(state.widths())), None):
        best = min(state.removals(broken.cost, equal), default=None)
        if best is None:
            return Projected(state.keep, state.widths(), False)
        _, branch, left = best
        state.keep[branch] = left
    widths = state.widths()
    if any(limit.cost.in_stairs for limit in limits):
        widths = _filled(space, widths, limits)
    return Projected(dict(state.keep), widths, True)


class _State:
    """A net being projected: of each branch the most important atoms are kept."""

    def __init__(self, space: AtomSpace, importance: Importance) -> None:
        self.space = space
        rising = {branch: np.sort(np.abs(importance.get(branch, np.zeros(0)))) for branch in space.branches()}
        self.keep = {branch: len(values) for branch, values in rising.items()}
        self._full = dict(self.keep)
        self._sums = {branch: np.concatenate([[0.0], np.cumsum(values)]) for branch, values in rising.items()}

    def widths(self) -> Widths:
        return tuple(
            tuple(self.keep[block, place] for place in range(len(spec.kernels)))
            for block, spec in enumerate(self.space.blocks)
        )

    def removals(self, cost: AtomCost, equal: bool) -> list[tuple[float, Branch, int]]:
        """(importance lost per cost, branch, atoms left) of everything that could go next."""
        found = []
        per_atom = cost.per_atom(self.widths()) if not isinstance(cost, LatencyCost) else {}
        for branch, atoms in self.keep.items():
            for left in self._fewer(branch, atoms, cost):
                lost = self._lost(branch, atoms, left)
                if equal:
                    worth = float(atoms - left)
                elif isinstance(cost, LatencyCost):
                    worth = cost.saved(branch, self._stair(branch, atoms), left)
                else:
                    worth = (atoms - left) * per_atom[branch]
                found.append((lost / worth, branch, left))
        return found

    def _fewer(self, branch: Branch, atoms: int, cost: AtomCost) -> list[int]:
        """Numbers of atoms that a branch may go down to in one removal."""
        if not atoms:
            return []
        if cost.in_stairs:
            below = [stair for stair in self.space.stairs(*branch) if stair < atoms]
            options = below[-STEPS_DOWN:]
        else:
            options = [atoms - 1]
        if not options or options[0] == 0:
            spec = self.space.blocks[branch[0]]
            others = any(self.keep[branch[0], place] for place in range(len(spec.kernels)) if place != branch[1])
            options = [left for left in options if left or spec.residual or others]
        return options

    def _stair(self, branch: Branch, atoms: int) -> int:
        return min(stair for stair in self.space.stairs(*branch) if stair >= atoms)

    def _lost(self, branch: Branch, atoms: int, left: int) -> float:
        """Importance of the atoms that go: the least important of those that are there."""
        sums, gone = self._sums[branch], self._full[branch] - atoms
        return float(sums[self._full[branch] - left] - sums[gone])


def _filled(space: AtomSpace, widths: Widths, limits: Sequence[Limit]) -> Widths:
    """Every branch filled up to its stair, and on to the next one where that costs nothing."""
    now = space.aligned(AtomArch(space.name, widths)).widths
    if not all(limit.met(now) for limit in limits):
        return widths  # another limit counts atoms one by one
    for block, place in space.branches():
        atoms = now[block][place]
        higher = [stair for stair in space.stairs(block, place) if stair > atoms]
        if not atoms or not higher:
            continue
        row = (*now[block][:place], higher[0], *now[block][place + 1 :])
        more = (*now[:block], row, *now[block + 1 :])
        timed = [limit for limit in limits if limit.cost.in_stairs]
        free = all(limit.cost.total(more) <= limit.cost.total(now) for limit in timed)
        if free and all(limit.met(more) for limit in limits):
            now = more
    return now
