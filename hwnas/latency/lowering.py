"""Lowering: from a network's operators to the kernels that a runtime really runs, layout conversions included.

ONNX Runtime's CPU kernels prefer a layout in which channels come in blocks of 8 or 16. Not every operator exists in it:
where a blocked one meets a plain one, the runtime converts, once for each tensor. A sum of operators that leaves the
conversions out, or pays them at every operator, misses ShuffleNets by 15%. So a network is lowered first: each operator
that runs (`merged`) in the layout it runs in, and every conversion an operator of its own (`to_blocked`, `to_plain`).

The rules are those of ONNX Runtime's optimiser (its `nchwc_transformer`); a test compares them with the graphs that the
installed version really makes. Other runtimes convert inside their kernels: theirs are only merged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hwnas.network import INPUT, Network, Ref
from hwnas.ops import PLAIN, Op, Shape

ALIGNMENT = 4
"""Channels of a tensor that can be converted to blocks are a multiple of it."""

WINDOWS = ("max_pool", "avg_pool")
"""Kinds that have whole blocks converted where they arrive plain."""

WHOLE_BLOCKS = ("concat", "global_avg_pool", *WINDOWS)
"""Kinds that run in blocks only where every tensor has whole ones."""

FOLLOWING = ("add", "mul", "act", "affine", *WHOLE_BLOCKS)
"""Kinds that run in the layout of what arrives, but for `WINDOWS`: lowered, they say which it is."""

TAKEN_IN = ("relu", "relu6")
"""Activations that a convolution computes with."""

State = tuple[bool, ...]
"""What a later operator sees of the one before it: its layout, for runtimes that have several."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a runtime runs for one operator of a network: the conversions that it needs first, and itself.

    Attributes:
        kernels: in order.
        state: of what it gives.
        merged: the earlier node that runs for this one too; None for one that runs by itself.
    """

    kernels: tuple[Op, ...]
    state: State = ()
    merged: int | None = None


class Lower(ABC):
    """Turns networks into the kernels that a runtime runs."""

    @abstractmethod
    def steps(self, network: Network) -> list[Step]:
        """A step for each node of the network, and one for its output."""

    def __call__(self, network: Network) -> tuple[Op, ...]:
        """The kernels of the whole network."""
        return tuple(op for step in self.steps(network) for op in step.kernels)


def lowering(header: Mapping[str, Any]) -> Lower:
    """How networks are lowered for the runtime that a table, or a measuring process, says it is of."""
    block = header.get("channel_block")
    if header.get("runtime") == "onnxruntime" and isinstance(block, int) and block > 0:
        return Blocked(block)
    return AsWritten()


class AsWritten(Lower):
    """The operators that run, as they stand, deployed."""

    def steps(self, network: Network) -> list[Step]:
        runs, _ = merged(network)
        return [*(Step((run.op,)) if isinstance(run, Run) else Step((), merged=run[0]) for run in runs), Step(())]


@dataclass(frozen=True, slots=True)
class Run:
    """An operator that runs, and what it is fed from, the merged ones' places taken by what runs."""

    op: Op
    inputs: tuple[Ref, ...]


def merged(network: Network) -> tuple[list[Run | Ref], Ref]:
    """What runs for each node, or where its value is had where a runtime has made one operator of it and of an earlier
    one; and the output.

    ONNX Runtime computes the same of the same once; then a convolution takes in the affine, and the ReLU, that alone
    follow it. Others are taken to do so too.
    """
    stands: dict[Ref, Ref] = {}  # for what does not run itself
    seen: dict[tuple[Op, tuple[Ref, ...]], int] = {}
    runs: list[Run | Ref] = []
    for index, node in enumerate(network.nodes):
        op, refs = node.op.deployed(), tuple(stands.get(ref, ref) for ref in node.inputs)
        twin = index if op.deployed_params else seen.setdefault((op, refs), index)
        if twin == index:
            runs.append(Run(op, refs))
        else:
            stands |= {(index, port): (twin, port) for port in range(len(op.outputs))}
            runs.append((twin, 0))
    uses = Counter(ref for run in runs if isinstance(run, Run) for ref in run.inputs) + Counter(
        [stands.get(network.output, network.output)]
    )
    for index, run in enumerate(runs):
        if not isinstance(run, Run):
            runs[index] = stands.get(run, run)
            continue
        refs = tuple(stands.get(ref, ref) for ref in run.inputs)
        before = runs[refs[0][0]] if refs[0][0] >= 0 and uses[run.inputs[0]] == 1 else None
        if isinstance(before, Run) and _takes_in(before.op, run.op):
            stands[index, 0] = refs[0]
            bias = before.op.bias or run.op.kind == "affine"
            runs[refs[0][0]] = replace(before, op=replace(before.op, bias=bias, act=run.op.act))
            runs[index] = refs[0]
        else:
            runs[index] = Run(run.op, refs)
    return runs, stands.get(network.output, network.output)


