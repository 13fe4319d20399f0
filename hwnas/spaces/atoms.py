"""Nets as sums of atoms (Mei et al. 2020, "AtomNAS"): blocks with several kernels and any number of channels of each.

An atom is one channel of a structure convolution, channel-wise operation, convolution (the paper's equation 3): one row
of the expand convolution, one depthwise filter, one column of the project convolution. A block is the sum of its atoms;
an architecture says how many atoms of each kernel every block has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hwnas.errors import HwnasError
from hwnas.network import Network, NetworkBuilder, Ref
from hwnas.ops import Op, Shape
from hwnas.spaces.chain import Block, ConvSpec, NetSpec, Stage, slots_of
from hwnas.spaces.mobile import MBConv
from hwnas.spaces.widths import AtomArch as AtomArch
from hwnas.spaces.widths import Branch, WidthSpace
from hwnas.spaces.widths import Widths as Widths

if TYPE_CHECKING:
    import torch

    from hwnas.nn.blocks import ChainNet

KERNELS = (3, 5, 7)
"""Depthwise kernels of the published space."""


@dataclass(frozen=True, slots=True)
class AtomBlock(Block):
    """A sum of atoms: for each kernel a branch of 1x1 expand, depthwise and linear 1x1 project convolution.

    In training the branches' sum goes through one BatchNorm. Deployed it is folded into the projections, and every
    addition, the residual's too, is fused into one of them: the first takes the residual and the BatchNorm's shift,
    each further one adds what the one before it gives.

    Attributes:
        cin, cout: channels in and out.
        kernels: of the branches.
        hidden: atoms of each branch; a branch of 0 is not there. With none at all a residual block is the identity.
        stride: of the depthwise convolutions.
        act: activation after the first two convolutions.
        expands: there is an expand convolution; without one, the single branch has `cin` atoms.
        squeeze: channels of a squeeze and excitation over all atoms of the block together; 0 is none.
    """

    cin: int
    cout: int
    kernels: tuple[int, ...]
    hidden: tuple[int, ...]
    stride: int = 1
    act: str = "relu"
    expands: bool = True
    squeeze: int = 0

    @property
    def residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.cin == self.cout

    @property
    def branches(self) -> tuple[tuple[int, int], ...]:
        """(kernel, atoms) of the branches that are there."""
        return tuple((kernel, atoms) for kernel, atoms in zip(self.kernels, self.hidden, strict=True) if atoms)

    def layers(self, kernel: int, atoms: int) -> tuple[ConvSpec, ...]:
        """A branch without its projection."""
        depthwise = ConvSpec("depthwise", atoms, atoms, kernel, self.stride, groups=atoms, act=self.act)
        return (ConvSpec("expand", self.cin, atoms, act=self.act), depthwise) if self.expands else (depthwise,)

    def wire(self, builder: NetworkBuilder, prefix: str) -> None:
        entry = builder.last
        if self.squeeze:
            ends = self._excited(builder, prefix, [self._branch(builder, prefix, entry, *b) for b in self.branches])
            for place, (end, branch) in enumerate(zip(ends, self.branches, strict=True)):
                self._project(builder, prefix, entry, end, branch[0], first=place == 0)
            return
        for place, branch in enumerate(self.branches):
            below = builder.last
            end = self._branch(builder, prefix, entry, *branch)
            self._project(builder, prefix, below, end, branch[0], first=place == 0)

    def _branch(self, builder: NetworkBuilder, prefix: str, entry: Ref, kernel: int, atoms: int) -> Ref:
        for layer in self.layers(kernel, atoms):
            entry = builder.add(layer.op(builder.shape(entry)), (entry,), f"{prefix}k{kernel}.{layer.name}")
        return entry

    def _project(self, builder: NetworkBuilder, prefix: str, below: Ref, end: Ref, kernel: int, *, first: bool) -> None:
        """Adds a projection; `below` is the residual of the first, and the sum so far of the others."""
        adds = self.residual or not first
        op = Op.conv(builder.shape(end), self.cout, kernel=1, norm=first, residual=adds)
        if adds and not first and self.squeeze:
            below = builder.last
        builder.add(op, (end, below) if adds else (end,), f"{prefix}k{kernel}.project")

    def _excited(self, builder: NetworkBuilder, prefix: str, ends: Sequence[Ref]) -> list[Ref]:
        """What each branch gives, multiplied by its gates."""
        shapes = [builder.shape(end) for end in ends]
        pooled = [builder.add(Op.global_avg_pool(s), (e,), f"{prefix}pool") for e, s in zip(ends, shapes, strict=True)]
        if len(pooled) > 1:
            builder.add(Op.concat([builder.shape(ref) for ref in pooled]), pooled, f"{prefix}concat")
        for name, width, act in (("reduce", self.squeeze, self.act), ("excite", sum(self.hidden), "sigmoid")):
            builder.add(Op.conv(builder.shape(), width, kernel=1, bias=True, act=act), name=f"{prefix}{name}")
        gate = builder.last
        if len(ends) == 1:
            gates = [gate]
        else:
            node, _ = builder.add(Op.split(builder.shape(), [shape[0] for shape in shapes]), name=f"{prefix}split")
            gates = [(node, port) for port in range(len(ends))]
        return [
            builder.add(Op.mul(shape, builder.shape(ref)), (end, ref), f"{prefix}scale")
            for end, shape, ref in zip(ends, shapes, gates, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class AtomTable:
    """A space of this family.

    Attributes:
        stem: channels of the first convolution, which has stride 2.
        first: channels of the fixed block behind it (3x3 depthwise without expansion).
        stages: of the searchable blocks.
        head: channels of the last convolution.
        expand: atoms of each kernel as a multiple of a block's channels in.
        kernels: of every block.
    """

    stem: int
    first: int
    stages: tuple[Stage, ...]
    head: int
    expand: int = 6
    kernels: tuple[int, ...] = KERNELS


PUBLISHED = (Stage(24, 4, 2), Stage(40, 4, 2), Stage(80, 4, 2), Stage(96, 4, 1), Stage(192, 4, 2), Stage(320, 1, 1))
"""Stages of all published nets: 21 blocks (figure 3, and meijieru/AtomNAS `models/fix_first`)."""

TABLES = {
    "atomnas-a": AtomTable(16, 16, PUBLISHED, 1280),
    "atomnas-b": AtomTable(32, 16, PUBLISHED, 1280),
    "atomnas-c": AtomTable(32, 16, PUBLISHED, 1280),
    "atomnas-tiny": AtomTable(16, 16, (Stage(24, 2, 2), Stage(40, 2, 1), Stage(80, 2, 2)), 320),
}
"""The spaces by name. B and C differ in the published penalty only; `atomnas-tiny` is for images of 28 to 64 pixels."""


class AtomSpace(WidthSpace):
    """The architectures of an `AtomTable`, for one input shape and number of classes.

    Attributes:
        name: as typed on the command line.
        input_shape: one image, channels first.
        num_classes: outputs of the classifier.
        kernels: of every block, in the order of the widths.
        full: atoms of the supernet.
        blocks: the searchable blocks of the supernet.
    """

    def __init__(self, name: str, table: AtomTable, input_shape: Shape, num_classes: int) -> None:
        self.name, self.input_shape, self.num_classes = name, input_shape, num_classes
        self.kernels = table.kernels
        self._frame = NetSpec(
            input_shape,
            num_classes,
            stem=ConvSpec("stem", input_shape[0], table.stem, kernel=3, stride=2, act="relu"),
            blocks=(MBConv(3, 1, table.stem, table.first, act="relu"),),
            head=ConvSpec("head", table.stages[-1].width, table.head, act="relu"),
            dropout=0.2,
            norm_eps=1e-3,
        )
        self.blocks = tuple(
            AtomBlock(cin, cout, table.kernels, (table.expand * cin,) * len(table.kernels), stride)
            for cin, cout, stride in slots_of(table.stages, table.first)
        )
        self.full: Widths = tuple(block.hidden for block in self.blocks)

    @property
    def fixed_blocks(self) -> int:
        """Blocks of a net before the searchable ones."""
        return len(self._frame.blocks)

    def net(self, arch: AtomArch) -> NetSpec:
        """The architecture as a table of layers.

        Raises:
            HwnasError: it is not of this space.
        """
        self.check(arch)
        blocks = (replace(block, hidden=hidden) for block, hidden in zip(self.blocks, arch.widths, strict=True))
        return replace(self._frame, blocks=(*self._frame.blocks, *blocks))

    def network(self, arch: AtomArch) -> Network:
        """The architecture as it is deployed."""
        return replace(self.net(arch).network(), space=self.name)

    def build(self, arch: AtomArch, *, generator: torch.Generator | None = None) -> ChainNet:
        """The architecture as a module with fresh weights drawn from `generator`. The supernet is `supernet_arch`'s."""
        from hwnas.nn.blocks import chain_net

        return chain_net(self.net(arch), generator=generator)

    def viable(self, empty: frozenset[Branch]) -> bool:
        return all(
            block.residual or any((index, place) not in empty for place in range(len(block.kernels)))
            for index, block in enumerate(self.blocks)
        )

    def check(self, arch: AtomArch) -> None:
        """Refuses an architecture of another space or with impossible widths.

        Raises:
            HwnasError: it says what does not fit.
        """
        self.check_rows(arch)
        for index, (block, widths) in enumerate(zip(self.blocks, arch.widths, strict=True)):
            if len(widths) != len(block.hidden):
                raise HwnasError(f"{self.name}: block {index} has {len(block.hidden)} kernels, not {len(widths)}")
            for kernel, atoms, most in zip(block.kernels, widths, block.hidden, strict=True):
                if not 0 <= atoms <= most:
                    raise HwnasError(
                        f"{self.name}: block {index} has 0 to {most} atoms of kernel {kernel}, not {atoms}"
                    )
            if not any(widths) and not block.residual:
                raise HwnasError(f"{self.name}: block {index} changes the shape: it needs at least one atom")

    def describe(self, arch: AtomArch) -> list[str]:
        """The blocks in words: ``k3:12 k5:4``."""
        return [
            " ".join(f"k{kernel}:{atoms}" for kernel, atoms in zip(self.kernels, widths, strict=True) if atoms)
            or "skip"
            for widths in arch.widths
        ]

    def block_shapes(self) -> list[Shape]:
        """What arrives at each searchable block."""
        shape = self._frame.stem.op(self.input_shape).output
        for fixed in self._frame.blocks:
            shape = fixed.ops(shape)[-1].output
        found = []
        for block in self.blocks:
            found.append(shape)
            shape = block.ops(shape)[-1].output
        return found


