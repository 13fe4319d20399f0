"""Modules that the spaces and the zoo are made of, from the same tables as their operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.nn.depthwise import DepthwiseConv2d
from hwnas.nn.quantise import QuantConv2d
from hwnas.spaces.atoms import AtomBlock
from hwnas.spaces.chain import Block, ConvSpec, NetSpec, ShuffleSpec
from hwnas.spaces.mobile import MBConv, Pointwise
from hwnas.spaces.resnet import MaxPool, QuantBlock
from hwnas.spaces.shufflenet import ShuffleBlock

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "": nn.Identity,
    "relu": partial(nn.ReLU, inplace=True),
    "relu6": partial(nn.ReLU6, inplace=True),
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}


def _conv(spec: ConvSpec) -> nn.Conv2d:
    if spec.groups == spec.cin == spec.cout > 1:
        return DepthwiseConv2d(spec.cin, spec.kernel, spec.stride)
    return nn.Conv2d(spec.cin, spec.cout, spec.kernel, spec.stride, spec.kernel // 2, groups=spec.groups, bias=False)


Norm = Callable[[int], nn.BatchNorm2d]
"""Makes the BatchNorm of so many channels."""


class ConvNormAct(nn.Module):
    """A convolution without bias, BatchNorm and the activation that the table names."""

    def __init__(self, spec: ConvSpec, norm: Norm) -> None:
        super().__init__()
        self.conv = QuantConv2d(spec) if spec.bits else _conv(spec)
        self.norm = norm(spec.cout)
        self.act = ACTIVATIONS[spec.act]()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y


class Dropout(nn.Dropout):
    """Dropout whose chance comes from a generator that is handed to it; torch's own takes the global one.

    Without a generator it is torch's.
    """

    generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.generator is None or not self.training or not self.p:
            return super().forward(x)
        kept = torch.empty(x.shape).bernoulli_(1 - self.p, generator=self.generator)
        return x * kept.to(x) / (1 - self.p)


class ChannelShuffle(nn.Module):
    """The channel shuffle over `groups`, spelled so that it exports as reshape, transpose, reshape at any batch."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, 1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def chain_of(
    layers: Iterable[ConvSpec | ShuffleSpec], norm: Norm, conv: Callable[[ConvSpec, Norm], nn.Module] = ConvNormAct
) -> nn.Sequential:
    chain = nn.Sequential()
    for layer in layers:
        module = ChannelShuffle(layer.groups) if isinstance(layer, ShuffleSpec) else conv(layer, norm)
        chain.add_module(layer.name, module)
    return chain


class Bottleneck(nn.Module):
    """The module of an `MBConv`: its layers, and the residual if it has one."""

    def __init__(self, block: MBConv, norm: Norm) -> None:
        super().__init__()
        self.convs = chain_of((*block.layers(), block.project), norm)
        self.residual = block.residual

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The BatchNorm before the residual add."""
        norm = self.convs[-1].norm
        assert isinstance(norm, nn.BatchNorm2d)
        return norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convs(x)
        return y + x if self.residual else y


class ShuffleUnit(nn.Module):
    """The module of a `ShuffleBlock`; `conv` makes its layers."""

    def __init__(
        self, block: ShuffleBlock, norm: Norm, conv: Callable[[ConvSpec, Norm], nn.Module] = ConvNormAct
    ) -> None:
        super().__init__()
        # Into as many groups as there are pairs: the even channels come first, then the odd ones.
        self.shuffle = ChannelShuffle(block.cin // 2) if block.stride == 1 else None
        self.projection = chain_of(block.projection(), norm, conv)
        self.main = chain_of(block.main(), norm, conv)

    def cut(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept and what goes through the main branch."""
        if self.shuffle is None:
            return x, x
        kept, entry = self.shuffle(x).chunk(2, 1)
        return kept, entry

    def forward(self, x: Tensor) -> Tensor:
        kept, entry = self.cut(x)
        return torch.cat((self.projection(kept), self.main(entry)), 1)


def _atoms(block: AtomBlock, norm: Norm) -> nn.Module:
    from hwnas.nn.atoms import AtomSum  # which is made of this module's parts

    return AtomSum(block, norm)


