"""Published nets, as the tables that their operators and modules are made from. No weights are shipped.

Their MACs and parameters are pinned in `tests/golden/zoo.toml`.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from hwnas.errors import UsageError
from hwnas.network import Network
from hwnas.spaces.mobile import MBConv, MobileNet

if TYPE_CHECKING:
    import torch
    from torch import nn

_MOBILENET_V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
                        (6, 320, 1, 1))  # fmt: skip
"""(expansion, width, layers, first stride) of Sandler et al. 2018, table 2."""


def _mobilenet_v2() -> MobileNet:
    blocks, width = [], 32
    for expand, cout, layers, stride in _MOBILENET_V2_STAGES:
        for layer in range(layers):
            blocks.append(MBConv(3, expand, width, cout, stride if layer == 0 else 1))
            width = cout
    return MobileNet((3, 224, 224), 1000, 32, tuple(blocks), 1280, dropout=0.2, norm_eps=1e-5)


def _proxyless(widths: tuple[int, ...], layers: str) -> MobileNet:
    """A published ProxylessNAS net: `widths` of stem, first block, stages and head, layers as kernel/expansion."""
    stem, first, *stages, head = widths
    blocks, width = [MBConv(3, 1, stem, first)], first
    strides = (2, 2, 2, 1, 2, 1)
    for cout, stride, stage in zip(stages, strides, layers.split("|"), strict=True):
        for layer, text in enumerate(stage.split()):
            if text != "-":
                kernel, expand = map(int, text.split("/"))
                blocks.append(MBConv(kernel, expand, width, cout, stride if layer == 0 else 1))
            width = cout
    return MobileNet((3, 224, 224), 1000, stem, tuple(blocks), head, norm_eps=1e-3)


ZOO: dict[str, MobileNet] = {
    "mobilenet-v2": _mobilenet_v2(),
    # The layers of the two ProxylessNAS nets as in osmr/imgclsmob; the official repository only downloads them.
    "proxyless-r-mobile": _proxyless(
        (32, 16, 32, 40, 80, 96, 192, 320, 1280),
        "5/3 3/3 - - | 7/3 3/3 5/3 5/3 | 7/6 5/3 5/3 5/3 | 5/6 5/3 5/3 5/3 | 7/6 7/6 7/3 7/3 | 7/6",
    ),
    "proxyless-gpu": _proxyless(
        (40, 24, 32, 56, 112, 128, 256, 432, 1728),
        "5/3 - - - | 7/3 - - 3/3 | 7/6 - - 5/3 | 5/6 - 3/3 5/3 | 7/6 7/6 7/6 5/6 | 7/6",
    ),
}
"""Every net by the name that is typed after ``zoo:``."""


def zoo_net(name: str) -> MobileNet:
    """The table of the published net `name`.

    Raises:
        UsageError: there is no such net.
    """
    if name not in ZOO:
        near = difflib.get_close_matches(name, ZOO, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"no net of the zoo is called {name[:80]!r}: {hint}The zoo: {', '.join(ZOO)}")
    return ZOO[name]


def zoo_network(name: str) -> Network:
    """The published net `name` as operators.

    Raises:
        UsageError: there is no such net.
    """
    return zoo_net(name).network()


def zoo_module(name: str, *, generator: torch.Generator | None = None) -> nn.Module:
    """The published net `name` as a module with fresh weights drawn from `generator`.

    Raises:
        UsageError: there is no such net.
    """
    from hwnas.nn.blocks import chain_net

    return chain_net(zoo_net(name), generator=generator)
