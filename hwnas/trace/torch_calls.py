"""What is understood of torch's layers and functions: each call becomes a step of the graph, or is refused.

A handler has the parameters of the torch function it stands for. It refuses what it does not understand with a
`ValueError` (or by not taking an argument), and the reader then names the call as unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hwnas.nn.blocks import Dropout
from hwnas.nn.depthwise import DepthwiseConv2d
from hwnas.nn.quantise import QuantConv2d
from hwnas.ops import Op, Shape
from hwnas.trace.graph import BIAS, PAD, SCALE, SHIFT, Graph, Value, broadcast_mul, is_channel_axis


class Call:
    """One call while it is read: the graph, its name, and the shapes of what it gives (without the batch)."""

    def __init__(self, graph: Graph, name: str, shapes: list[Shape]) -> None:
        self.graph = graph
        self.name = name
        self.shapes = shapes

    @property
    def shape(self) -> Shape:
        return self.shapes[0]

    def add(self, op: Op, *inputs: Value) -> Value:
        return self.graph.add(op, inputs, self.name, self.shape)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value if len(value) == 2 else (value[0], value[0])
    return int(first), int(second)


def _activation(call: Call, x: Value, act: str) -> Value:
    return call.add(Op.activation(x.shape, act), x)


def _act(act: str) -> Callable[..., Value]:
    return lambda call, x, *_args, **_options: _activation(call, x, act)


def _same(_call: Call, x: Value, *_args: Any, **_options: Any) -> Value:
    return x


def _reshape(call: Call, x: Value, *_args: Any, **_options: Any) -> Value:
    return call.graph.reshape(x, call.shape, call.name)


def _conv2d(
    call: Call,
    x: Value,
    weight: torch.Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    kernel, dilations = _pair(tuple(weight.shape[2:])), _pair(dilation)
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        before = [total // 2 for total in totals]
        pads: Any = (*before, totals[0] - before[0], totals[1] - before[1])
    else:
        pads = (0, 0) if padding == "valid" else _pair(padding)
    op = Op.conv(
        x.shape,
        weight.shape[0],
        kernel=kernel,
        stride=_pair(stride),
        padding=pads,
        dilation=dilations,
        groups=groups,
        bias=bias is not None,
    )
    if weight.shape[1] * groups != x.shape[0]:
        raise ValueError("the weight does not fit")
    return call.add(op, x)


def _conv_layer(call: Call, layer: nn.Conv2d, x: Value) -> Value:
    if layer.padding_mode != "zeros":
        raise ValueError(layer.padding_mode)
    return _conv2d(call, x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _quant_conv(call: Call, layer: QuantConv2d, x: Value) -> Value:
    value = _conv_layer(call, layer, x)
    step = call.graph.steps[-1]
    assert step.op is not None
    step.op = replace(step.op, bits=layer.bits)
    return value


def _linear(call: Call, x: Value, weight: torch.Tensor, bias: Any = None) -> Value:
    return call.add(Op.linear(weight.shape[1], weight.shape[0], bias=bias is not None), x)


def _norm(call: Call, x: Value, *_args: Any, **_options: Any) -> Value:
    return call.add(Op.affine(x.shape), x)


def _max_pool(
    call: Call,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    if _pair(dilation) != (1, 1) or return_indices:
        raise ValueError("dilation")
    return _pool(call, "max_pool", x, kernel_size, stride, padding, ceil_mode)


def _avg_pool(
    call: Call,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    del count_include_pad
    if divisor_override is not None:
        raise ValueError("no mean")
    return _pool(call, "avg_pool", x, kernel_size, stride, padding, ceil_mode)


def _pool(call: Call, kind: str, x: Value, kernel: Any, stride: Any, padding: Any, ceil_mode: bool) -> Value:
    strides = _pair(stride) if stride else None
    return call.add(
        Op.pool(kind, x.shape, kernel=_pair(kernel), stride=strides, padding=_pair(padding), ceil_mode=ceil_mode), x
    )


def _adaptive_avg_pool(call: Call, x: Value, *_args: Any, **_options: Any) -> Value:
    _, height, width = x.shape
    _, out_height, out_width = call.shape
    if (out_height, out_width) == (height, width):
        return x
    if (out_height, out_width) == (1, 1):
        return call.add(Op.global_avg_pool(x.shape), x)
    if height % out_height or width % out_width:
        raise ValueError("windows of several sizes")
    return call.add(Op.pool("avg_pool", x.shape, kernel=(height // out_height, width // out_width)), x)


def _mean(call: Call, x: Value, dim: Any = None, **_options: Any) -> Value:
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    if len(x.shape) != 3 or {axis % 4 for axis in dims} != {2, 3}:
        raise ValueError("not the mean of an image")
    return call.add(Op.global_avg_pool(x.shape), x)


def _add(call: Call, x: Any, y: Any, *, alpha: float = 1) -> Value:
    if alpha != 1:
        raise ValueError("alpha")
    if isinstance(x, Value) and isinstance(y, Value):
        return call.add(Op.add(x.shape), x, y)
    value, constant = (x, y) if isinstance(x, Value) else (y, x)
    if isinstance(constant, int | float):
        return call.graph.other(SHIFT, value, call.name, (float(constant),))
    if tuple(constant.shape)[-len(value.shape) :] == (value.shape[0], *[1] * (len(value.shape) - 1)):
        return call.graph.other(BIAS, value, call.name)
    raise ValueError("a constant of another shape")


def _sub(call: Call, x: Value, y: float) -> Value:
    return call.graph.other(SHIFT, x, call.name, (-float(y),))


def _mul(call: Call, x: Any, y: Any) -> Value:
    if isinstance(x, Value) and isinstance(y, Value):
        op, inputs = broadcast_mul(x, y)
        return call.add(op, *inputs)
    value, constant = (x, y) if isinstance(x, Value) else (y, x)
    return _scale(call, value, float(constant))


def _div(call: Call, x: Value, y: float) -> Value:
    return _scale(call, x, 1 / float(y))


def _scale(call: Call, value: Value, factor: float) -> Value:
    if not isinstance(value, Value):
        raise TypeError("a constant divided by an activation")
    return value if factor == 1 else call.graph.other(SCALE, value, call.name, (factor,))


def _clamp(call: Call, x: Value, min: Any = None, max: Any = None, **options: Any) -> Value:  # noqa: A002
    low, high = options.get("min_val", min), options.get("max_val", max)
    acts = {(0, 6): "relu6", (0, None): "relu"}
    if (low, high) not in acts:
        raise ValueError("no activation that is known")
    return _activation(call, x, acts[low, high])


def _hardtanh(call: Call, x: Value, min_val: float = -1.0, max_val: float = 1.0, **_options: Any) -> Value:
    return _clamp(call, x, min_val, max_val)


def _cat(call: Call, tensors: Sequence[Value], dim: int = 0, **options: Any) -> Value:
    if not is_channel_axis(options.get("axis", dim), call.shape):
        raise ValueError("not over the channels")
    return tensors[0] if len(tensors) == 1 else call.add(Op.concat([one.shape for one in tensors]), *tensors)


def _split(call: Call, x: Value, _sizes: Any, dim: int = 0) -> tuple[Value, ...]:
    if not is_channel_axis(dim, x.shape):
        raise ValueError("not over the channels")
    return call.graph.split(x, [shape[0] for shape in call.shapes], call.name)


def _getitem(call: Call, x: Any, index: Any) -> Any:
    if not isinstance(x, Value):
        return x[index]
    if math.prod(x.shape) != math.prod(call.shape):
        raise ValueError("a part of it")
    return _reshape(call, x)


def _permute(call: Call, x: Value, *dims: Any) -> Value:
    order = tuple(dims[0]) if len(dims) == 1 else dims
    rank = len(x.shape) + 1
    axes = [axis % rank for axis in order]
    if axes[0] != 0:
        raise ValueError("moves the batch")
    return call.graph.transpose(x, [axis - 1 for axis in axes[1:]], call.name)


def _transpose(call: Call, x: Value, dim0: int, dim1: int) -> Value:
    axes = list(range(len(x.shape) + 1))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return _permute(call, x, axes)


def _pad(call: Call, x: Value, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Value:
    left, right, top, bottom = (*pad, 0, 0)[:4]
    if mode != "constant" or value not in (None, 0) or len(pad) > 4 or min(pad) < 0:
        raise ValueError(mode)
    return call.graph.other(PAD, x, call.name, (top, left, bottom, right), call.shape) if any(pad) else x


def _shuffle(call: Call, x: Value, groups: int) -> Value:
    return call.add(Op.shuffle(x.shape, groups), x)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _norm,
    "relu": _act("relu"),
    "relu6": _act("relu6"),
    "hardswish": _act("hardswish"),
    "silu": _act("silu"),
    "sigmoid": _act("sigmoid"),
    "hardsigmoid": _act("hardsigmoid"),
    "tanh": _act("tanh"),
    "gelu": _act("gelu"),
    "leaky_relu": _act("leakyrelu"),
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clip": _clamp,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
    "mean": _mean,
    "add": _add,
    "iadd": _add,
    "sub": _sub,
    "isub": _sub,
    "mul": _mul,
    "imul": _mul,
    "multiply": _mul,
    "div": _div,
    "truediv": _div,
    "cat": _cat,
    "concat": _cat,
    "concatenate": _cat,
    "chunk": _split,
    "split": _split,
    "getitem": _getitem,
    "permute": _permute,
    "transpose": _transpose,
    "pad": _pad,
    "channel_shuffle": _shuffle,
    "stochastic_depth": _same,
    **dict.fromkeys(
        ["dropout", "dropout2d", "feature_dropout", "contiguous", "clone", "detach", "alpha_dropout"], _same
    ),
    **dict.fromkeys(["view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"], _reshape),
}
"""What is understood of torch's functions and a tensor's methods, by name."""

MODULES: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Conv2d: _conv_layer,
    DepthwiseConv2d: _conv_layer,
    QuantConv2d: _quant_conv,
    nn.Linear: lambda call, layer, x: _linear(call, x, layer.weight, layer.bias),
    nn.MaxPool2d: lambda call, layer, x: _max_pool(
        call, x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode, layer.return_indices
    ),
    nn.AvgPool2d: lambda call, layer, x: _avg_pool(
        call, x, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, True, layer.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda call, _layer, x: _adaptive_avg_pool(call, x),
    nn.Hardtanh: lambda call, layer, x: _hardtanh(call, x, layer.min_val, layer.max_val),
    nn.ZeroPad2d: lambda call, layer, x: _pad(call, x, layer.padding),
    nn.ChannelShuffle: lambda call, layer, x: _shuffle(call, x, layer.groups),
    **dict.fromkeys([nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm], lambda call, _layer, x: _norm(call, x)),
    **dict.fromkeys(
        [nn.Dropout, Dropout, nn.Dropout2d, nn.AlphaDropout, nn.Identity], lambda call, _layer, x: _same(call, x)
    ),
    **dict.fromkeys([nn.Flatten, nn.Unflatten], lambda call, _layer, x: _reshape(call, x)),
}
"""What is understood of torch's layers; exact types, because a subclass may compute something else."""

_ACT_LAYERS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Tanh: "tanh",
    nn.GELU: "gelu",
    nn.LeakyReLU: "leakyrelu",
}
MODULES |= dict.fromkeys(_ACT_LAYERS, lambda call, layer, x: _activation(call, x, _ACT_LAYERS[type(layer)]))