class QuantUnit(nn.Module):
    """The module of a `QuantBlock`; `conv` makes its layers."""

    def __init__(
        self, block: QuantBlock, norm: Norm, conv: Callable[[ConvSpec, Norm], nn.Module] = ConvNormAct
    ) -> None:
        super().__init__()
        self.shortcut = chain_of(block.shortcut(), norm, conv)
        self.main = chain_of(block.main(), norm, conv)
        self.act = nn.ReLU()

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The BatchNorm before the residual add."""
        norm = self.main[-1].norm
        assert isinstance(norm, nn.BatchNorm2d)
        return norm

    def forward(self, x: Tensor) -> Tensor:
        kept = self.shortcut(x)
        y: Tensor = self.act(self.main(x) + kept)
        return y


MODULES: dict[type[Block], Callable[[Any, Norm], nn.Module]] = {
    MBConv: Bottleneck,
    Pointwise: lambda block, norm: ConvNormAct(block.conv, norm),
    ShuffleBlock: ShuffleUnit,
    AtomBlock: _atoms,
    QuantBlock: QuantUnit,
    MaxPool: lambda block, _norm: nn.MaxPool2d(block.kernel, block.stride, (block.kernel - 1) // 2),
}
"""The module of each kind of block."""


def block_module(block: Block, norm_eps: float, *, affine: bool = True) -> nn.Module:
    """The module of `block`; `affine` says whether its BatchNorms have scale and shift."""
    return MODULES[type(block)](block, _norm(norm_eps, affine))


def _norm(eps: float, affine: bool) -> Norm:
    return partial(nn.BatchNorm2d, eps=eps, affine=affine)


class ChainNet(nn.Module):
    """A plain classifier: stem, blocks one after the other, head."""

    def __init__(self, stem: nn.Module, blocks: nn.Sequential, head: nn.Sequential) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = blocks
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)))
        return y


def chain_modules(net: NetSpec, *, affine: bool = True) -> ChainNet:
    """The module of `net` with whatever weights torch gives it; `affine` as in `block_module`."""
    norm = _norm(net.norm_eps, affine)
    head = nn.Sequential()
    if net.head:
        head.add_module("conv", ConvNormAct(net.head, norm))
    head.add_module("pool", nn.AdaptiveAvgPool2d(1))
    head.add_module("flatten", nn.Flatten())
    head.add_module("dropout", Dropout(net.dropout))
    head.add_module("classifier", nn.Linear(net.features, net.num_classes, bias=net.bias))
    blocks = (block_module(block, net.norm_eps, affine=affine) for block in net.blocks)
    return ChainNet(ConvNormAct(net.stem, norm), nn.Sequential(*blocks), head)


def chain_net(net: NetSpec, *, generator: torch.Generator | None = None) -> ChainNet:
    """The module of `net` with fresh weights drawn from `generator` (None: torch's default generator)."""
    module = chain_modules(net)
    init_weights(module, generator=generator)
    return module


def init_weights(
    module: nn.Module, *, generator: torch.Generator | None = None, zero_init_residual: bool = False
) -> None:
    """Draws all weights anew, as is usual for these nets: He (fan out) for convolutions, N(0, 0.01) for linear layers.

    Biases begin at zero.

    Args:
        module: changed in place.
        generator: where the weights come from; None is torch's default generator.
        zero_init_residual: the scale of a residual block's last BatchNorm starts at 0: the block is the identity.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.out_channels * math.prod(part.kernel_size)
            nn.init.normal_(part.weight, std=math.sqrt(2 / fan_out), generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.01, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    if zero_init_residual:
        for part in module.modules():
            if isinstance(part, QuantUnit) or (isinstance(part, Bottleneck) and part.residual):
                nn.init.zeros_(part.last_norm.weight)


def with_scale_and_shift(module: nn.Module) -> None:
    """Gives every BatchNorm that has none a scale of one and a shift of zero: the same output, and both can learn."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d) and not part.affine:
            like = part.running_mean
            assert like is not None
            part.affine = True
            part.weight = nn.Parameter(torch.ones_like(like))
            part.bias = nn.Parameter(torch.zeros_like(like))
