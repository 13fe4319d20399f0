"""What is understood of ONNX's operators: each node becomes a step of the graph, or is refused.

A handler refuses what it does not understand with a `ValueError`, and the reader then names the node as unknown.
Attributes that later versions of an operator turned into inputs are read from either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from hwnas.ops import Op, Shape
from hwnas.trace.graph import BIAS, PAD, SCALE, SHIFT, Graph, Value, broadcast_mul, is_channel_axis


@dataclass(frozen=True, slots=True)
class Call:
    """One node while it is read, with everything that was read before; `shape` is its first output's, without batch."""

    graph: Graph
    node: onnx.NodeProto
    values: dict[str, Value]
    constants: dict[str, onnx.TensorProto | None]
    shapes: dict[str, tuple[int, ...]]
    shape: Shape

    @property
    def name(self) -> str:
        return self.node.name or self.node.output[0]

    @property
    def x(self) -> Value:
        """The first input, which must be an activation."""
        return self.values[self.node.input[0]]

    def activations(self) -> list[Value]:
        """All inputs, which must be activations."""
        return [self.values[name] for name in self.node.input]

    def given(self, index: int) -> bool:
        """Whether input `index` is there."""
        return len(self.node.input) > index and bool(self.node.input[index])

    def attribute(self, name: str, default: Any = None) -> Any:
        for attribute in self.node.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def constant_shape(self, index: int) -> Shape:
        """Shape of a constant input (a weight)."""
        name = self.node.input[index]
        if name not in self.constants:
            raise ValueError("a weight that is computed from the image")
        if name in self.shapes:
            return self.shapes[name]
        tensor = self.constants[name]
        if tensor is None:
            raise ValueError("a weight of unknown shape")
        return tuple(tensor.dims)

    def constant(self, index: int) -> NDArray[Any]:
        """Value of a constant input."""
        tensor = self.constants[self.node.input[index]]
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError("a constant whose value is not in the file")
        return numpy_helper.to_array(tensor)

    def option(self, name: str, index: int, default: Any = None) -> Any:
        """An attribute that is an input in later versions, as plain numbers."""
        if self.given(index):
            return self.constant(index).tolist()
        return self.attribute(name, default)

    def add(self, op: Op, *inputs: Value) -> Value:
        return self.graph.add(op, inputs, self.name, self.shape)


Result = Value | tuple[Value, ...]


