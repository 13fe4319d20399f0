"""The graph that both readers fill: operators as they are spelled, before any fusion.

A `Step` is either an unfused `Op` (a convolution, its BatchNorm and its activation are three) or one of the kinds below
that are no operator by themselves. `hwnas.trace.fuse` turns it into a `Network` of deployed operators.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hwnas.network import INPUT, Ref
from hwnas.ops import Op, Shape

RESHAPE = "reshape"
"""Another shape of the same elements, in the same order."""
TRANSPOSE = "transpose"
"""Dimensions (without the batch) in the order `numbers`."""
PAD = "pad"
"""Zeros around the image: `numbers` are (top, left, bottom, right)."""
SHIFT = "shift"
"""Plus one number."""
SCALE = "scale"
"""Times one number."""
BIAS = "bias"
"""Plus a constant for each channel."""
UNKNOWN_KIND = "unknown"


@dataclass(slots=True)
class Step:
    """One step of the forward pass.

    Attributes:
        kind: the operator's kind, or one of the kinds above.
        inputs: where its activations come from; a node is an index into ``Graph.steps``.
        outputs: shapes of what it gives, without the batch.
        name: what a user would recognise it by.
        op: the operator, where it is one.
        numbers: what the kinds above need.
        index: its place in ``Graph.steps``.
    """

    kind: str
    inputs: list[Ref]
    outputs: tuple[Shape, ...]
    name: str
    op: Op | None = None
    numbers: tuple[float, ...] = ()
    index: int = -1


@dataclass(frozen=True, slots=True)
class Value:
    """An activation while a model is read: where it comes from and its shape without the batch."""

    ref: Ref
    shape: Shape


class Graph:
    """Steps in topological order."""

    def __init__(self, input_shape: Shape) -> None:
        self.input = Value(INPUT, input_shape)
        self.steps: list[Step] = []

    def add(self, op: Op, inputs: Sequence[Value], name: str, shape: Shape | None = None) -> Value:
        """Appends an operator with one output, seen by its consumers as `shape` (default: as it is).

        Raises:
            ValueError: the operator does not take the shapes that arrive, or gives something else.
        """
        if op.inputs != tuple(value.shape for value in inputs):
            raise ValueError(f"{name}: {op.key} is fed {[value.shape for value in inputs]}")
        value = self._append(Step(op.kind, [value.ref for value in inputs], op.outputs, name, op))[0]
        return self.reshape(value, value.shape if shape is None else shape, name)

    def split(self, value: Value, sections: Sequence[int], name: str) -> tuple[Value, ...]:
        """Appends a split of the channels."""
        op = Op.split(value.shape, sections)
        return self._append(Step(op.kind, [value.ref], op.outputs, name, op))

    def reshape(self, value: Value, shape: Shape, name: str) -> Value:
        """The same elements in another shape.

        Raises:
            ValueError: there are not as many.
        """
        if value.shape == shape:
            return value
        if math.prod(value.shape) != math.prod(shape):
            raise ValueError(f"{name}: {value.shape} does not reshape to {shape}")
        return self._append(Step(RESHAPE, [value.ref], (shape,), name))[0]

    def transpose(self, value: Value, order: Sequence[int], name: str) -> Value:
        """The dimensions in another order; a reshape where only dimensions of 1 move."""
        shape = tuple(value.shape[axis] for axis in order)
        moved = [axis for axis in order if value.shape[axis] > 1]
        if moved == sorted(moved):
            return self.reshape(value, shape, name)
        return self.other(TRANSPOSE, value, name, tuple(order), shape)

    def other(
        self, kind: str, value: Value, name: str, numbers: Sequence[float] = (), shape: Shape | None = None
    ) -> Value:
        """Appends a step that is no operator by itself."""
        outputs = (value.shape if shape is None else shape,)
        return self._append(Step(kind, [value.ref], outputs, name, numbers=tuple(numbers)))[0]

    def unknown(self, inputs: Sequence[Value], outputs: Sequence[Shape], name: str) -> tuple[Value, ...]:
        """Appends what is not understood."""
        return self._append(Step(UNKNOWN_KIND, [value.ref for value in inputs], tuple(outputs), name))

    def _append(self, step: Step) -> tuple[Value, ...]:
        step.index = len(self.steps)
        self.steps.append(step)
        return tuple(Value((step.index, port), shape) for port, shape in enumerate(step.outputs))


def is_channel_axis(axis: int, shape: Shape) -> bool:
    """Whether `axis`, counted with the batch, is the channels of `shape`."""
    return axis in (1, -len(shape))


def broadcast_mul(left: Value, right: Value) -> tuple[Op, list[Value]]:
    """The product of two activations, the larger one first, one of which may be (C, 1, 1).

    Raises:
        ValueError: the smaller one does not spread over the larger one.
    """
    if math.prod(left.shape) < math.prod(right.shape):
        left, right = right, left
    if len(left.shape) != len(right.shape) or any(
        other not in (1, size) for size, other in zip(left.shape, right.shape, strict=True)
    ):
        raise ValueError(f"{right.shape} does not spread over {left.shape}")
    return Op.mul(left.shape, right.shape), [left, right]
