"""Published nets, as the tables that their operators and modules are made from. No weights are shipped.

Their MACs and parameters are pinned in `tests/golden/zoo.toml`.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import TYPE_CHECKING

from hwnas.errors import UsageError
from hwnas.network import Network
from hwnas.spaces import Arch, get_space
from hwnas.spaces.atoms import TABLES, AtomArch, AtomSpace, with_extras
from hwnas.spaces.chain import ChainSpace, ConvSpec, NetSpec, Stage, slots_of
from hwnas.spaces.mobile import MBConv
from hwnas.spaces.resnet import RESNET18, RESNET34, uniform_resnet

if TYPE_CHECKING:
    import torch
    from torch import nn

_MOBILENET_V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
                        (6, 320, 1, 1))  # fmt: skip
"""(expansion, width, layers, first stride) of Sandler et al. 2018, table 2."""


def _mobile(stem: int, blocks: list[MBConv], head: int, *, dropout: float = 0.0, norm_eps: float = 1e-5) -> NetSpec:
    return NetSpec(
        (3, 224, 224),
        1000,
        ConvSpec("stem", 3, stem, kernel=3, stride=2, act="relu6"),
        tuple(blocks),
        ConvSpec("head", blocks[-1].cout, head, act="relu6"),
        dropout=dropout,
        norm_eps=norm_eps,
    )


def _mobilenet_v2() -> NetSpec:
    blocks, width = [], 32
    for expand, cout, layers, stride in _MOBILENET_V2_STAGES:
        for layer in range(layers):
            blocks.append(MBConv(3, expand, width, cout, stride if layer == 0 else 1))
            width = cout
    return _mobile(32, blocks, 1280, dropout=0.2)


def _proxyless(widths: tuple[int, ...], layers: str) -> NetSpec:
    """A published ProxylessNAS net: `widths` of stem, first block, stages and head, layers as kernel/expansion."""
    stem, first, *stages, head = widths
    strides = (2, 2, 2, 1, 2, 1)
    table = [
        Stage(width, len(texts.split()), stride)
        for width, stride, texts in zip(stages, strides, layers.split("|"), strict=True)
    ]
    blocks = [MBConv(3, 1, stem, first)]
    for text, (cin, cout, stride) in zip(layers.replace("|", "").split(), slots_of(table, first), strict=True):
        if text != "-":
            kernel, expand = map(int, text.split("/"))
            blocks.append(MBConv(kernel, expand, cin, cout, stride))
    return _mobile(stem, blocks, head, norm_eps=1e-3)


def _of_space(name: str, choices: list[str]) -> NetSpec:
    """The architecture of the space `name` that takes `choices`."""
    space = get_space(name)
    assert isinstance(space, ChainSpace)
    genes = (names.index(choice) for names, choice in zip(space.slots, choices, strict=True))
    return space.net(Arch(name, tuple(genes)))


def _fbnet(layers: str, head: int = 1984) -> NetSpec:
    """A published FBNet: layers as kernel and widening, e.g. ``5e1g2``."""
    names = ["skip" if layer == "skip" else f"k{layer}" for layer in layers.replace("|", "").split()]
    net = _of_space("fbnet", names)
    assert net.head is not None
    return replace(net, head=replace(net.head, cout=head))


def _spos(blocks: str) -> NetSpec:
    """A published net of SPOS: one character a block, the kernel or ``x``."""
    return _of_space("spos-shufflenet", [f"choice_{block}" for block in blocks.replace(" ", "")])


_ATOMNAS = {
    "a": "16,12,9|19,2,1|9,7,1|14,1,0|46,49,50|27,19,14|22,11,3|30,14,3|127,130,111|33,25,45|38,12,34|53,23,19|"
    "344,196,168|44,18,27|37,29,18|52,21,24|381,364,342|123,76,162|179,107,212|238,111,171|654,495,546",
    "b": "7,15,17|16,4,0|17,7,1|22,4,1|58,66,67|39,24,17|22,13,3|38,16,3|166,148,151|31,43,65|41,15,28|77,21,43|"
    "378,256,204|54,31,32|54,26,26|73,42,26|442,433,430|154,112,263|234,142,282|295,190,202|766,631,671",
    "c": "15,23,13|20,3,2|21,8,1|21,4,0|64,65,70|40,23,28|36,21,9|40,22,7|169,170,157|45,55,74|58,21,37|77,18,39|"
    "393,263,247|57,40,36|61,34,26|87,38,33|454,468,468|188,137,306|253,187,314|345,202,233|823,738,749",
}
"""Atoms of kernels 3, 5 and 7 of the published AtomNAS nets' 21 blocks (meijieru/AtomNAS, `apps/searched/models`)."""


def _atomnas(letter: str) -> NetSpec:
    """A published AtomNAS net."""
    name = f"atomnas-{letter}"
    widths = tuple(tuple(map(int, block.split(","))) for block in _ATOMNAS[letter].split("|"))
    return AtomSpace(name, TABLES[name], (3, 224, 224), 1000).net(AtomArch(name, widths))


def _spos_channels(blocks: str, scales: str) -> NetSpec:
    """A published net of SPOS with searched channels: blocks as in `_spos`, widths in fifths less one."""
    kinds = blocks.replace(" ", "")
    return _of_space(f"spos-channels@{kinds}", [f"{(int(scale) + 1) / 5:.1f}x" for scale in scales.replace(" ", "")])


ZOO: dict[str, NetSpec] = {
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
    # FBNets with the operators of the paper; Facebook's later code (mobile-vision) drops the first 1x1 convolution at
    # expansion 1, and has another B.
    "fbnet-a": _fbnet(
        "skip | 3e3 3e1 skip skip | 5e6 3e3 5e1 3e3 | 5e6 5e3 5e1g2 5e6 | 3e6 5e1g2 5e3 3e1g2 | 5e6 5e6 5e3 5e6 | 5e6",
        head=1504,
    ),
    "fbnet-b": _fbnet(
        "3e1 | 3e6 5e1 3e1 3e1 | 5e6 5e3 3e6 5e6 | 5e6 5e1 skip 5e3 | 5e6 3e1 5e1 5e3 | 5e6 5e1 5e6 5e6 | 3e6"
    ),
    "fbnet-c": _fbnet(
        "3e1 | 3e6 skip 3e1 3e1 | 5e6 5e3 5e6 3e6 | 5e6 5e3 5e6 5e6 | 5e6 5e6 5e6 5e3 | 5e6 5e6 5e6 5e6 | 3e6"
    ),
    # The found architectures of SPOS: of megvii's ShuffleNet-Series (`OneShot/network.py`) and of SinglePathOneShot's
    # README.
    "spos-319m": _spos("33x5 5533 73755373 75x7"),
    "spos-323m": _spos("7535 7373 737x3333 x7xx"),
    **{f"atomnas-{letter}": _atomnas(letter) for letter in _ATOMNAS},
    # "+": the found nets with Swish and squeeze and excitation, which the paper retrains.
    **{f"atomnas-{letter}+": with_extras(_atomnas(letter)) for letter in _ATOMNAS},
    "spos-328m": _spos_channels("33x5 5533 73755373 75x7", "6535 2634 25754674 4543"),
    # The baselines of SPOS' table 6: all weights and activations of the residual blocks with the same bits.
    **{
        f"resnet{depth}-{bits}w{bits}a": uniform_resnet(table, bits)
        for depth, table in ((18, RESNET18), (34, RESNET34))
        for bits in (2, 3, 4)
    },
}
"""Every net by the name that is typed after ``zoo:``."""


def zoo_net(name: str) -> NetSpec:
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
