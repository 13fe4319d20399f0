"""Nets of the MobileNetV2 family, described once.

A `MobileNet` is a table of layers: stem convolution, inverted bottlenecks (`MBConv`), 1x1 head convolution, global
average pool, linear classifier. `MobileNet.network` turns the table into operators by arithmetic and
`hwnas.nn.blocks.chain_net` turns the same table into a module; a `MobileSpace` is the table with open choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.network import Network, NetworkBuilder
from hwnas.ops import Op, Shape
from hwnas.spaces.base import Arch, Space

if TYPE_CHECKING:
    import torch

    from hwnas.nn.blocks import ChainNet
    from hwnas.nn.supernet import SinglePathSupernet

SKIP = "skip"
"""The choice that leaves a layer out."""


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """A convolution with BatchNorm and, where `act` names one, an activation; "same" padding for odd kernels."""

    name: str
    cin: int
    cout: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    act: str = ""

    def op(self, shape: Shape, *, residual: bool = False) -> Op:
        """The deployed operator on an image of `shape`."""
        return Op.conv(
            shape,
            self.cout,
            kernel=self.kernel,
            stride=self.stride,
            groups=self.groups,
            norm=True,
            act=self.act,
            residual=residual,
        )


@dataclass(frozen=True, slots=True)
class MBConv:
    """An inverted bottleneck: 1x1 expand, depthwise, linear 1x1 project; `expand` 1 has no expand convolution.

    It adds its input where stride is 1 and the width stays (Sandler et al. 2018).
    """

    kernel: int
    expand: int
    cin: int
    cout: int
    stride: int = 1

    @property
    def residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.cin == self.cout

    def convs(self) -> tuple[ConvSpec, ...]:
        """Its convolutions in order; the last one takes the residual."""
        hidden = self.cin * self.expand
        expand = (ConvSpec("expand", self.cin, hidden, act="relu6"),) if self.expand != 1 else ()
        return (
            *expand,
            ConvSpec("depthwise", hidden, hidden, self.kernel, self.stride, groups=hidden, act="relu6"),
            ConvSpec("project", hidden, self.cout),
        )

    def ops(self, shape: Shape) -> tuple[Op, ...]:
        """Its deployed operators on an image of `shape`."""
        return tuple(op for _, op in self.named_ops(shape))

    def named_ops(self, shape: Shape) -> Iterator[tuple[str, Op]]:
        """As `ops`, each with the name of its convolution."""
        for conv in self.convs():
            op = conv.op(shape, residual=self.residual and conv.name == "project")
            yield conv.name, op
            shape = op.output


@dataclass(frozen=True, slots=True)
class MobileNet:
    """One net: everything that its operators and its module are made from.

    Attributes:
        input_shape: one image, channels first.
        num_classes: outputs of the classifier.
        stem: output channels of the first convolution (3x3, stride 2).
        blocks: the bottlenecks in order, those that are left out not among them.
        head: channels of the 1x1 convolution before the pooling.
        dropout: before the classifier, in training.
        norm_eps: BatchNorm's epsilon.
    """

    input_shape: Shape
    num_classes: int
    stem: int
    blocks: tuple[MBConv, ...]
    head: int
    dropout: float = 0.0
    norm_eps: float = 1e-5

    @property
    def stem_conv(self) -> ConvSpec:
        """The first convolution."""
        return ConvSpec("stem", self.input_shape[0], self.stem, kernel=3, stride=2, act="relu6")

    @property
    def head_conv(self) -> ConvSpec:
        """The 1x1 convolution before the pooling."""
        return ConvSpec("head", self.blocks[-1].cout, self.head, act="relu6")

    def head_ops(self, shape: Shape) -> tuple[Op, ...]:
        """Head convolution, pooling and classifier on what the last block gives."""
        conv = self.head_conv.op(shape)
        return (conv, Op.global_avg_pool(conv.output), Op.linear(self.head, self.num_classes))

    def network(self) -> Network:
        """The net as wired operators."""
        builder = NetworkBuilder(self.input_shape)
        builder.add(self.stem_conv.op(self.input_shape), name="stem")
        for index, block in enumerate(self.blocks):
            entry = builder.last
            for name, op in block.named_ops(builder.shape()):
                inputs = (builder.last, entry) if op.residual else None
                builder.add(op, inputs, f"blocks.{index}.{name}")
        for name, op in zip(("head", "pool", "classifier"), self.head_ops(builder.shape()), strict=True):
            builder.add(op, name=name)
        return builder.build()


@dataclass(frozen=True, slots=True)
class Stage:
    """Searchable layers of one width; the first has the stride."""

    width: int
    layers: int
    stride: int


@dataclass(frozen=True, slots=True)
class MobileTable:
    """A searchable `MobileNet`: `first` is the width of the fixed 3x3 bottleneck without expansion after the stem."""

    stem: int
    first: int
    stages: tuple[Stage, ...]
    head: int
    kernels: tuple[int, ...] = (3, 5, 7)
    expands: tuple[int, ...] = (3, 6)
    dropout: float = 0.0
    norm_eps: float = 1e-3


class MobileSpace(Space):
    """Kernel and expansion of every bottleneck, and whether it is there at all.

    A slot can be left out ("skip") where it would have a residual: stride 1 and unchanged width.
    """

    def __init__(self, name: str, table: MobileTable, input_shape: Shape, num_classes: int) -> None:
        self.name = name
        self.input_shape = input_shape
        self.num_classes = num_classes
        self._table = table
        self._fixed = MBConv(kernel=3, expand=1, cin=table.stem, cout=table.first)
        self._choices: list[dict[str, MBConv | None]] = []
        width = table.first
        for stage in table.stages:
            for layer in range(stage.layers):
                stride = stage.stride if layer == 0 else 1
                self._choices.append(_choices(table, width, stage.width, stride))
                width = stage.width
        self.slots = tuple(tuple(choices) for choices in self._choices)
        # A skip never changes the shape, so that the shapes before each slot are those of any architecture.
        self._first_genes = tuple(0 for _ in self.slots)
        shape = self._fixed.ops(self._net(self._first_genes).stem_conv.op(input_shape).output)[-1].output
        self._slot_shapes: list[Shape] = []
        for choices in self._choices:
            self._slot_shapes.append(shape)
            block = next(iter(choices.values()))
            assert block is not None  # the first choice is never the skip
            shape = block.ops(shape)[-1].output
        self._head_shape = shape

    def _blocks(self, genes: tuple[int, ...]) -> Iterator[MBConv | None]:
        for choices, gene in zip(self._choices, genes, strict=True):
            yield list(choices.values())[gene]

    def _net(self, genes: tuple[int, ...]) -> MobileNet:
        table = self._table
        blocks = (self._fixed, *(block for block in self._blocks(genes) if block is not None))
        return MobileNet(
            self.input_shape, self.num_classes, table.stem, blocks, table.head, table.dropout, table.norm_eps
        )

    def net(self, arch: Arch) -> MobileNet:
        """The architecture as a table of layers."""
        self.check(arch)
        return self._net(arch.genes)

    def fixed_ops(self) -> tuple[Op, ...]:
        net = self._net(self._first_genes)
        stem = net.stem_conv.op(self.input_shape)
        return (stem, *self._fixed.ops(stem.output), *net.head_ops(self._head_shape))

    def slot_ops(self, slot: int, choice: int) -> tuple[Op, ...]:
        block = self._choices[slot][self.slots[slot][choice]]
        return block.ops(self._slot_shapes[slot]) if block is not None else ()

    def network(self, arch: Arch) -> Network:
        return self.net(arch).network()

    def build(self, arch: Arch, *, generator: torch.Generator | None = None) -> ChainNet:
        from hwnas.nn.blocks import chain_net

        return chain_net(self.net(arch), generator=generator)

    def supernet(
        self, *, generator: torch.Generator | None = None, zero_init_residual: bool = True
    ) -> SinglePathSupernet:
        from hwnas.nn.blocks import Bottleneck, chain_net, init_weights
        from hwnas.nn.supernet import SinglePathSupernet

        # Stem, fixed block and head are those of any architecture.
        frame = chain_net(self._net(self._first_genes))
        slots = [
            {name: Bottleneck(block, self._table.norm_eps) if block else None for name, block in choices.items()}
            for choices in self._choices
        ]
        supernet = SinglePathSupernet(self, frame.stem, frame.blocks[:1], slots, frame.head)
        init_weights(supernet, generator=generator, zero_init_residual=zero_init_residual)
        return supernet


def _choices(table: MobileTable, cin: int, cout: int, stride: int) -> dict[str, MBConv | None]:
    choices: dict[str, MBConv | None] = {
        f"k{kernel}e{expand}": MBConv(kernel, expand, cin, cout, stride)
        for kernel in table.kernels
        for expand in table.expands
    }
    if stride == 1 and cin == cout:
        choices[SKIP] = None
    return choices
