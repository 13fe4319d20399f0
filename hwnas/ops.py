"""`Op`: one operator as it is deployed, and the plain arithmetic of what it costs.

An `Op` is what a deployment runtime runs as one kernel: a convolution with its BatchNorm folded, its activation and an
optional residual add, a pooling, a concatenation. It has shapes and attributes but no weights and no batch: shapes are
those of ONE image, channels first, e.g. ``(32, 112, 112)``; the batch belongs to the table an operator is measured in.

The canonical key is readable and can be parsed back:

>>> Op.conv((32, 112, 112), 16, kernel=1, norm=True, residual=True).key
'conv 32x112x112,16x112x112>16x112x112 bias add'
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

Shape = tuple[int, ...]
"""Shape of one image's tensor, channels first, no batch: ``(C, H, W)`` or ``(features,)``."""

Bits = tuple[()] | tuple[int, int]
"""Bits of the weights and of the activations that a quantised operator reads; empty where it is not quantised."""

ACTIVATIONS = (
    "",
    "relu",
    "relu6",
    "hardswish",
    "silu",
    "sigmoid",
    "hardsigmoid",
    "tanh",
    "gelu",
    "leakyrelu",
)
"""Activations an `Op` can carry; the empty string is none."""

KINDS = (
    "conv",
    "linear",
    "max_pool",
    "avg_pool",
    "global_avg_pool",
    "add",
    "mul",
    "concat",
    "split",
    "shuffle",
    "act",
    "affine",
    "to_blocked",
    "to_plain",
)
"""What an `Op` can be. `affine` is a BatchNorm that no convolution can absorb, `mul` broadcasts (squeeze and
excitation), `split` cuts the channels into `sections`; `shuffle` is the channel shuffle over `groups`. `to_blocked`
and `to_plain` are conversions of layout that a runtime adds (`hwnas.latency.lowering`): no network has them."""

PLAIN = "plain"
"""The layout of an operator that runs on plain tensors where it could run on blocks of channels too."""


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