def with_extras(net: NetSpec, *, act: str = "silu", ratio: float = 0.5) -> NetSpec:
    """The "+" form of a found net: Swish everywhere, squeeze and excitation of `ratio` times a block's channels in.

    It is meant to be retrained (section 4.2 of the paper).
    """
    blocks: list[Block] = []
    for block in net.blocks:
        if isinstance(block, MBConv):
            hidden = block.cin * block.expand
            block = AtomBlock(
                block.cin, block.cout, (block.kernel,), (hidden,), block.stride, expands=block.expand != 1
            )
        if isinstance(block, AtomBlock):
            block = replace(block, act=act, squeeze=int(ratio * block.cin))
        blocks.append(block)
    head = replace(net.head, act=act) if net.head else None
    return replace(net, stem=replace(net.stem, act=act), blocks=tuple(blocks), head=head)


@dataclass(frozen=True, slots=True)
class AtomFamily:
    """A named space before its image size and number of classes are chosen; as `hwnas.spaces.base.Family`."""

    table: AtomTable
    image_size: int
    image_sizes: tuple[int, int]
    num_classes: int

    def make(self, name: str, input_shape: Shape, num_classes: int) -> AtomSpace:
        """The space."""
        return AtomSpace(name, self.table, input_shape, num_classes)


FAMILIES = {
    name: AtomFamily(table, 28, (28, 64), 10) if name.endswith("-tiny") else AtomFamily(table, 224, (64, 1024), 1000)
    for name, table in TABLES.items()
}
