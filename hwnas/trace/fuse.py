"""The rules that turn steps as they are spelled into operators as they are deployed; both readers use these only.

A convolution or linear layer absorbs the BatchNorm after it, then one activation; a convolution also absorbs the
residual add that follows it (of two candidates the later one, because the other summand must be there by then). What is
absorbed must be read by nobody else. Spellings of one thing become that thing: x * sigmoid(x) is a SiLU, reshape,
transpose, reshape a channel shuffle. Reshapes are free where nothing moves. What is left over is named in
``Network.unknown``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from hwnas.network import INPUT, UNKNOWN, Network, Node, Ref, reshapes_freely
from hwnas.ops import Op, Shape
from hwnas.trace.graph import BIAS, PAD, RESHAPE, SCALE, SHIFT, TRANSPOSE, Graph, Step, Value

_TAKES_ACT = ("conv", "linear", "affine", "add", "mul")
_GATED = {"sigmoid": "silu", "hardsigmoid": "hardswish"}


def fuse(graph: Graph, outputs: Sequence[Value]) -> Network:
    """The deployed network; its output is the first of `outputs`. What no output needs is left out."""
    fuser = _Fuser(graph, [value.ref for value in outputs])
    fuser.run()
    return _network(graph, fuser.alive, outputs[0].ref)


def fused_steps(graph: Graph, outputs: Sequence[Value]) -> list[Step]:
    """The steps of the deployed network, fused in place: each gives what the last step that it absorbed gave."""
    fuser = _Fuser(graph, [value.ref for value in outputs])
    fuser.run()
    return [graph.steps[index] for index in sorted(fuser.alive)]


class _Fuser:
    """One sweep in topological order: when a step is looked at, everything before it is fused already."""

    def __init__(self, graph: Graph, outputs: Sequence[Ref]) -> None:
        self.graph = graph
        self.steps = graph.steps
        self.alive = _needed(graph.steps, outputs)
        self.uses = Counter(outputs)
        for index in self.alive:
            self.uses.update(graph.steps[index].inputs)

    def run(self) -> None:
        for index in sorted(self.alive):
            step = self.steps[index]
            if rule := _RULES.get(step.kind):
                rule(self, step)

    def only(self, ref: Ref, *kinds: str) -> Step | None:
        """The step of one of `kinds` that gives `ref`, if nobody but the step being looked at reads it."""
        if ref[0] < 0 or self.uses[ref] != 1:
            return None
        step = self.steps[ref[0]]
        return step if step.kind in kinds else None

    def shape(self, ref: Ref) -> Shape:
        """The shape that `ref` has."""
        return self.graph.input.shape if ref == INPUT else self.steps[ref[0]].outputs[ref[1]]

    def become(self, step: Step, op: Op | None, inputs: Sequence[Ref], *absorbed: Step, name: str = "") -> None:
        """Makes `step` the operator `op` fed from `inputs`; what it absorbs is gone."""
        self.uses.subtract(step.inputs)
        for gone in absorbed:
            self.uses.subtract(gone.inputs)
            self.alive.remove(gone.index)
        self.uses.update(inputs)
        step.inputs = list(inputs)
        step.name = name or step.name
        if op is not None:
            step.op, step.kind, step.outputs = op, op.kind, op.outputs


def _needed(steps: Sequence[Step], outputs: Sequence[Ref]) -> set[int]:
    needed: set[int] = set()
    waiting = list(outputs)
    while waiting:
        index = waiting.pop()[0]
        if index >= 0 and index not in needed:
            needed.add(index)
            waiting.extend(steps[index].inputs)
    return needed


def _absorb_pad(fuser: _Fuser, step: Step) -> None:
    pad = fuser.only(step.inputs[0], PAD)
    if pad is None or step.op is None:
        return
    top, left, bottom, right = (int(number) for number in pad.numbers)
    own = step.op.padding
    padding = (own[0] + top, own[1] + left, own[2] + bottom, own[3] + right)
    channels, height, width = step.op.inputs[0]
    shape = (channels, height - top - bottom, width - left - right)
    op = replace(step.op, inputs=(shape, *step.op.inputs[1:]), padding=padding)
    fuser.become(step, op, [pad.inputs[0], *step.inputs[1:]], pad)


def _fold_norm(fuser: _Fuser, step: Step) -> None:
    layer = fuser.only(step.inputs[0], "conv", "linear")
    if layer is None or layer.op is None or layer.op.act or layer.op.residual or layer.op.norm:
        return
    fuser.become(step, replace(layer.op, norm=True), layer.inputs, layer, name=layer.name)


def _fold_bias(fuser: _Fuser, step: Step) -> None:
    layer = fuser.only(step.inputs[0], "conv", "linear")
    if layer is None or layer.op is None or layer.op.act or layer.op.residual or layer.op.norm or layer.op.bias:
        return
    fuser.become(step, replace(layer.op, bias=True), layer.inputs, layer, name=layer.name)


def _absorb_act(fuser: _Fuser, step: Step) -> None:
    layer = fuser.only(step.inputs[0], *_TAKES_ACT)
    if layer is None or layer.op is None or step.op is None or layer.op.act:
        return
    fuser.become(step, replace(layer.op, act=step.op.act), layer.inputs, layer, name=layer.name)


def _absorb_add(fuser: _Fuser, step: Step) -> None:
    best: tuple[int, Step, Op] | None = None
    for operand, ref in enumerate(step.inputs):
        conv = fuser.only(ref, "conv")
        if conv is None or conv.op is None or conv.op.act or conv.op.residual:
            continue
        if best is None or ref[0] > step.inputs[best[0]][0]:
            best = (operand, conv, conv.op)
    if best is not None:
        operand, conv, op = best
        fused = replace(op, inputs=(*op.inputs, op.output), residual=True)
        fuser.become(step, fused, [*conv.inputs, step.inputs[1 - operand]], conv, name=conv.name)


def _gate(fuser: _Fuser, step: Step) -> None:
    """x * sigmoid(x) and x * hardsigmoid(x)."""
    for operand, ref in enumerate(step.inputs):
        gate = fuser.only(ref, "act")
        other = step.inputs[1 - operand]
        if gate is not None and gate.op is not None and gate.inputs == [other] and gate.op.act in _GATED:
            fuser.become(step, Op.activation(gate.op.output, _GATED[gate.op.act]), [other], gate)
            _absorb_act(fuser, step)
            return


def _relu6_of_shift(fuser: _Fuser, ref: Ref) -> tuple[Step, Step] | None:
    """The shift and the ReLU6 of relu6(x + 3)."""
    relu6 = fuser.only(ref, "act")
    if relu6 is None or relu6.op is None or relu6.op.act != "relu6":
        return None
    shift = fuser.only(relu6.inputs[0], SHIFT)
    return (shift, relu6) if shift is not None and math.isclose(shift.numbers[0], 3) else None


def _hard(fuser: _Fuser, step: Step) -> None:
    """relu6(x + 3) / 6 is a hard sigmoid, x * relu6(x + 3) / 6 a hard swish."""
    if not math.isclose(step.numbers[0], 1 / 6, rel_tol=1e-4):
        return
    if found := _relu6_of_shift(fuser, step.inputs[0]):
        op = Op.activation(step.outputs[0], "hardsigmoid")
        fuser.become(step, op, found[0].inputs, *found)
        _absorb_act(fuser, step)
    elif (product := fuser.only(step.inputs[0], "mul")) is not None and product.op is not None and not product.op.act:
        for operand, ref in enumerate(product.inputs):
            other = product.inputs[1 - operand]
            if (found := _relu6_of_shift(fuser, ref)) and found[0].inputs == [other]:
                fuser.become(step, Op.activation(step.outputs[0], "hardswish"), [other], *found, product)
                _absorb_act(fuser, step)
                return


def _shuffle(fuser: _Fuser, step: Step) -> None:
    """Reshapes of reshapes, and (C, H, W) to (g, C / g, H, W), turned, and back."""
    if (before := fuser.only(step.inputs[0], RESHAPE)) is not None:
        fuser.become(step, None, before.inputs, before)
    turn = fuser.only(step.inputs[0], TRANSPOSE)
    if turn is None or len(step.outputs[0]) != 3:
        return
    group = fuser.only(turn.inputs[0], RESHAPE)
    if group is None or list(turn.numbers) != [1, 0, *range(2, len(turn.numbers))]:
        return
    groups, per_group, *rest = group.outputs[0]
    channels, *image = step.outputs[0]
    if (
        groups * per_group == channels
        and math.prod(rest) == math.prod(image)
        and fuser.shape(group.inputs[0]) == (step.outputs[0])
    ):
        fuser.become(step, Op.shuffle(step.outputs[0], groups), group.inputs, turn, group)


_RULES: dict[str, Callable[[_Fuser, Step], None]] = {
    "conv": _absorb_pad,
    "affine": _fold_norm,
    BIAS: _fold_bias,
    "act": _absorb_act,
    "add": _absorb_add,
    "mul": _gate,
    SCALE: _hard,
    RESHAPE: _shuffle,
}


def _network(graph: Graph, alive: set[int], output: Ref) -> Network:
    """Numbers what is left, lets consumers look through free reshapes, and names what is no operator."""
    nodes: list[Node] = []
    unknown: list[str] = []
    refs: dict[Ref, tuple[Ref, Shape]] = {INPUT: (INPUT, graph.input.shape)}
    for index in sorted(alive):
        step = graph.steps[index]
        source, shape = refs[step.inputs[0]] if step.inputs else (INPUT, ())
        if step.op is not None:
            nodes.append(Node(step.op, tuple(refs[ref][0] for ref in step.inputs), step.name))
            made: list[Ref] = [(len(nodes) - 1, port) for port in range(len(step.outputs))]
        elif step.kind == RESHAPE and reshapes_freely(shape, step.outputs[0]):
            refs[index, 0] = (source, shape)
            continue
        else:
            unknown.append(step.name)
            made = [(UNKNOWN, len(unknown) - 1)] * len(step.outputs)
        refs.update({(index, port): (ref, step.outputs[port]) for port, ref in enumerate(made)})
    return Network(graph.input.shape, tuple(nodes), refs[output][0], tuple(unknown))
