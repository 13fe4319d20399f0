"""From a net near its budget onto it, exactly: the atoms with the least importance for what they cost go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.atom_costs import AtomCost
from hwnas.spaces.widths import AtomArch, Branch, Widths, WidthSpace, with_number

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

    def excess(self, estimate: float, near: Widths | None = None) -> float:
        """What a net that costs about `estimate` costs above the limit, as a share of what the supernet does.

        By how much an upper end exceeds an estimate (stairs that are not full are part of it) is taken from the net
        `near`, or from the supernet.
        """
        full = self.cost.space.full
        if near is None:
            margin = self.cost.upper(full) / self.cost.total(full)
        else:
            margin = self.cost.upper(near) / max(1e-12, self.cost.estimate(near))
        whole = self.cost.upper(full) - self.most
        return (margin * estimate - self.most) / whole if whole > 0 else 0.0


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


def project(space: WidthSpace, importance: Importance, limits: Sequence[Limit], equal: bool = False) -> Projected:
    """Removes atoms until every upper end is within its limit; as few as that takes, in order of importance per cost.

    With a limit in stairs, branches go down stair by stair, and all limits are judged on the net filled up to them;
    what still fits when they are met is taken back.

    Args:
        space: of the net.
        importance: of the net's atoms; a branch that is not there has none.
        limits: at least one.
        equal: atoms go by importance alone, as if all cost the same (the paper's baseline).
    """
    stairs = any(limit.cost.in_stairs for limit in limits)
    state = _State(space, importance, stairs)
    while broken := next((limit for limit in limits if not limit.met(state.widths())), None):
        gone = state.remove_stairs(broken.cost, equal) if stairs else state.remove_one_by_one(broken, equal)
        if not gone:
            return Projected(state.keep, state.widths(), False)
    if stairs:
        state.take_back(limits, equal)
    return Projected(dict(state.keep), _on(space, state.widths(), limits), True)


class _State:
    """A net being projected: of each branch the most important atoms are kept."""

    def __init__(self, space: WidthSpace, importance: Importance, stairs: bool) -> None:
        self.space, self.stairs = space, stairs
        self.rising = {branch: np.sort(np.abs(importance.get(branch, np.zeros(0)))) for branch in space.branches()}
        self.keep = {branch: len(values) for branch, values in self.rising.items()}
        self._full = dict(self.keep)
        self._sums = {branch: np.concatenate([[0.0], np.cumsum(values)]) for branch, values in self.rising.items()}

    def widths(self) -> Widths:
        """Of the deployed net."""
        kept = tuple(
            tuple(self.keep[block, place] for place in range(len(row))) for block, row in enumerate(self.space.full)
        )
        return self.space.aligned(AtomArch(self.space.name, kept)).widths if self.stairs else kept

    def remove_stairs(self, cost: AtomCost, equal: bool) -> bool:
        """Removes the least worthy atoms by some stairs of one branch; False where nothing is left to go."""
        options = self.removals(cost, equal)
        if options:
            _, branch, left = min(options)
            self.keep[branch] = left
        return bool(options)

    def take_back(self, limits: Sequence[Limit], equal: bool) -> None:
        """Goes up stairs again while that breaks no limit: a last step down may have been a high one."""
        cost = limits[0].cost
        while True:
            widths, options = self.widths(), []
            for branch, atoms in self.keep.items():
                stair = widths[branch[0]][branch[1]]
                higher = self.space.next_stair(branch, stair)
                if higher is None or self._full[branch] <= stair:
                    continue
                more = min(higher, self._full[branch])
                worth = float(higher - stair) if equal else cost.saved(widths, branch, higher, stair)
                options.append((self._lost(branch, more, atoms) / worth, branch, more))
            for _, branch, more in sorted(options, reverse=True):
                before, self.keep[branch] = self.keep[branch], more
                # what is there again without what it needs may be no net
                viable = before or self.space.viable(self.space.empty_of(self.widths()))
                if viable and all(limit.met(self.widths()) for limit in limits):
                    break
                self.keep[branch] = before
            else:
                return

    def remove_one_by_one(self, limit: Limit, equal: bool) -> int:
        """Removes the least worthy atoms until `limit` is met; 0 where nothing is left to go."""
        prices = limit.cost.per_atom(self.widths())
        scores, branches = [], []
        for number, (branch, atoms) in enumerate(self.keep.items()):
            left = self.rising[branch][self._full[branch] - atoms :]
            scores.append(left / (1.0 if equal else prices[branch]))
            branches.append(np.full(atoms, number))
        names, score, owner = list(self.keep), np.concatenate(scores), np.concatenate(branches)
        best = {name: (float(score[owner == number].max()), number) for number, name in enumerate(names)
                if self.keep[name]}  # fmt: skip
        for branch in self.space.survivors({name: worth for name, (worth, _) in best.items()}):
            mine = np.flatnonzero(owner == best[branch][1])  # what the net cannot do without
            score[mine[np.argmax(score[mine])]] = np.inf
        order = np.argsort(score, kind="stable")
        order = order[np.isfinite(score[order])]
        saved = np.cumsum([prices[names[owner[index]]] for index in order])
        over = limit.cost.upper(self.widths()) - limit.most
        count = min(len(order), int(np.searchsorted(saved, over * (1 - 1e-12))) + 1)
        for index in order[:count]:
            self.keep[names[owner[index]]] -= 1
        return count

    def removals(self, cost: AtomCost, equal: bool) -> list[tuple[float, Branch, int]]:
        """(importance lost per cost, branch, atoms left) of every removal by some stairs."""
        found, widths = [], self.widths()
        empty = frozenset(branch for branch, atoms in self.keep.items() if not atoms)
        for branch, atoms in self.keep.items():
            for left in self._fewer(branch, atoms, empty):
                lost = self._lost(branch, atoms, left)
                worth = float(atoms - left) if equal else (
                    cost.saved(widths, branch, self._stair(branch, atoms), left)
                )  # fmt: skip
                found.append((lost / worth, branch, left))
        return found

    def _fewer(self, branch: Branch, atoms: int, empty: frozenset[Branch]) -> list[int]:
        """Numbers of atoms that a branch may go down to in one removal."""
        options = [stair for stair in self.space.stairs(*branch) if stair < atoms][-STEPS_DOWN:]
        return [left for left in options if left or self.space.viable(empty | {branch})]

    def _stair(self, branch: Branch, atoms: int) -> int:
        return min(stair for stair in self.space.stairs(*branch) if stair >= atoms)

    def _lost(self, branch: Branch, atoms: int, left: int) -> float:
        """Importance of the atoms that go: the least important of those that are there."""
        sums, full = self._sums[branch], self._full[branch]
        return float(sums[full - left] - sums[full - atoms])


def _on(space: WidthSpace, widths: Widths, limits: Sequence[Limit]) -> Widths:
    """Every branch on to its next stair where that costs no time: the device computes so many channels anyhow."""
    now = widths
    timed = [limit for limit in limits if limit.cost.name == "latency"]
    for branch in space.branches() if timed else ():
        there = now[branch[0]][branch[1]]
        higher = space.next_stair(branch, there)
        if not there or higher is None:
            continue
        more = with_number(now, branch, higher)
        free = all(limit.cost.total(more) <= limit.cost.total(now) for limit in timed)
        if free and all(limit.met(more) for limit in limits):
            now = more
    return now
