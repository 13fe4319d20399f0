"""The space of choice blocks of SPOS (Guo et al. 2020, section 4), and a small one of the same blocks for small images.

Four choices a slot, all of the ShuffleNetV2 kind: ``choice_3``, ``choice_5`` and ``choice_7`` are its block with that
kernel, ``choice_x`` has three depthwise convolutions of kernel 3, as Xception has. Widths and strides are those of the
paper's table 1, blocks those of the published code (megvii-model/SinglePathOneShot, `blocks.py`, `network.py`).

In the small space a block of stride 1 may be left out too, as in the other spaces that the paper searches (its table
5). On small images most of a block's time is what all four have: shuffle, split, concatenation, the calls of three
convolutions. Without a skip the cheapest net would cost 70% of the dearest, and hardly a latency budget would bind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from hwnas.network import NetworkBuilder
from hwnas.ops import Op, Shape
from hwnas.spaces.base import Family
from hwnas.spaces.chain import Block, ChainSpace, ConvSpec, NetSpec, Stage, slots_of, wire_chain
from hwnas.spaces.mobile import SKIP


@dataclass(frozen=True, slots=True)
class ShuffleBlock(Block):
    """A choice block: what is kept of the input, and what its main branch makes of it, concatenated.

    At stride 1 the channels are shuffled (the even ones come first) and cut in halves: the first is kept as it is, the
    second goes through the main branch. At stride 2 both get the whole input, and what is kept goes through a
    projection: depthwise convolution of the block's kernel and stride, then 1x1 with ReLU.

    The main branch is 1x1 with ReLU, depthwise, 1x1 with ReLU; in an `xception` block three times depthwise and 1x1
    with ReLU. Its first depthwise convolution has the stride.

    Attributes:
        kernel: of all depthwise convolutions.
        cin, cout: channels in and out, equal at stride 1.
        mid: width inside the main branch.
        stride: 1 or 2.
        xception: which of the two main branches it has.
    """

    kernel: int
    cin: int
    cout: int
    mid: int
    stride: int = 1
    xception: bool = False

    @property
    def entry(self) -> int:
        """Channels that the main branch gets, as many as are kept."""
        return self.cin // 2 if self.stride == 1 else self.cin

    def projection(self) -> tuple[ConvSpec, ...]:
        """What the kept channels go through: nothing at stride 1."""
        if self.stride == 1:
            return ()
        return (
            self._depthwise("depthwise", self.cin, self.stride),
            ConvSpec("pointwise", self.cin, self.cin, act="relu"),
        )

    def main(self) -> tuple[ConvSpec, ...]:
        """The layers of the main branch."""
        out = self.cout - self.entry
        if not self.xception:
            return (
                ConvSpec("expand", self.entry, self.mid, act="relu"),
                self._depthwise("depthwise", self.mid, self.stride),
                ConvSpec("project", self.mid, out, act="relu"),
            )
        return (
            self._depthwise("depthwise1", self.entry, self.stride),
            ConvSpec("pointwise1", self.entry, self.mid, act="relu"),
            self._depthwise("depthwise2", self.mid, 1),
            ConvSpec("pointwise2", self.mid, self.mid, act="relu"),
            self._depthwise("depthwise3", self.mid, 1),
            ConvSpec("pointwise3", self.mid, out, act="relu"),
        )

    def _depthwise(self, name: str, channels: int, stride: int) -> ConvSpec:
        return ConvSpec(name, channels, channels, self.kernel, stride, groups=channels)

    def wire(self, builder: NetworkBuilder, prefix: str) -> None:
        kept = entry = builder.last
        if self.stride == 1:
            shape, half = builder.shape(), self.cin // 2
            builder.add(Op.shuffle(shape, half), name=f"{prefix}shuffle")
            node, _ = builder.add(Op.split(shape, (half, half)), name=f"{prefix}split")
            kept, entry = (node, 0), (node, 1)
        kept = wire_chain(builder, self.projection(), kept, f"{prefix}projection.")
        made = wire_chain(builder, self.main(), entry, f"{prefix}main.")
        builder.add(Op.concat((builder.shape(kept), builder.shape(made))), (kept, made), f"{prefix}concat")


@dataclass(frozen=True, slots=True)
class ShuffleTable:
    """A space of this family: the stem's width and stride, the stages, the width of the head.

    With `skips` blocks of stride 1 may be left out.
    """

    stem: int
    stem_stride: int
    stages: tuple[Stage, ...]
    head: int
    skips: bool = False


SPOS_SHUFFLENET = ShuffleTable(
    stem=16,
    stem_stride=2,
    stages=(Stage(64, 4, 2), Stage(160, 4, 2), Stage(320, 8, 2), Stage(640, 4, 2)),
    head=1024,
)
"""Table 1 of the paper: 20 slots, 4^20 = 1.1e12 architectures, 270.4M to 398.6M MACs at 224 pixels."""

SPOS_SHUFFLENET_TINY = ShuffleTable(
    stem=16,
    stem_stride=1,
    stages=(Stage(32, 4, 2), Stage(64, 8, 2), Stage(128, 4, 2)),
    head=256,
    skips=True,
)
"""The same blocks for images of 28 to 64 pixels: 16 slots, of which 13 can be skipped."""


def frame_of(table: ShuffleTable, input_shape: Shape, num_classes: int) -> NetSpec:
    """What every architecture has: stem and head."""
    return NetSpec(
        input_shape,
        num_classes,
        stem=ConvSpec("stem", input_shape[0], table.stem, kernel=3, stride=table.stem_stride, act="relu"),
        blocks=(),
        head=ConvSpec("head", table.stages[-1].width, table.head, act="relu"),
        bias=False,
        dropout=0.1,
    )


def _space(table: ShuffleTable, name: str, input_shape: Shape, num_classes: int) -> ChainSpace:
    slots = [_choices(*slot, skips=table.skips) for slot in slots_of(table.stages, table.stem)]
    return ChainSpace(name, frame_of(table, input_shape, num_classes), slots, supernet_affine=False)


KINDS = "357x"
"""The choices of a slot by one letter: the kernel, or x."""


def choice_block(kind: str, cin: int, cout: int, mid: int, stride: int) -> ShuffleBlock:
    """The choice block of a kind, which is one of `KINDS`, with `mid` channels inside."""
    return ShuffleBlock(3 if kind == "x" else int(kind), cin, cout, mid, stride, xception=kind == "x")


def _choices(cin: int, cout: int, stride: int, *, skips: bool) -> dict[str, Block | None]:
    choices: dict[str, Block | None] = {
        f"choice_{kind}": choice_block(kind, cin, cout, cout // 2, stride) for kind in KINDS
    }
    return choices | {SKIP: None} if skips and stride == 1 else choices


FAMILIES = {
    "spos-shufflenet": Family(
        partial(_space, SPOS_SHUFFLENET), image_size=224, image_sizes=(64, 1024), num_classes=1000
    ),
    "spos-shufflenet-tiny": Family(
        partial(_space, SPOS_SHUFFLENET_TINY), image_size=28, image_sizes=(28, 64), num_classes=10
    ),
}
