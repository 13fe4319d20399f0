"""The channel searches of SPOS (Guo et al. 2020, section 4), and small ones of the same blocks for small images.

What is searched is the width inside each choice block ("mid-channels"): 0.2 to 1.6 times the default, half of the
stage's width, rounded down. The stages' own widths stay. A supernet holds each block at its widest; a choice takes the
first channels of its weights.

`spos-channels` searches widths only, on blocks that are given: ``spos-channels@333…`` has one letter a slot (3, 5, 7 or
x; a slot of stride 1 that - stands for is left out), and ``spos-channels`` alone has choice_3 everywhere, the baseline
of the paper's table 4. The paper's best pipeline is a search of blocks first, and of channels on the blocks found.

`spos-joint` searches both at once. Block and width of a slot are one choice (``choice_5@1.2``, 32 of them): what a
width costs depends on the block, so that only together they have a price of their own, exact and additive over slots.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import zip_longest

from hwnas.errors import UsageError
from hwnas.ops import Shape
from hwnas.spaces.base import Family
from hwnas.spaces.chain import Block, ChainSpace, NetSpec, Slice, slots_of
from hwnas.spaces.shufflenet import (
    KINDS,
    SPOS_SHUFFLENET,
    SPOS_SHUFFLENET_TINY,
    ShuffleBlock,
    ShuffleTable,
    choice_block,
    frame_of,
)

FIFTHS = range(1, 9)
"""The widths in fifths of the default: 0.2 to 1.6 times."""

BLOCKS = "BLOCKS (one letter a slot: 3, 5, 7 or x)"

LEFT_OUT = "-"
"""Of a slot without a block."""

TABLES = {"spos-channels": SPOS_SHUFFLENET, "spos-channels-tiny": SPOS_SHUFFLENET_TINY}
"""What the channel searches stand on."""


def mid_channels(cout: int, fifths: int) -> int:
    """Channels inside a block: ``int(cout / 2 * scale)``."""
    return cout // 2 * fifths // 5


def blocks_of(net: NetSpec, base: str) -> str:
    """The choice blocks of a net, one letter a slot: what the `spos-channels` space `base` may stand on.

    Where a stage of the net has fewer blocks than the space has slots, the last ones are left out: those of stride 1
    are alike, whichever of them a search has skipped.

    Raises:
        UsageError: the net has other blocks too.
    """
    stages: list[str] = []
    for block in net.blocks:
        if not isinstance(block, ShuffleBlock):
            raise UsageError("its blocks are not choice blocks of spos-shufflenet")
        kind = "x" if block.xception else str(block.kernel)
        if block.stride == 1 and stages:
            stages[-1] += kind
        else:
            stages.append(kind)
    layers = [stage.layers for stage in TABLES[base].stages] if base in TABLES else []
    pairs = zip_longest(stages, layers, fillvalue=None)
    return "".join((kinds or "").ljust(slots or 0, LEFT_OUT) for kinds, slots in pairs)


def _choices(kinds: Iterable[str], cin: int, cout: int, stride: int, *, alone: bool) -> dict[str, Block | None]:
    """Every width of every kind; names leave the kind out where it is `alone`."""
    choices: dict[str, Block | None] = {}
    for kind in kinds:
        widest = choice_block(kind, cin, cout, mid_channels(cout, max(FIFTHS)), stride)
        for fifths in FIFTHS:
            block = choice_block(kind, cin, cout, mid_channels(cout, fifths), stride)
            name = f"{fifths / 5:.1f}x" if alone else f"choice_{kind}@{fifths / 5:.1f}x"
            choices[name] = Slice(block, widest, f"choice_{kind}")
    return choices


def _channels(table: ShuffleTable, name: str, input_shape: Shape, num_classes: int) -> ChainSpace:
    slots = list(slots_of(table.stages, table.stem))
    base, at, kinds = name.partition("@")
    kinds = kinds if at else "3" * len(slots)
    if len(kinds) != len(slots) or set(kinds) - set(KINDS + LEFT_OUT):
        raise UsageError(f"{base} has {len(slots)} slots: {kinds[:40]!r} is not one letter of 3, 5, 7 and x for each")
    pairs = list(zip(kinds, slots, strict=True))
    if strided := [number for number, (kind, slot) in enumerate(pairs, 1) if kind == LEFT_OUT and slot[2] != 1]:
        raise UsageError(f"slot {strided[0]} of {base} has a stride and cannot be left out: give it 3, 5, 7 or x")
    choices = [_choices(kind, *slot, alone=True) for kind, slot in pairs if kind != LEFT_OUT]
    frame = frame_of(table, input_shape, num_classes)
    return ChainSpace(name, frame, choices, supernet_affine=False, widths=len(FIFTHS))


def _joint(table: ShuffleTable, name: str, input_shape: Shape, num_classes: int) -> ChainSpace:
    choices = [_choices(KINDS, *slot, alone=False) for slot in slots_of(table.stages, table.stem)]
    frame = frame_of(table, input_shape, num_classes)
    return ChainSpace(name, frame, choices, supernet_affine=False, widths=len(FIFTHS))


FAMILIES = {
    "spos-channels": Family(partial(_channels, SPOS_SHUFFLENET), 224, (64, 1024), 1000, variants=BLOCKS),
    "spos-channels-tiny": Family(partial(_channels, SPOS_SHUFFLENET_TINY), 28, (28, 64), 10, variants=BLOCKS),
    "spos-joint": Family(partial(_joint, SPOS_SHUFFLENET), 224, (64, 1024), 1000),
    "spos-joint-tiny": Family(partial(_joint, SPOS_SHUFFLENET_TINY), 28, (28, 64), 10),
}
