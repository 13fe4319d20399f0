"""What nets of gated channels cost, as smooth functions of how many channels each group has.

With ``S_g`` channels of group g, expected or sampled, an operator that reads ``x`` channels and gives ``y`` costs
``a x y + b y + c x`` parameters, MACs or bytes, and a latency that the table's own curves say, interpolated linearly
in ``x`` and ``y`` (or their product, scaled). ``x`` and ``y`` are sums of ``S_g``. Equation 6 of Chaudhuri et al. 2020
adds up, over all channels, what each shares with its neighbours, and so counts every interior convolution twice; here
each operator counts once, and ``pairs=2`` gives the paper's unit. A MAC is a MAC: the published code's FLOPs are two.

The exact cost of an architecture is that of its operators; the smooth one is what penalties, controllers and
projections look at.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from hwnas.atom_costs import FLOOR, AtomCost
from hwnas.network import INPUT, Network, Ref
from hwnas.ops import Op
from hwnas.spaces.gated import GateSpace
from hwnas.spaces.widths import AtomArch, Branch, Widths, WidthSpace
from hwnas.trace.channels import FIXED, Run

if TYPE_CHECKING:
    from hwnas.latency.model import LatencyModel

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Term:
    """One deployed operator of the whole net, with the runs of channels that it reads and gives."""

    op: Op
    entry: tuple[Run, ...]
    output: tuple[Run, ...]

    @property
    def pairs(self) -> bool:
        """Whether its work is in proportion to the channels in times the channels out."""
        return self.op.kind == "linear" or (self.op.kind == "conv" and self.op.groups == 1)

    def sized(self, entry: int, output: int) -> Op:
        """The operator with so many channels."""
        if self.op.kind == "concat":
            share = output / self.op.output[0]
            shapes = tuple((max(1, round(shape[0] * share)), *shape[1:]) for shape in self.op.inputs)
            return Op.concat(shapes)
        first = entry if self.pairs else output
        rest = tuple((output, *shape[1:]) for shape in self.op.inputs[1:])
        groups = output if self.op.depthwise else self.op.groups
        inputs = ((first, *self.op.inputs[0][1:]), *rest)
        return replace(self.op, inputs=inputs, output=(output, *self.op.output[1:]), groups=groups)


def terms_of(space: GateSpace) -> list[Term]:
    """The deployed operators of the whole net."""
    from hwnas.trace.fuse import fused_steps
    from hwnas.trace.narrow import narrowed_steps, remains

    channels = space.channels
    # nothing is missing, so that each step keeps its number
    graph, outputs = narrowed_steps(channels, remains(channels, frozenset()), [row[0] for row in space.full])
    return [
        Term(step.op, channels.runs[_ref(step.inputs[0])], channels.runs[step.index, 0])
        for step in fused_steps(graph, outputs)
        if step.op is not None
    ]


def _ref(ref: Ref) -> Ref:
    return INPUT if ref[0] < 0 else ref


@dataclass(frozen=True, slots=True)
class _Sums:
    """How many channels terms read or give: ``groups @ S + fixed``, an array [terms]."""

    groups: Floats
    fixed: Floats

    @classmethod
    def of(cls, runs: Sequence[Sequence[Run]], sizes: Sequence[int]) -> _Sums:
        groups, fixed = np.zeros((len(runs), len(sizes))), np.zeros(len(runs))
        for row, found in enumerate(runs):
            for run in found:
                if run.group == FIXED:
                    fixed[row] += run.count
                else:
                    groups[row, run.group] += run.times
        return cls(groups, fixed)

    def at(self, sums: Floats) -> Floats:
        """Of group sums [..., groups], [..., terms]."""
        result: Floats = sums @ self.groups.T + self.fixed
        return result


class GateCost(AtomCost):
    """One cost of a space of gates; its unit is what `total` says."""

    space: WidthSpace

    def __init__(self, space: GateSpace) -> None:
        self.space = self.gates = space
        self._terms = terms_of(space)
        sizes = [group.size for group in space.groups]
        self._entry = _Sums.of([term.entry for term in self._terms], sizes)
        self._output = _Sums.of([term.output for term in self._terms], sizes)
        self._sizes = np.array(sizes, float)
        self._asked: tuple[Widths, list[dict[int, float]]] | None = None

    def smooth(self, sums: Floats) -> Floats:
        """The cost where groups have `sums` [..., groups] channels, fractions too: [...]."""
        value: Floats = self._values(self._entry.at(sums), self._output.at(sums))[0].sum(-1) + self._rest
        return value

    def gradient(self, sums: Floats) -> Floats:
        """Its derivative by the number of channels of each group, [groups] of `sums` [groups]."""
        _, by_entry, by_output = self._values(self._entry.at(sums), self._output.at(sums))
        result: Floats = by_entry @ self._entry.groups + by_output @ self._output.groups
        return result

    @cached_property
    def floors(self) -> Floats:
        """The least that one channel of each group costs: a share of its mean. What is free would never go."""
        without = np.tile(self._sizes, (len(self._sizes), 1))
        np.fill_diagonal(without, 0.0)
        mean = (self.smooth(self._sizes) - self.smooth(without)) / self._sizes
        result: Floats = np.maximum(FLOOR * mean, 1e-12)
        return result

    def slopes(self, sums: Floats) -> Floats:
        """What one channel of each group is worth [groups]: the gradient, with positive floors."""
        result: Floats = np.maximum(self.gradient(sums), self.floors)
        return result

    @property
    def _rest(self) -> float:
        """What the smooth cost leaves out, the same for every net."""
        return 0.0

    @abstractmethod
    def _values(self, entry: Floats, output: Floats) -> tuple[Floats, Floats, Floats]:
        """Of each term [..., terms] the value and its derivatives by the channels in and out."""

    # -- as searches ask for it --------------------------------------------------------------------------------------

    def network(self, widths: Widths) -> Network:
        """The deployed net."""
        return self.gates.network(AtomArch(self.gates.name, widths))

    def estimate(self, widths: Widths) -> float:
        return float(self.smooth(_sums(widths)))

    def per_atom(self, widths: Widths) -> dict[Branch, float]:
        return {(group, 0): float(price) for group, price in enumerate(self.slopes(_sums(widths)))}

    def saved(self, widths: Widths, branch: Branch, atoms: int, fewer: int) -> float:
        if self._asked is None or self._asked[0] != widths:
            self._asked = widths, self._by_stair(widths)
        group = branch[0]
        costs = self._asked[1][group]
        return float(max(costs[atoms] - costs[fewer], self.floors[group] * (atoms - fewer)))

    def _by_stair(self, widths: Widths) -> list[dict[int, float]]:
        """Of each group, what nets cost that differ from `widths` in it alone: by its stairs, and its own number."""
        options = [sorted({row[0], *self.gates.stairs(group, 0)}) for group, row in enumerate(widths)]
        owner = np.repeat(np.arange(len(options)), list(map(len, options)))
        nets = np.tile(_sums(widths), (len(owner), 1))
        nets[np.arange(len(owner)), owner] = np.concatenate(options)
        costs = iter(self.smooth(nets).tolist())
        return [{width: next(costs) for width in found} for found in options]


def _sums(widths: Widths) -> Floats:
    return np.array([row[0] for row in widths], float)


class GateCount(GateCost):
    """Parameters, MACs or bytes (of one image: activations in and out of each operator and the weights, float32).

    Args:
        space: of the nets.
        name: ``params``, ``macs`` or ``bytes``.
        pairs: how often a product of channels in and out counts: 1, or 2 as in the paper's equation 6.
        in_stairs: nets that it limits have numbers of channels that devices like.
    """

    def __init__(self, space: GateSpace, name: str, pairs: float = 1.0, *, in_stairs: bool = False) -> None:
        super().__init__(space)
        self.name, self.in_stairs = name, in_stairs
        self._product, self._by_output, self._by_entry, self._constant = (
            np.array(column) for column in zip(*(_coefficients(term, name) for term in self._terms), strict=True)
        )
        self._product = self._product * pairs

    def total(self, widths: Widths) -> float:
        return float(self.network(widths).counts[self.name])

    def upper(self, widths: Widths) -> float:
        return self.total(self.deployed(widths))

    def _values(self, entry: Floats, output: Floats) -> tuple[Floats, Floats, Floats]:
        value = self._product * entry * output + self._by_output * output + self._by_entry * entry + self._constant
        return value, self._product * output + self._by_entry, self._product * entry + self._by_output


def _coefficients(term: Term, name: str) -> tuple[float, float, float, float]:
    """Of channels in times out, out, in, and what is there without any (nothing)."""
    measures: dict[str, Callable[[Op], int]] = {
        "params": lambda op: op.params,
        "macs": lambda op: op.macs,
        "bytes": lambda op: op.traffic_bytes(),
    }
    measure = measures[name]
    if not term.pairs:
        return 0.0, measure(term.op) / term.op.output[0], 0.0, 0.0
    one, more_in, more_out, both = (float(measure(term.sized(x, y))) for x, y in ((1, 1), (2, 1), (1, 2), (2, 2)))
    product = both - more_in - more_out + one
    by_entry, by_output = more_in - one - product, more_out - one - product
    return product, by_output, by_entry, one - product - by_entry - by_output


def gate_costs(
    space: GateSpace,
    model: LatencyModel | None,
    shape: Literal["curves", "bilinear"] = "curves",
    *,
    stairs: bool = False,
) -> Mapping[str, GateCost]:
    """Every cost that there is: counts, in `stairs` or not, and latency where there is a table."""
    from hwnas.gate_latency import GateLatency

    costs: dict[str, GateCost] = {
        name: GateCount(space, name, in_stairs=stairs) for name in ("macs", "params", "bytes")
    }
    if model is not None:
        costs["latency"] = GateLatency(space, model, shape)
    return costs