def _pads(call: Call, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    """Padding (top, left, bottom, right), from the numbers or from `auto_pad`."""
    auto = call.attribute("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return tuple(call.attribute("pads", [0, 0, 0, 0]))
    if auto == "VALID":
        return (0, 0, 0, 0)
    totals = []
    for size, k, s, d in zip(call.x.shape[1:], kernel, strides, dilations, strict=True):
        totals.append(max(0, (math.ceil(size / s) - 1) * s + d * (k - 1) + 1 - size))
    before = [total // 2 if auto == "SAME_UPPER" else total - total // 2 for total in totals]
    return (*before, *(total - first for total, first in zip(totals, before, strict=True)))


def _conv(call: Call) -> Value:
    out_channels, per_group, *kernel = call.constant_shape(1)
    kh, kw = kernel
    sh, sw = call.attribute("strides", [1, 1])
    dh, dw = call.attribute("dilations", [1, 1])
    groups = call.attribute("group", 1)
    if per_group * groups != call.x.shape[0]:
        raise ValueError("the weight does not fit")
    top, left, bottom, right = _pads(call, kernel, (sh, sw), (dh, dw))
    op = Op.conv(
        call.x.shape,
        out_channels,
        kernel=(kh, kw),
        stride=(sh, sw),
        padding=(top, left, bottom, right),
        dilation=(dh, dw),
        groups=groups,
        bias=call.given(2),
    )
    return call.add(op, call.x)


def _gemm(call: Call) -> Value:
    if call.attribute("transA", 0) or call.attribute("alpha", 1.0) != 1 or call.attribute("beta", 1.0) != 1:
        raise ValueError("scaled")
    rows, columns = call.constant_shape(1)
    inside, outside = (columns, rows) if call.attribute("transB", 0) else (rows, columns)
    if call.given(2):
        call.constant_shape(2)
    return call.add(Op.linear(inside, outside, bias=call.given(2)), call.x)


def _matmul(call: Call) -> Value:
    inside, outside = call.constant_shape(1)
    return call.add(Op.linear(inside, outside, bias=False), call.x)


def _pool(kind: str) -> Callable[[Call], Value]:
    def read(call: Call) -> Value:
        kh, kw = call.attribute("kernel_shape")
        sh, sw = call.attribute("strides", [1, 1])
        if any(size != 1 for size in call.attribute("dilations", [1, 1])) or len(call.node.output) > 1:
            raise ValueError("dilated")
        top, left, bottom, right = _pads(call, (kh, kw), (sh, sw), (1, 1))
        op = Op.pool(
            kind,
            call.x.shape,
            kernel=(kh, kw),
            stride=(sh, sw),
            padding=(top, left, bottom, right),
            ceil_mode=bool(call.attribute("ceil_mode", 0)),
        )
        return call.add(op, call.x)

    return read


def _mean(call: Call) -> Value:
    axes = call.option("axes", 1)
    if len(call.x.shape) != 3 or {axis % 4 for axis in axes} != {2, 3}:
        raise ValueError("not the mean of an image")
    return call.add(Op.global_avg_pool(call.x.shape), call.x)


def _global_avg_pool(call: Call) -> Value:
    return call.add(Op.global_avg_pool(call.x.shape), call.x)


def _act(act: str) -> Callable[[Call], Value]:
    return lambda call: call.add(Op.activation(call.x.shape, act), call.x)


def _clip(call: Call) -> Value:
    limits = call.option("min", 1), call.option("max", 2)
    acts = {(0, 6): "relu6", (0, None): "relu"}
    if limits not in acts:
        raise ValueError("no activation that is known")
    return _act(acts[limits])(call)


def _hard_sigmoid(call: Call) -> Value:
    alpha, beta = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    if not (math.isclose(alpha, 1 / 6, rel_tol=1e-4) and math.isclose(beta, 0.5)):
        raise ValueError("another slope")
    return _act("hardsigmoid")(call)


def _norm(call: Call) -> Value:
    if call.attribute("training_mode", 0):
        raise ValueError("in training")
    return call.add(Op.affine(call.x.shape), call.x)


def _with_constant(call: Call) -> tuple[Value, NDArray[Any] | float]:
    """The activation and the constant of a sum or product; a constant of one number is a float."""
    left, right = call.node.input
    value, index = (self_value, 1) if (self_value := call.values.get(left)) else (call.values[right], 0)
    if math.prod(call.constant_shape(index)) == 1:
        return value, float(call.constant(index).item())
    return value, np.empty(call.constant_shape(index))


def _is_per_channel(shape: Shape, constant: Shape) -> bool:
    """Whether `constant` (without batch, or with a batch of 1) has one number for each channel of `shape`."""
    wanted = (shape[0], *[1] * (len(shape) - 1))
    return constant in (wanted, (1, *wanted))


def _add(call: Call) -> Value:
    if all(name in call.values for name in call.node.input):
        left, right = call.activations()
        return call.add(Op.add(left.shape), left, right)
    value, constant = _with_constant(call)
    if isinstance(constant, float):
        return call.graph.other(SHIFT, value, call.name, (constant,))
    if not _is_per_channel(value.shape, constant.shape):
        raise ValueError("a constant of another shape")
    return call.graph.other(BIAS, value, call.name)


def _mul(call: Call) -> Value:
    if all(name in call.values for name in call.node.input):
        op, inputs = broadcast_mul(*call.activations())
        return call.add(op, *inputs)
    value, constant = _with_constant(call)
    if not isinstance(constant, float):
        raise ValueError("a constant of many numbers")
    return call.graph.other(SCALE, value, call.name, (constant,))


def _div(call: Call) -> Value:
    divisor = call.constant(1)
    if divisor.size != 1:
        raise ValueError("a constant of many numbers")
    return call.graph.other(SCALE, call.x, call.name, (1 / float(divisor.item()),))


def _concat(call: Call) -> Value:
    values = call.activations()
    if not is_channel_axis(call.attribute("axis"), call.shape):
        raise ValueError("not over the channels")
    return values[0] if len(values) == 1 else call.add(Op.concat([value.shape for value in values]), *values)


def _split(call: Call) -> tuple[Value, ...]:
    if not is_channel_axis(call.attribute("axis", 0), call.x.shape) or not all(call.node.output):
        raise ValueError("not over the channels")
    sections = [call.shapes[name][1] for name in call.node.output]
    return call.graph.split(call.x, sections, call.name)


def _reshape(call: Call) -> Value:
    return call.graph.reshape(call.x, call.shape, call.name)


def _transpose(call: Call) -> Value:
    order = call.attribute("perm")
    if order is None or order[0] != 0:
        raise ValueError("moves the batch")
    return call.graph.transpose(call.x, [axis - 1 for axis in order[1:]], call.name)


def _same(call: Call) -> Value:
    return call.x


def _pad(call: Call) -> Value:
    pads = call.option("pads", 1)
    value = call.option("value", 2, 0)
    if call.attribute("mode", "constant") != "constant" or value != 0 or call.given(3) or len(pads) != 8:
        raise ValueError("no zeros around the image")
    if min(pads) < 0 or any(pads[axis] for axis in (0, 1, 4, 5)):
        raise ValueError("cuts, or pads channels")
    around = (pads[2], pads[3], pads[6], pads[7])
    return call.graph.other(PAD, call.x, call.name, around, call.shape) if any(around) else call.x


NODES: dict[str, Callable[[Call], Result]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MaxPool": _pool("max_pool"),
    "AveragePool": _pool("avg_pool"),
    "GlobalAveragePool": _global_avg_pool,
    "ReduceMean": _mean,
    "Relu": _act("relu"),
    "HardSwish": _act("hardswish"),
    "Swish": _act("silu"),
    "Sigmoid": _act("sigmoid"),
    "HardSigmoid": _hard_sigmoid,
    "Tanh": _act("tanh"),
    "Gelu": _act("gelu"),
    "LeakyRelu": _act("leakyrelu"),
    "Clip": _clip,
    "BatchNormalization": _norm,
    "Add": _add,
    "Sum": _add,
    "Mul": _mul,
    "Div": _div,
    "Concat": _concat,
    "Split": _split,
    "Transpose": _transpose,
    "Pad": _pad,
    **dict.fromkeys(["Reshape", "Flatten", "Squeeze", "Unsqueeze"], _reshape),
    **dict.fromkeys(["Identity", "Dropout", "Cast", "CastLike"], _same),
}
"""What is understood, by the operator's type."""
