"""The ProxylessNAS space (Cai et al. 2019, "ProxylessNAS"), and a small one of the same blocks for small images.

Choices are the kernel and expansion of every bottleneck, and whether it is there at all: a slot can be left out
("skip") where it would have a residual, at stride 1 and unchanged width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from hwnas.ops import Shape
from hwnas.spaces.base import Family
from hwnas.spaces.chain import Block, ChainSpace, ConvSpec, NetSpec, Stage, slots_of
from hwnas.spaces.mobile import SKIP, MBConv

KERNELS = (3, 5, 7)
EXPANDS = (3, 6)


@dataclass(frozen=True, slots=True)
class ProxylessTable:
    """A space of this family: `first` is the width of the fixed 3x3 bottleneck without expansion after the stem."""

    stem: int
    first: int
    stages: tuple[Stage, ...]
    head: int


PROXYLESS = ProxylessTable(
    stem=32,
    first=16,
    stages=(Stage(24, 4, 2), Stage(40, 4, 2), Stage(80, 4, 2), Stage(96, 4, 1), Stage(192, 4, 2), Stage(320, 1, 1)),
    head=1280,
)
"""The default of the published search (mit-han-lab/proxylessnas, `search/imagenet_arch_search.py`): 21 slots, of which
15 can be skipped: 7^15 * 6^6 = 2.2e17 architectures, 102.5M to 606.6M MACs at 224 pixels."""

PROXYLESS_TINY = ProxylessTable(
    stem=16,
    first=16,
    stages=(Stage(24, 3, 2), Stage(40, 3, 1), Stage(80, 3, 2)),
    head=320,
)
"""The same blocks and choices for images of 28 to 64 pixels."""

PROXYLESS_GPU = ProxylessTable(
    stem=40,
    first=24,
    stages=(Stage(32, 4, 2), Stage(56, 4, 2), Stage(112, 4, 2), Stage(128, 4, 1), Stage(256, 4, 2), Stage(432, 1, 1)),
    head=1728,
)
"""The same at the widths of the published "GPU" net, the largest that SPOS compares with (Guo et al. 2020, table 5; it
does not say which widths its own supernet has): 182.5M to 1,036.7M MACs."""

PROXYLESS_GPU_TINY = ProxylessTable(
    stem=20,
    first=24,
    stages=(Stage(32, 3, 2), Stage(56, 3, 1), Stage(112, 3, 2)),
    head=432,
)
"""The same for images of 28 to 64 pixels."""


def _space(table: ProxylessTable, name: str, input_shape: Shape, num_classes: int) -> ChainSpace:
    frame = NetSpec(
        input_shape,
        num_classes,
        stem=ConvSpec("stem", input_shape[0], table.stem, kernel=3, stride=2, act="relu6"),
        blocks=(MBConv(3, 1, table.stem, table.first),),
        head=ConvSpec("head", table.stages[-1].width, table.head, act="relu6"),
        norm_eps=1e-3,
    )
    return ChainSpace(name, frame, [_choices(*slot) for slot in slots_of(table.stages, table.first)])


def _choices(cin: int, cout: int, stride: int) -> dict[str, Block | None]:
    choices: dict[str, Block | None] = {
        f"k{kernel}e{expand}": MBConv(kernel, expand, cin, cout, stride) for kernel in KERNELS for expand in EXPANDS
    }
    if stride == 1 and cin == cout:
        choices[SKIP] = None
    return choices


FAMILIES = {
    "proxyless": Family(partial(_space, PROXYLESS), image_size=224, image_sizes=(64, 1024), num_classes=1000),
    "proxyless-tiny": Family(partial(_space, PROXYLESS_TINY), image_size=28, image_sizes=(28, 64), num_classes=10),
    "proxyless-gpu": Family(partial(_space, PROXYLESS_GPU), image_size=224, image_sizes=(64, 1024), num_classes=1000),
    "proxyless-gpu-tiny": Family(
        partial(_space, PROXYLESS_GPU_TINY), image_size=28, image_sizes=(28, 64), num_classes=10
    ),
}
