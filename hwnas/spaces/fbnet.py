"""The FBNet space (Wu et al. 2019, "FBNet"), and a small one of the same blocks for small images.

Nine choices a slot (table 2 of the paper): a bottleneck of kernel 3 or 5 and expansion 1, 1 with two groups, 3 or 6,
or none. The paper counts nine in all 22 slots, 9^22 architectures, six of which change the shape, where nothing
cannot be left in a bottleneck's place. Facebook's code (maskrcnn-benchmark and mobile-vision, `fbnet_builder.py`,
`Identity`) then puts a 1x1 convolution of the slot's stride there, with BatchNorm and ReLU. So does this space, and
calls that choice by what it is: ``k1``. ``skip`` is always the identity.

A bottleneck keeps its first 1x1 convolution at expansion 1, as in the paper's figure 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from hwnas.ops import Shape
from hwnas.spaces.base import Family
from hwnas.spaces.chain import Block, ChainSpace, ConvSpec, NetSpec, Stage, slots_of
from hwnas.spaces.mobile import SKIP, MBConv, Pointwise

KERNELS = (3, 5)
WIDENINGS = {"e1": (1, 1), "e1g2": (1, 2), "e3": (3, 1), "e6": (6, 1)}
"""Expansion and groups."""


@dataclass(frozen=True, slots=True)
class FBNetTable:
    """A space of this family."""

    stem: int
    stages: tuple[Stage, ...]
    head: int


FBNET = FBNetTable(
    stem=16,
    stages=(
        Stage(16, 1, 1),
        Stage(24, 4, 2),
        Stage(32, 4, 2),
        Stage(64, 4, 2),
        Stage(112, 4, 1),
        Stage(184, 4, 2),
        Stage(352, 1, 1),
    ),
    head=1984,
)
"""Table 1 of the paper: 22 slots, 9^22 = 9.8e20 architectures."""

FBNET_TINY = FBNetTable(
    stem=16,
    stages=(Stage(16, 1, 1), Stage(24, 3, 2), Stage(40, 3, 1), Stage(80, 3, 2)),
    head=320,
)
"""The same blocks and choices for images of 28 to 64 pixels."""


def _space(table: FBNetTable, name: str, input_shape: Shape, num_classes: int) -> ChainSpace:
    frame = NetSpec(
        input_shape,
        num_classes,
        stem=ConvSpec("stem", input_shape[0], table.stem, kernel=3, stride=2, act="relu"),
        blocks=(),
        head=ConvSpec("head", table.stages[-1].width, table.head, act="relu"),
    )
    return ChainSpace(name, frame, [_choices(*slot) for slot in slots_of(table.stages, table.stem)])


def _choices(cin: int, cout: int, stride: int) -> dict[str, Block | None]:
    choices: dict[str, Block | None] = {
        f"k{kernel}{name}": MBConv(kernel, expand, cin, cout, stride, groups, act="relu", always_expands=True)
        for kernel in KERNELS
        for name, (expand, groups) in WIDENINGS.items()
    }
    if stride == 1 and cin == cout:
        choices[SKIP] = None
    else:
        choices["k1"] = Pointwise(cin, cout, stride)
    return choices


FAMILIES = {
    "fbnet": Family(partial(_space, FBNET), image_size=224, image_sizes=(64, 1024), num_classes=1000),
    "fbnet-tiny": Family(partial(_space, FBNET_TINY), image_size=28, image_sizes=(28, 64), num_classes=10),
}
