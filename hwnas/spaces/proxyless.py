"""The ProxylessNAS space (Cai et al. 2019, "ProxylessNAS"), and a small one of the same blocks for small images."""

from __future__ import annotations

from functools import partial

from hwnas.ops import Shape
from hwnas.spaces.base import Family
from hwnas.spaces.mobile import MobileSpace, MobileTable, Stage

PROXYLESS = MobileTable(
    stem=32,
    first=16,
    stages=(Stage(24, 4, 2), Stage(40, 4, 2), Stage(80, 4, 2), Stage(96, 4, 1), Stage(192, 4, 2), Stage(320, 1, 1)),
    head=1280,
)
"""The default of the published search (mit-han-lab/proxylessnas, `search/imagenet_arch_search.py`): 21 slots, of which
15 can be skipped: 7^15 * 6^6 = 2.2e17 architectures, 102.5M to 606.6M MACs at 224 pixels."""

PROXYLESS_TINY = MobileTable(
    stem=16,
    first=16,
    stages=(Stage(24, 3, 2), Stage(40, 3, 1), Stage(80, 3, 2)),
    head=320,
)
"""The same blocks and choices for images of 28 to 64 pixels."""


def _space(table: MobileTable, name: str, input_shape: Shape, num_classes: int) -> MobileSpace:
    return MobileSpace(name, table, input_shape, num_classes)


FAMILIES = {
    "proxyless": Family(partial(_space, PROXYLESS), image_size=224, image_sizes=(64, 1024), num_classes=1000),
    "proxyless-tiny": Family(partial(_space, PROXYLESS_TINY), image_size=28, image_sizes=(28, 64), num_classes=10),
}