@dataclass(frozen=True, slots=True)
class Op:
    """One deployed operator. Build it with the class methods, which compute the output shape and check the input.

    Attributes:
        kind: one of `KINDS`.
        inputs: shapes of the activations that go in. With `residual` the last one is what is added.
        output: shape of what comes out (of a `split`, the input's shape).
        kernel, stride, dilation: (height, width) of convolutions and poolings.
        padding: (top, left, bottom, right).
        groups: of a convolution or a shuffle.
        bias: the layer has a bias of its own.
        norm: a BatchNorm is folded into it. Deployed it is a bias; in training it has 2 x channels parameters.
        act: one of `ACTIVATIONS`, applied last (after the residual add).
        residual: adds its last input before the activation.
        sections: channels of each output of a `split`.
        bits: of a quantised convolution.
        layout: empty, or `PLAIN`: set by lowering only, on operators that run in either layout.
    """

    kind: str
    inputs: tuple[Shape, ...]
    output: Shape
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = False
    norm: bool = False
    act: str = ""
    residual: bool = False
    sections: tuple[int, ...] = ()
    layout: str = ""
    bits: Bits = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown operator kind {self.kind!r}: one of {', '.join(KINDS)}")
        if self.act not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.act!r}: one of {', '.join(a for a in ACTIVATIONS if a)}")
        if self.layout not in ("", PLAIN):
            raise ValueError(f"unknown layout {self.layout!r}: {PLAIN} or none")
        if self.bits and (self.kind != "conv" or len(self.bits) != 2 or not set(self.bits) <= set(range(1, 9))):
            raise ValueError(f"{self.kind}: bits {self.bits} are not those of a convolution, 1 to 8 and 1 to 8")
        for shape in (*self.inputs, self.output):
            if not shape or min(shape) < 1:
                raise ValueError(f"{self.kind}: shape {shape} has a dimension below 1")
        if min(self.groups, *self.kernel, *self.stride, *self.dilation, *self.sections) < 1 or min(self.padding) < 0:
            raise ValueError(f"{self.kind}: groups, kernel, stride, dilation and sections are 1 or more, padding is 0 "
                             "or more")  # fmt: skip
        if self.kind == "conv" and not len(self.inputs[0]) == len(self.output) == 3:
            raise ValueError(f"conv: needs image shapes (channels, height, width), not {self.inputs[0]}, {self.output}")
        if self.kind in ("conv", "shuffle") and (self.inputs[0][0] % self.groups or self.output[0] % self.groups):
            raise ValueError(f"{self.kind}: {self.inputs[0][0]} to {self.output[0]} channels do not divide into "
                             f"{self.groups} groups")  # fmt: skip

    # -- making them -------------------------------------------------------------------------------------------------

    @classmethod
    def conv(
        cls,
        shape: Shape,
        out_channels: int,
        *,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | tuple[int, int, int, int] | None = None,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        norm: bool = False,
        act: str = "",
        residual: bool = False,
        bits: Bits = (),
    ) -> Op:
        """A 2-D convolution of an image of `shape` (C, H, W). Padding None is "same" for odd kernels."""
        kh, kw = _pair(kernel)
        sh, sw = _pair(stride)
        dh, dw = _pair(dilation)
        if padding is None:
            padding = (dh * (kh // 2), dw * (kw // 2))
        pads = _pads(padding)
        height, width = _spatial(shape, (kh, kw), (sh, sw), pads, (dh, dw))
        output = (out_channels, height, width)
        inputs = (shape, output) if residual else (shape,)
        return cls(
            "conv", inputs, output, (kh, kw), (sh, sw), pads, (dh, dw), groups, bias, norm, act, residual, bits=bits
        )

    @classmethod
    def linear(cls, in_features: int, out_features: int, *, bias: bool = True, act: str = "") -> Op:
        """A fully connected layer on a flat feature vector."""
        return cls("linear", ((in_features,),), (out_features,), bias=bias, act=act)

    @classmethod
    def pool(
        cls,
        kind: str,
        shape: Shape,
        *,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] | tuple[int, int, int, int] = 0,
        ceil_mode: bool = False,
    ) -> Op:
        """A `max_pool` or `avg_pool`. `ceil_mode` becomes the padding at the end that gives the same output shape."""
        kh, kw = _pair(kernel)
        sh, sw = _pair(stride) if stride is not None else (kh, kw)
        top, left, bottom, right = _pads(padding)
        if ceil_mode:
            bottom += _ceil_extra(shape[1], kh, sh, top, bottom)
            right += _ceil_extra(shape[2], kw, sw, left, right)
        pads = (top, left, bottom, right)
        height, width = _spatial(shape, (kh, kw), (sh, sw), pads, (1, 1))
        return cls(kind, (shape,), (shape[0], height, width), (kh, kw), (sh, sw), pads)

    @classmethod
    def global_avg_pool(cls, shape: Shape) -> Op:
        """The mean over height and width: (C, H, W) to (C, 1, 1)."""
        return cls("global_avg_pool", (shape,), (shape[0], 1, 1))

    @classmethod
    def add(cls, shape: Shape, *, act: str = "") -> Op:
        """The sum of two tensors of one shape, where no convolution can absorb it."""
        return cls("add", (shape, shape), shape, act=act)

    @classmethod
    def mul(cls, shape: Shape, other: Shape, *, act: str = "") -> Op:
        """A product of `shape` with `other`, which may be (C, 1, 1)."""
        return cls("mul", (shape, other), shape, act=act)

    @classmethod
    def concat(cls, shapes: Sequence[Shape]) -> Op:
        """A concatenation over channels."""
        first = shapes[0]
        return cls("concat", tuple(shapes), (sum(shape[0] for shape in shapes), *first[1:]))

    @classmethod
    def split(cls, shape: Shape, sections: Sequence[int]) -> Op:
        """The channels cut into `sections`; one output each."""
        if sum(sections) != shape[0]:
            raise ValueError(f"split: sections {tuple(sections)} do not add up to {shape[0]} channels")
        return cls("split", (shape,), shape, sections=tuple(sections))

    @classmethod
    def shuffle(cls, shape: Shape, groups: int) -> Op:
        """The channel shuffle of ShuffleNet over `groups`."""
        return cls("shuffle", (shape,), shape, groups=groups)

    @classmethod
    def activation(cls, shape: Shape, act: str) -> Op:
        """An activation that no operator before it can absorb."""
        return cls("act", (shape,), shape, act=act)

    @classmethod
    def affine(cls, shape: Shape, *, act: str = "") -> Op:
        """A BatchNorm that stands alone at deployment (before a convolution, as in DenseNet)."""
        return cls("affine", (shape,), shape, norm=True, act=act)

    @classmethod
    def conversion(cls, shape: Shape, *, blocked: bool) -> Op:
        """A tensor brought to the blocked layout, or back to the plain one."""
        return cls("to_blocked" if blocked else "to_plain", (shape,), shape)

    # -- what they cost ----------------------------------------------------------------------------------------------

    @property
    def depthwise(self) -> bool:
        """A convolution with one filter per channel."""
        return self.kind == "conv" and self.groups == self.inputs[0][0] == self.output[0] and self.groups > 1

    @property
    def outputs(self) -> tuple[Shape, ...]:
        """Shapes of everything that comes out: one, or one a section of a `split`."""
        if self.kind == "split":
            return tuple((section, *self.output[1:]) for section in self.sections)
        return (self.output,)

    @property
    def weight_count(self) -> int:
        """Weights of the convolution or linear layer, without bias and BatchNorm."""
        if self.kind == "conv":
            return self.output[0] * (self.inputs[0][0] // self.groups) * self.kernel[0] * self.kernel[1]
        if self.kind == "linear":
            return self.inputs[0][0] * self.output[0]
        return 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image (the papers' "FLOPs"): convolutions and linear layers only."""
        if self.kind == "conv":
            return self.weight_count * self.output[1] * self.output[2]
        return self.weight_count

    @property
    def bitops(self) -> int:
        """MACs times weight bits times activation bits of a quantised convolution (SPOS, table 6); else zero."""
        return self.macs * self.bits[0] * self.bits[1] if self.bits else 0

    @property
    def conv_fc_params(self) -> int:
        """Parameters of convolutions and linear layers with their biases, without BatchNorm (as AtomNAS counts)."""
        return self.weight_count + (self.output[0] if self.bias and self.weight_count else 0)

    @property
    def params(self) -> int:
        """Parameters of the module it was made from: weights, bias, BatchNorm's scale and shift, a quantiser's clip."""
        return self.conv_fc_params + (2 * self.output[0] if self.norm else 0) + (1 if self.bits else 0)

    @property
    def deployed_params(self) -> int:
        """Parameters that the device holds: weights and, with a bias or a folded BatchNorm, one per channel."""
        if self.kind == "affine":
            return 2 * self.output[0]
        return self.weight_count + (self.output[0] if (self.bias or self.norm) and self.weight_count else 0)

    def traffic_bytes(self, element_bytes: int = 4, batch_size: int = 1) -> int:
        """Bytes that cross memory when nothing is cached: the batch's activations in and out, the weights once."""
        activations = sum(math.prod(shape) for shape in self.inputs) + math.prod(self.output)
        return element_bytes * (batch_size * activations + self.deployed_params)

    # -- the key -----------------------------------------------------------------------------------------------------

    def deployed(self) -> Op:
        """The operator as a device sees it: a folded BatchNorm is a bias. Equal keys mean equal `deployed()`."""
        if self.norm and self.kind != "affine":
            return replace(self, norm=False, bias=True)
        return self

    def in_layout(self, layout: str) -> Op:
        """The same operator, in `layout`."""
        return replace(self, layout=layout)

    @property
    def key(self) -> str:
        """Canonical readable key of the deployed operator; `parse` reads it."""
        parts = [self.kind, ",".join(map(_dims, self.inputs)) + ">" + _dims(self.output)]
        windowed = self.kind in ("conv", "max_pool", "avg_pool")
        if windowed and self.kernel != (1, 1):
            parts.append("k" + _short(self.kernel))
        if windowed and self.stride != (1, 1):
            parts.append("s" + _short(self.stride))
        if any(self.padding):
            top, left, bottom, right = self.padding
            symmetric = (top, left) == (bottom, right)
            parts.append("p" + (_short((top, left)) if symmetric else "x".join(map(str, self.padding))))
        if self.dilation != (1, 1):
            parts.append("d" + _short(self.dilation))
        if self.groups != 1:
            parts.append(f"g{self.groups}")
        if self.sections:
            parts.append("c" + "x".join(map(str, self.sections)))
        if self.kind in ("conv", "linear") and (self.bias or self.norm):
            parts.append("bias")
        if self.bits:
            parts.append(f"w{self.bits[0]}a{self.bits[1]}")
        if self.residual:
            parts.append("add")
        if self.act:
            parts.append(self.act)
        if self.layout:
            parts.append(self.layout)
        return " ".join(parts)

    @classmethod
    def parse(cls, key: str) -> Op:
        """The deployed operator that `key` names.

        Raises:
            ValueError: the text is not a canonical key.
        """
        try:
            return _parse(key)
        except (ValueError, IndexError, TypeError) as error:
            raise ValueError(f"not an operator key: {key[:200]!r} ({error})") from None


def _pads(padding: int | tuple[int, ...]) -> tuple[int, int, int, int]:
    if isinstance(padding, int):
        return (padding, padding, padding, padding)
    if len(padding) == 2:
        return (padding[0], padding[1], padding[0], padding[1])
    top, left, bottom, right = padding
    return (top, left, bottom, right)


def _spatial(
    shape: Shape,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilation: tuple[int, int],
) -> tuple[int, int]:
    if len(shape) != 3:
        raise ValueError(f"needs an image shape (channels, height, width), got {shape}")
    height = (shape[1] + pads[0] + pads[2] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    width = (shape[2] + pads[1] + pads[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    return height, width


def _ceil_extra(size: int, kernel: int, stride: int, before: int, after: int) -> int:
    """Padding at the end that makes floor division give what ceil mode gives (a window must start inside the image)."""
    span = size + before + after - kernel
    out = -(-span // stride) + 1
    if (out - 1) * stride >= size + before:
        out -= 1
    return max(0, (out - 1) * stride - span)


def _dims(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _short(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


_BITS = re.compile(r"w(\d)a(\d)")
_FIELD = re.compile(r"^([kspdgc])(\d+(?:x\d+)*)$")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split("x"))


def _parse(key: str) -> Op:
    kind, shapes, *rest = key.split(" ")
    before, after = shapes.split(">")
    op = Op(kind, tuple(_numbers(text) for text in before.split(",")), _numbers(after))
    setters: dict[str, Callable[[Op, tuple[int, ...]], Op]] = {
        "k": lambda op, n: replace(op, kernel=_two(n)),
        "s": lambda op, n: replace(op, stride=_two(n)),
        "p": lambda op, n: replace(op, padding=_pads(n if len(n) != 1 else n * 2)),
        "d": lambda op, n: replace(op, dilation=_two(n)),
        "g": lambda op, n: replace(op, groups=n[0]),
        "c": lambda op, n: replace(op, sections=n),
    }
    for part in rest:
        if part == "bias":
            op = replace(op, bias=True)
        elif part == "add":
            op = replace(op, residual=True)
        elif part == PLAIN:
            op = replace(op, layout=PLAIN)
        elif part in ACTIVATIONS:
            op = replace(op, act=part)
        elif match := _BITS.fullmatch(part):
            op = replace(op, bits=(int(match[1]), int(match[2])))
        elif match := _FIELD.match(part):
            op = setters[match[1]](op, _numbers(match[2]))
        else:
            raise ValueError(f"unknown part {part!r}")
    if kind == "affine":
        op = replace(op, norm=True)
    if op.key != key:
        raise ValueError(f"the canonical form is {op.key!r}")
    return op


def _two(numbers: tuple[int, ...]) -> tuple[int, int]:
    if len(numbers) == 1:
        return (numbers[0], numbers[0])
    first, second = numbers
    return (first, second)
