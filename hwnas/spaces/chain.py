"""Nets that are a chain of blocks, described once.

A `NetSpec` is a table of layers: stem convolution, blocks one after the other, head convolution, global average pool,
linear classifier. `NetSpec.network` turns the table into operators by arithmetic and `hwnas.nn.blocks.chain_net` turns
the same table into a module. A `ChainSpace` is the table with open choices: some blocks are fixed, then every slot
takes one of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hwnas.network import Network, NetworkBuilder, Ref
from hwnas.ops import Bits, Op, Shape
from hwnas.spaces.base import Arch, Space

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hwnas.nn.blocks import ChainNet
    from hwnas.nn.supernet import SinglePathSupernet


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """A convolution with BatchNorm and, where `act` names one, an activation; "same" padding for odd kernels.

    `bits` are those of a quantised one.
    """

    name: str
    cin: int
    cout: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    act: str = ""
    bits: Bits = ()

    def op(self, shape: Shape, *, residual: bool = False, act: str = "") -> Op:
        """The deployed operator on an image of `shape`; `act` comes after the residual where the layer has none."""
        return Op.conv(
            shape,
            self.cout,
            kernel=self.kernel,
            stride=self.stride,
            groups=self.groups,
            norm=True,
            act=self.act or act,
            residual=residual,
            bits=self.bits,
        )


@dataclass(frozen=True, slots=True)
class ShuffleSpec:
    """A channel shuffle over `groups`."""

    name: str
    groups: int

    def op(self, shape: Shape) -> Op:
        """The deployed operator on an image of `shape`."""
        return Op.shuffle(shape, self.groups)


class Block(ABC):
    """What a net is made of between stem and head: one tensor in, one out.

    A block is a frozen dataclass; `hwnas.nn.blocks.MODULES` has the module of each kind.
    """

    __slots__ = ()

    @abstractmethod
    def wire(self, builder: NetworkBuilder, prefix: str) -> None:
        """Appends its operators to what `builder` has; the last one gives its output."""

    def ops(self, shape: Shape) -> tuple[Op, ...]:
        """Its deployed operators on an image of `shape`."""
        builder = NetworkBuilder(shape)
        self.wire(builder, "")
        return tuple(node.op for node in builder.nodes)


@dataclass(frozen=True, slots=True)
class Slice(Block):
    """A block whose weights are the first channels of a wider one's, which several choices of a slot share.

    Attributes:
        block: what the choice is by itself; its operators and its module are this block's.
        of: the widest, whose weights a supernet holds.
        key: of the shared module in the supernet, the same for all that share it.
    """

    block: Block
    of: Block
    key: str

    def wire(self, builder: NetworkBuilder, prefix: str) -> None:
        self.block.wire(builder, prefix)


def wire_chain(builder: NetworkBuilder, layers: Iterable[ConvSpec | ShuffleSpec], entry: Ref, prefix: str) -> Ref:
    """Appends `layers` one after the other, the first fed from `entry`. Returns what the last one gives."""
    for layer in layers:
        entry = builder.add(layer.op(builder.shape(entry)), (entry,), prefix + layer.name)
    return entry


@dataclass(frozen=True, slots=True)
class NetSpec:
    """One net: everything that its operators and its module are made from.

    Attributes:
        input_shape: one image, channels first.
        num_classes: outputs of the classifier.
        stem: the first convolution.
        blocks: in order, those that are left out not among them.
        head: the 1x1 convolution before the pooling; None leaves it out.
        bias: the classifier has one.
        dropout: before the classifier, in training.
        norm_eps: BatchNorm's epsilon.
        width: channels that the last block gives, where there is no head.
    """

    input_shape: Shape
    num_classes: int
    stem: ConvSpec
    blocks: tuple[Block, ...]
    head: ConvSpec | None
    bias: bool = True
    dropout: float = 0.0
    norm_eps: float = 1e-5
    width: int = 0

    @property
    def features(self) -> int:
        """Channels that the classifier takes."""
        return self.head.cout if self.head else self.width

    def head_ops(self, shape: Shape) -> tuple[Op, ...]:
        """Head convolution, pooling and classifier on what the last block gives."""
        conv = (self.head.op(shape),) if self.head else ()
        pool = Op.global_avg_pool(conv[0].output if conv else shape)
        return (*conv, pool, Op.linear(self.features, self.num_classes, bias=self.bias))

    def network(self) -> Network:
        """The net as wired operators."""
        builder = NetworkBuilder(self.input_shape)
        builder.add(self.stem.op(self.input_shape), name="stem")
        for index, block in enumerate(self.blocks):
            block.wire(builder, f"blocks.{index}.")
        names = ("head", "pool", "classifier") if self.head else ("pool", "classifier")
        for name, op in zip(names, self.head_ops(builder.shape()), strict=True):
            builder.add(op, name=name)
        return builder.build()


@dataclass(frozen=True, slots=True)
class Stage:
    """Searchable layers of one width; the first has the stride."""

    width: int
    layers: int
    stride: int


def slots_of(stages: Iterable[Stage], width: int) -> Iterator[tuple[int, int, int]]:
    """(channels in, channels out, stride) of every layer of `stages` behind `width` channels."""
    for stage in stages:
        for layer in range(stage.layers):
            yield width, stage.width, stage.stride if layer == 0 else 1
            width = stage.width


class ChainSpace(Space):
    """A frame that all architectures have, with one choice of block in every slot before the head.

    Args:
        name: as typed on the command line.
        frame: the net without its slots: its `blocks` are those that come before them.
        slots: of every slot the choices by name; None leaves the slot out, which must not change the shape. All
            choices of a slot give one shape.
        supernet_affine: the supernet's BatchNorms have scale and shift, as those of a built architecture always do.
        widths: of how many widths, from narrow to wide, each kind of choice comes, one after the other.
    """

    def __init__(
        self,
        name: str,
        frame: NetSpec,
        slots: Sequence[Mapping[str, Block | None]],
        *,
        supernet_affine: bool = True,
        widths: int = 1,
    ) -> None:
        self.name = name
        self.input_shape = frame.input_shape
        self.num_classes = frame.num_classes
        self.slots = tuple(tuple(choices) for choices in slots)
        self._frame = frame
        self._choices = tuple(tuple(choices.values()) for choices in slots)
        self._supernet_affine = supernet_affine
        self._widths = widths
        shape = frame.stem.op(frame.input_shape).output
        for fixed in frame.blocks:
            shape = fixed.ops(shape)[-1].output
        self._slot_shapes: list[Shape] = []
        for choices in self._choices:
            self._slot_shapes.append(shape)
            some = next(block for block in choices if block is not None)
            shape = some.ops(shape)[-1].output
        self._head_shape = shape

    def net(self, arch: Arch) -> NetSpec:
        """The architecture as a table of layers.

        Raises:
            HwnasError: it is not of this space.
        """
        self.check(arch)
        chosen = (_alone(choices[gene]) for choices, gene in zip(self._choices, arch.genes, strict=True))
        return replace(self._frame, blocks=(*self._frame.blocks, *(block for block in chosen if block is not None)))

    def supernet_ops(self) -> tuple[Op, ...]:
        ops = list(self.fixed_ops())
        for shape, choices in zip(self._slot_shapes, self._choices, strict=True):
            held = dict.fromkeys((b.key, b.of) if isinstance(b, Slice) else (n, b) for n, b in enumerate(choices))
            ops += (op for _, block in held if block is not None for op in block.ops(shape))
        return tuple(ops)

    def widened(self, genes: tuple[int, ...], progress: float) -> tuple[int, ...]:
        if self._widths == 1 or progress >= 1:
            return genes
        allowed = 1 + int(progress * (self._widths - 1))
        wide = ((gene // self._widths, gene % self._widths * allowed // self._widths) for gene in genes)
        return tuple(kind * self._widths + self._widths - allowed + width for kind, width in wide)

    def fixed_ops(self) -> tuple[Op, ...]:
        stem = self._frame.stem.op(self.input_shape)
        ops = [stem]
        for block in self._frame.blocks:
            ops += block.ops(ops[-1].output)
        return (*ops, *self._frame.head_ops(self._head_shape))

    def slot_ops(self, slot: int, choice: int) -> tuple[Op, ...]:
        block = self._choices[slot][choice]
        return block.ops(self._slot_shapes[slot]) if block is not None else ()

    def network(self, arch: Arch) -> Network:
        return replace(self.net(arch).network(), space=self.name)

    def build(self, arch: Arch, *, generator: torch.Generator | None = None) -> ChainNet:
        from hwnas.nn.blocks import chain_net

        return chain_net(self.net(arch), generator=generator)

    def supernet(
        self, *, generator: torch.Generator | None = None, zero_init_residual: bool = True
    ) -> SinglePathSupernet:
        from hwnas.nn.blocks import block_module, chain_modules, init_weights
        from hwnas.nn.sliced import sliced_module
        from hwnas.nn.supernet import SinglePathSupernet

        eps, affine = self._frame.norm_eps, self._supernet_affine
        frame = chain_modules(self._frame, affine=affine)
        slots: list[dict[str, nn.Module]] = []
        slices: list[dict[str, Slice]] = []
        for names, choices in zip(self.slots, self._choices, strict=True):
            modules = {}
            for name, block in zip(names, choices, strict=True):
                if isinstance(block, Slice):
                    if block.key not in modules:
                        modules[block.key] = sliced_module(block.of, eps, affine=affine)
                elif block is not None:
                    modules[name] = block_module(block, eps, affine=affine)
            slots.append(modules)
            slices.append({n: b for n, b in zip(names, choices, strict=True) if isinstance(b, Slice)})
        supernet = SinglePathSupernet(self, frame.stem, frame.blocks, slots, frame.head, slices)
        init_weights(supernet, generator=generator, zero_init_residual=zero_init_residual)
        return supernet


def _alone(block: Block | None) -> Block | None:
    return block.block if isinstance(block, Slice) else block