def _takes_in(op: Op, after: Op) -> bool:
    """Whether `op` computes the operator behind it too."""
    if op.kind != "conv" or op.act or op.residual or after.inputs[0] != op.output:
        return False
    return after.kind == "affine" or (after.kind == "act" and after.act in TAKEN_IN)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an operator runs: for each input, and for its outputs, whether they are in blocks."""

    inputs: tuple[bool, ...]
    output: bool


def placement(op: Op, block: int, arriving: Sequence[bool] | None = None) -> Placement:
    """The layout that `op` takes and gives.

    Args:
        op: as lowered, or as in a network.
        block: channels of a block.
        arriving: layouts of the tensors that arrive, for operators that follow them; None where `op` is lowered and
            says by its `layout` which it follows.
    """
    plain = Placement((False,) * len(op.inputs), False)
    if op.kind == "to_blocked":
        return Placement((False,), True)
    if op.kind == "to_plain":
        return Placement((True,), False)
    if arriving is None:
        arriving = (op.layout != PLAIN,) * len(op.inputs)
    if op.kind == "conv":
        first = _conv_input(op, block)
        return plain if first is None else Placement((first,) + (True,) * (len(op.inputs) - 1), True)
    if len(op.output) != 3:
        return plain
    blocked = op.kind in WINDOWS or (op.kind in FOLLOWING and all(arriving))
    blocked = blocked and op.layout != PLAIN
    if op.kind == "mul":
        blocked = blocked and op.inputs[0] == op.inputs[1]
    elif op.kind in WHOLE_BLOCKS:
        blocked = blocked and all(shape[0] % block == 0 for shape in op.inputs)
    return Placement((blocked,) * len(op.inputs), blocked)


def _conv_input(op: Op, block: int) -> bool | None:
    """Whether a convolution that gives blocks takes them; None for one that runs in the plain layout."""
    cin, cout, groups = op.inputs[0][0], op.output[0], op.groups
    if groups == 1:
        if cin < block:
            return False  # such kernels read the plain layout
        return True if cin % ALIGNMENT == 0 else None
    if cout % ALIGNMENT:
        return None
    if groups == cin == cout:
        return True
    return True if (cin // groups) % block == 0 and (cout // groups) % block == 0 else None


@dataclass(slots=True)
class _Lowering:
    """One network on its way."""

    block: int
    kernels: list[Op] = field(default_factory=list)
    blocked: dict[Ref, bool] = field(default_factory=lambda: {INPUT: False})
    converted: set[Ref] = field(default_factory=set)

    def taken(self) -> tuple[Op, ...]:
        """The kernels since this was last asked."""
        found = tuple(self.kernels)
        self.kernels.clear()
        return found

    def fetch(self, ref: Ref, shape: Shape, blocked: bool) -> None:
        """Makes sure that the value is there in the wanted layout."""
        if self.blocked[ref] == blocked or ref in self.converted:
            return
        self.converted.add(ref)
        self.kernels.append(Op.conversion(shape, blocked=blocked))

    def _adds_apart(self, op: Op, arriving: bool) -> bool:
        """Whether a residual is not fused: in blocks it must come in blocks, else the convolution must have a bias."""
        return not arriving if placement(op, self.block).output else not op.bias

    def add(self, op: Op, refs: Sequence[Ref], shapes: Sequence[Shape]) -> bool:
        """Adds `op`; returns whether it gives blocks."""
        arriving = tuple(
            self.blocked[ref] and shape == taken for ref, shape, taken in zip(refs, shapes, op.inputs, strict=True)
        )
        if op.residual and self._adds_apart(op, arriving[-1]):
            alone = replace(op, inputs=op.inputs[:1], residual=False, act="")
            given = self.add(alone, refs[:1], shapes[:1])
            if given:
                self.kernels.append(Op.conversion(op.output, blocked=False))
            self.fetch(refs[-1], shapes[-1], False)
            self.kernels.append(Op.add(op.output, act=op.act).in_layout(PLAIN))
            return False
        place = placement(op, self.block, arriving)
        for ref, shape, taken, blocked in zip(refs, shapes, op.inputs, place.inputs, strict=True):
            self.fetch(ref, shape, blocked and shape == taken)
        follows = op.kind in FOLLOWING and not place.output
        self.kernels.append(op.in_layout(PLAIN) if follows else op)
        return place.output


@dataclass(frozen=True, slots=True)
class Blocked(Lower):
    """ONNX Runtime on a CPU where channels come in blocks of `block`."""

    block: int

    def steps(self, network: Network) -> list[Step]:
        state = _Lowering(self.block)
        shapes: dict[Ref, Shape] = {INPUT: network.input_shape}
        steps = []
        runs, output = merged(network)
        for index, run in enumerate(runs):
            if not isinstance(run, Run):
                steps.append(Step((), (state.blocked[run],), run[0]))
                continue
            if all(ref in shapes for ref in run.inputs):
                given = state.add(run.op, run.inputs, [shapes[ref] for ref in run.inputs])
            else:  # fed by what nobody knows: there is no latency anyhow
                state.kernels.append(run.op)
                given = False
            for port, shape in enumerate(run.op.outputs):
                shapes[index, port] = shape
                state.blocked[index, port] = given
            steps.append(Step(state.taken(), (given,)))
        if output in shapes:
            state.fetch(output, shapes[output], False)
        return [*steps, Step(state.taken())]


def blocked_tensors(op: Op, block: int) -> tuple[str, ...]:
    """Which tensors of `op_to_onnx(op)` are in blocks when the runtime runs the lowered operator."""
    if block <= 0:
        return ()
    place = placement(op, block)
    names = [f"input{index}" for index, blocked in enumerate(place.inputs) if blocked]
    return (*names, *(f"output{index}" for index in range(len(op.outputs)) if place.output))
