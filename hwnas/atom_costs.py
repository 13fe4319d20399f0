"""What architectures of atoms cost, and what one atom more or less is worth: MACs, parameters, milliseconds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import HwnasError
from hwnas.ops import Op
from hwnas.spaces.atoms import AtomSpace
from hwnas.spaces.widths import AtomArch, Branch, Widths, WidthSpace, with_number

if TYPE_CHECKING:
    from hwnas.latency.model import LatencyModel

FLOOR = 0.1
"""Least cost of an atom, as a share of its branch's mean: stairs are flat, and an atom that is free would never go."""

REACH = 16
"""Atoms to either side that the slope of a latency is taken over: a block of channels of the widest kernels."""


LOW_STAIRS = 5
"""Stairs of a branch among which its cheapest is looked for."""


class AtomCost(ABC):
    """One cost of a space's architectures.

    Attributes:
        name: ``latency``, ``macs`` or ``params``: what a `Budget` names.
        in_stairs: branches of a net that it limits have a number of `WidthSpace.stairs` each; of a latency no other
            number has a price.
    """

    name: str
    in_stairs = False

    space: WidthSpace

    @abstractmethod
    def total(self, widths: Widths) -> float:
        """What an architecture costs: exact, or predicted; in ms for latency, as if filled up to its stairs."""

    def deployed(self, widths: Widths) -> Widths:
        """What a net of these widths becomes: in stairs it is filled up to them."""
        return self.space.aligned(AtomArch(self.space.name, widths)).widths if self.in_stairs else widths

    def upper(self, widths: Widths) -> float:
        """The one-sided upper end that feasibility is decided on."""
        return self.total(widths)

    def ends(self, widths: Widths) -> tuple[float, float] | None:
        """Of a latency, what just these widths cost and the upper end of it; None where nobody knows."""
        del widths
        return None

    def estimate(self, widths: Widths) -> float:
        """As `total`, quickly, and smooth where that has stairs: what a controller looks at."""
        return self.total(widths)

    @abstractmethod
    def per_atom(self, widths: Widths) -> dict[Branch, float]:
        """What one atom of each branch costs in a net of these widths: above zero for every branch."""

    def saved(self, widths: Widths, branch: Branch, atoms: int, fewer: int) -> float:
        """What a branch of `atoms` costs more than one of `fewer`, in a net of these widths: above zero."""
        return (atoms - fewer) * self.per_atom(widths)[branch]


class CountCost(AtomCost):
    """MACs or parameters: every atom of a branch costs the same, whatever else is there.

    MACs of an atom are ``cin * Hin^2 + k^2 * Hout^2 + cout * Hout^2`` (equation 6 of Mei et al. 2020 weighs by these).

    Args:
        space: of the nets.
        name: ``macs`` or ``params``.
        in_stairs: nets that it limits have numbers of atoms that devices like.
    """

    space: AtomSpace

    def __init__(self, space: AtomSpace, name: str, *, in_stairs: bool = False) -> None:
        self.space, self.name, self.in_stairs = space, name, in_stairs
        count = {"macs": lambda op: op.macs, "params": lambda op: op.params}[name]
        self._atoms: dict[Branch, float] = {}
        for block, (spec, shape) in enumerate(zip(space.blocks, space.block_shapes(), strict=True)):
            for place, kernel in enumerate(spec.kernels):
                ops: list[Op] = []
                for layer in spec.layers(kernel, 1):
                    ops.append(layer.op(ops[-1].output if ops else shape))
                ops.append(Op.conv(ops[-1].output, spec.cout, kernel=1))
                self._atoms[block, place] = float(sum(map(count, ops)))
        least = space.network(AtomArch(space.name, _least(space)))
        self._fixed = getattr(least, name) - self._sum(_least(space))

    def _sum(self, widths: Widths) -> float:
        total = sum(atoms * self._atoms[b, p] for b, row in enumerate(widths) for p, atoms in enumerate(row))
        if self.name == "params":  # the BatchNorm behind the sum goes with the last atom
            total += sum(2 * spec.cout for spec, row in zip(self.space.blocks, widths, strict=True) if any(row))
        return total

    def total(self, widths: Widths) -> float:
        return float(self._fixed + self._sum(widths))

    def upper(self, widths: Widths) -> float:
        return self.total(self.deployed(widths))

    def per_atom(self, widths: Widths) -> dict[Branch, float]:
        del widths  # an atom costs the same everywhere in its branch
        return dict(self._atoms)


