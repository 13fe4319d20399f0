"""The mixed-precision spaces of SPOS (Guo et al. 2020, section 4, table 6), and small ones of the same blocks.

A ResNet (He et al. 2016) whose residual blocks are quantised. Each block chooses the bits of its weights and of the
activations that its convolutions read, both convolutions the same, and the width between them ("bottleneck channels"):
18 choices a block. Stem and classifier stay as they are. The 1x1 convolution of a shortcut, which the paper does not
speak of, has the bits of its block: only so are the BitOps of table 6 reproduced.

Choices are named ``w2a4@1.5x``: weight bits, activation bits, width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from hwnas.network import NetworkBuilder
from hwnas.ops import Bits, Op, Shape
from hwnas.spaces.base import Family
from hwnas.spaces.chain import Block, ChainSpace, ConvSpec, NetSpec, Slice, Stage, slots_of

BITS: tuple[tuple[int, int], ...] = ((1, 2), (2, 2), (1, 4), (2, 4), (3, 4), (4, 4))
"""Bits of weights and activations that a block chooses from."""

HALVES = (1, 2, 3)
"""Widths inside a block in halves of the default: 0.5, 1 and 1.5 times."""


@dataclass(frozen=True, slots=True)
class MaxPool(Block):
    """A max pooling, fixed."""

    kernel: int = 3
    stride: int = 2

    def wire(self, builder: NetworkBuilder, prefix: str) -> None:
        op = Op.pool(
            "max_pool", builder.shape(), kernel=self.kernel, stride=self.stride, padding=(self.kernel - 1) // 2
        )
        builder.add(op, name=f"{prefix}pool")


@dataclass(frozen=True, slots=True)
class QuantBlock(Block):
    """A residual block of two 3x3 convolutions with BatchNorm, quantised.

    Attributes:
        cin, cout: channels in and out.
        mid: channels between the convolutions.
        stride: of the first convolution, and of the shortcut.
        bits: of the weights and the activations of all its convolutions.
    """

    cin: int
    cout: int
    mid: int
    stride: int
    bits: tuple[int, int]

    def shortcut(self) -> tuple[ConvSpec, ...]:
        """The 1x1 convolution that the input goes through where it changes shape; else nothing."""
        if self.stride == 1 and self.cin == self.cout:
            return ()
        return (self._conv("shortcut", self.cin, self.cout, 1, self.stride, ""),)

    def main(self) -> tuple[ConvSpec, ConvSpec]:
        """The convolutions; the ReLU of the second comes after the add."""
        return (
            self._conv("conv1", self.cin, self.mid, 3, self.stride, "relu"),
            self._conv("conv2", self.mid, self.cout, 3, 1, ""),
        )

    def _conv(self, name: str, cin: int, cout: int, kernel: int, stride: int, act: str) -> ConvSpec:
        bits: Bits = self.bits
        return ConvSpec(name, cin, cout, kernel, stride, act=act, bits=bits)

    def wire(self, builder: NetworkBuilder, prefix: str) -> None:
        entry = kept = builder.last
        for spec in self.shortcut():
            kept = builder.add(spec.op(builder.shape(entry)), (entry,), prefix + spec.name)
        first, second = self.main()
        hidden = builder.add(first.op(builder.shape(entry)), (entry,), prefix + first.name)
        builder.add(second.op(builder.shape(hidden), residual=True, act="relu"), (hidden, kept), prefix + second.name)


@dataclass(frozen=True, slots=True)
class ResNetTable:
    """A space of this family: the stem's width, kernel and stride, whether a max pooling follows it, the stages."""

    stem: int
    stem_kernel: int
    stem_stride: int
    pool: bool
    stages: tuple[Stage, ...]


def _imagenet(*layers: int) -> ResNetTable:
    widths, strides = (64, 128, 256, 512), (1, 2, 2, 2)
    return ResNetTable(64, 7, 2, True, tuple(map(Stage, widths, layers, strides)))


def _tiny(*layers: int) -> ResNetTable:
    widths, strides = (16, 32, 64), (1, 2, 2)
    return ResNetTable(16, 3, 1, False, tuple(map(Stage, widths, layers, strides)))


RESNET18 = _imagenet(2, 2, 2, 2)
"""8 blocks, 18^8 = 1.1e10 architectures."""

RESNET34 = _imagenet(3, 4, 6, 3)
"""16 blocks, 18^16 = 1.2e20 architectures."""

RESNET18_TINY = _tiny(2, 2, 2)
"""The same blocks and choices for images of 28 to 64 pixels."""

RESNET34_TINY = _tiny(3, 4, 3)
"""The same, deeper."""


def _frame(table: ResNetTable, input_shape: Shape, num_classes: int) -> NetSpec:
    stem = ConvSpec("stem", input_shape[0], table.stem, table.stem_kernel, table.stem_stride, act="relu")
    blocks = (MaxPool(),) if table.pool else ()
    return NetSpec(input_shape, num_classes, stem, blocks, head=None, width=table.stages[-1].width)


def _choices(cin: int, cout: int, stride: int) -> dict[str, Block | None]:
    """All bits at all widths; they share the weights of the widest."""
    widest = QuantBlock(cin, cout, cout * max(HALVES) // 2, stride, BITS[-1])
    return {
        f"w{bits[0]}a{bits[1]}@{halves / 2:.1f}x": Slice(
            QuantBlock(cin, cout, cout * halves // 2, stride, bits), widest, "block"
        )
        for bits in BITS
        for halves in HALVES
    }


def _space(table: ResNetTable, name: str, input_shape: Shape, num_classes: int) -> ChainSpace:
    slots = [_choices(*slot) for slot in slots_of(table.stages, table.stem)]
    return ChainSpace(name, _frame(table, input_shape, num_classes), slots, widths=len(HALVES))


def uniform_resnet(table: ResNetTable, bits: int) -> NetSpec:
    """The ResNet with the same bits for all weights and activations of its blocks, at its own widths."""
    blocks = [
        QuantBlock(cin, cout, cout, stride, (bits, bits)) for cin, cout, stride in slots_of(table.stages, table.stem)
    ]
    frame = _frame(table, (3, 224, 224), 1000)
    return NetSpec(
        frame.input_shape, frame.num_classes, frame.stem, (*frame.blocks, *blocks), head=None, width=frame.width
    )


FAMILIES = {
    "resnet18-quant": Family(partial(_space, RESNET18), 224, (64, 1024), 1000),
    "resnet18-quant-tiny": Family(partial(_space, RESNET18_TINY), 28, (28, 64), 10),
    "resnet34-quant": Family(partial(_space, RESNET34), 224, (64, 1024), 1000),
    "resnet34-quant-tiny": Family(partial(_space, RESNET34_TINY), 28, (28, 64), 10),
}