class EqualCost(AtomCost):
    """Every atom costs the same: the paper's baseline without cost coefficients (table 2). The total counts them."""

    name = "atoms"

    def __init__(self, space: WidthSpace) -> None:
        self.space = space

    def total(self, widths: Widths) -> float:
        return float(sum(map(sum, widths)))

    def per_atom(self, widths: Widths) -> dict[Branch, float]:
        del widths
        return dict.fromkeys(self.space.branches(), 1.0)


class LatencyCost(AtomCost):
    """Milliseconds of one batch, from a table that covers the space.

    What an atom costs is a slope: its branch's latency over the number of atoms, made monotone, over a stair to either
    side, with a positive floor. A raw difference would be zero inside a stair and now and then negative.
    """

    name = "latency"
    in_stairs = True
    space: AtomSpace

    def __init__(self, space: AtomSpace, model: LatencyModel) -> None:
        self.space, self._model = space, model
        self._known: dict[Widths, tuple[float, float]] = {}
        self._curves: dict[Branch, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        for branch in space.branches():
            stairs = np.array(space.stairs(*branch), float)
            chains = [self._branch_ops(branch, int(atoms)) for atoms in stairs[1:]]
            raw = [0.0, *(model.sum_of(ops, space) for ops in chains)]
            self._curves[branch] = (stairs, monotone(np.array(raw)))
        self._rest = self.total(space.full) - self._summed(space.full)

    def _summed(self, widths: Widths) -> float:
        return sum(
            float(np.interp(atoms, *self._curves[b, p])) for b, row in enumerate(widths) for p, atoms in enumerate(row)
        )

    def estimate(self, widths: Widths) -> float:
        return self._rest + self._summed(widths)

    def ends(self, widths: Widths) -> tuple[float, float] | None:
        """Latency and upper end of just these widths, whatever their numbers; None where the table cannot say."""
        try:
            return self._model.search_ends(self.space.network(AtomArch(self.space.name, widths)))
        except HwnasError:
            return None

    def saved(self, widths: Widths, branch: Branch, atoms: int, fewer: int) -> float:
        """What a branch of `atoms` costs more than one of `fewer`, by its rising curve, with a positive floor."""
        del widths
        stairs, curve = self._curves[branch]
        at = np.interp([atoms, fewer], stairs, curve)
        return float(max(at[0] - at[1], FLOOR * (atoms - fewer) * curve[-1] / stairs[-1], 1e-12))

    def _branch_ops(self, branch: Branch, atoms: int) -> list[Op]:
        block, place = branch
        spec, shape = self.space.blocks[block], self.space.block_shapes()[block]
        ops: list[Op] = []
        for layer in spec.layers(spec.kernels[place], atoms):
            ops.append(layer.op(ops[-1].output if ops else shape).deployed())
        adds = spec.residual or place > 0
        ops.append(Op.conv(ops[-1].output, spec.cout, kernel=1, bias=place == 0, residual=adds))
        return ops

    def _of(self, widths: Widths) -> tuple[float, float]:
        filled = self.space.aligned(AtomArch(self.space.name, widths))
        if filled.widths not in self._known:
            self._known[filled.widths] = self._model.search_ends(self.space.network(filled))
        return self._known[filled.widths]

    def total(self, widths: Widths) -> float:
        return self._of(widths)[0]

    def upper(self, widths: Widths) -> float:
        return self._of(widths)[1]

    def per_atom(self, widths: Widths) -> dict[Branch, float]:
        return {
            (b, p): slope_at(*self._curves[b, p], atoms) for b, row in enumerate(widths) for p, atoms in enumerate(row)
        }


def slope_at(stairs: NDArray[np.float64], curve: NDArray[np.float64], atoms: float) -> float:
    """Slope of a rising `curve` over `stairs` around `atoms`, over `REACH` to either side, with a positive floor."""
    low = int(np.searchsorted(stairs, max(0.0, atoms - REACH), side="right")) - 1
    high = min(len(stairs) - 1, int(np.searchsorted(stairs, atoms + REACH)))
    slope = (curve[high] - curve[low]) / (stairs[high] - stairs[low])
    mean = curve[-1] / stairs[-1]
    return float(max(slope, FLOOR * mean, 1e-12))


def monotone(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rising curve nearest to `values` in least squares (pool adjacent violators)."""
    levels: list[tuple[float, int]] = []
    for value in values:
        levels.append((float(value), 1))
        while len(levels) > 1 and levels[-2][0] > levels[-1][0]:
            (a, n), (b, m) = levels[-2:]
            levels[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return np.concatenate([np.full(count, level) for level, count in levels])


def _least(space: AtomSpace) -> Widths:
    """The cheapest architecture there can be: blocks that change the shape have one atom, the others none."""
    return tuple(
        (0,) * len(block.hidden) if block.residual else (1, *(0,) * (len(block.hidden) - 1)) for block in space.blocks
    )


def cheapest(space: WidthSpace, cost: AtomCost) -> Widths:
    """About the cheapest architecture by a cost: of blocks that cannot be empty, the cheapest branch alone."""
    if not isinstance(space, AtomSpace):
        return _cheapest(space, cost)
    least = [list(row) for row in _least(space)]
    for block, spec in enumerate(space.blocks):
        if spec.residual:
            continue
        options = []
        for place in range(len(spec.kernels)):
            row = [0] * len(spec.kernels)
            row[place] = space.stairs(block, place)[1] if cost.in_stairs else 1
            options.append(row)
        least[block] = min(options, key=lambda row, b=block: cost.upper(_with(least, b, row)))  # type: ignore[misc]
    return tuple(map(tuple, least))


def cheaper(space: WidthSpace, cost: AtomCost, widths: Widths, enough: float) -> Widths:
    """From `widths` one branch after the other to its cheapest low stair, or none, until the cost is `enough`.

    The fewest channels are not always the fastest: some devices run eight channels slower than sixteen.
    """
    now, better = cost.upper(widths), True
    while better and now > enough:
        better = False
        for branch in space.branches():
            atoms = widths[branch[0]][branch[1]]
            for stair in space.stairs(*branch)[:LOW_STAIRS] if atoms else ():
                other = with_number(widths, branch, stair)
                if stair == widths[branch[0]][branch[1]] or not (stair or space.viable(space.empty_of(other))):
                    continue
                if (costs := cost.upper(other)) < now:
                    widths, now, better = other, costs, True
            if now <= enough:
                break
    return widths


def _cheapest(space: WidthSpace, cost: AtomCost) -> Widths:
    """The least of every branch that has to be there; the dearest go first."""
    first = {branch: space.stairs(*branch)[1] if cost.in_stairs else 1 for branch in space.branches()}
    prices = cost.per_atom(space.full)
    there = space.survivors({branch: -prices[branch] * atoms for branch, atoms in first.items()})
    return tuple(
        tuple(first[block, place] if (block, place) in there else 0 for place in range(len(row)))
        for block, row in enumerate(space.full)
    )


def _with(rows: list[list[int]], block: int, row: list[int]) -> Widths:
    return tuple(tuple(row if index == block else other) for index, other in enumerate(rows))


def atom_costs(space: AtomSpace, model: LatencyModel | None, *, stairs: bool = False) -> Mapping[str, AtomCost]:
    """Every cost that there is: counts, in `stairs` or not, and latency where there is a table."""
    costs: dict[str, AtomCost] = {name: CountCost(space, name, in_stairs=stairs) for name in ("macs", "params")}
    if model is not None:
        costs["latency"] = LatencyCost(space, model)
    return costs
