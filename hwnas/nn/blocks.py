"""Modules that the spaces and the zoo are made of, from the same tables as their operators."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hwnas.spaces.mobile import ConvSpec, MBConv, MobileNet

ACTIVATIONS: dict[str, type[nn.Module]] = {"": nn.Identity, "relu6": nn.ReLU6}


class ConvNormAct(nn.Module):
    """A convolution without bias, BatchNorm and the activation that the table names."""

    def __init__(self, spec: ConvSpec, norm_eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            spec.cin, spec.cout, spec.kernel, spec.stride, spec.kernel // 2, groups=spec.groups, bias=False
        )
        self.norm = nn.BatchNorm2d(spec.cout, eps=norm_eps)
        self.act = ACTIVATIONS[spec.act]()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y


class Bottleneck(nn.Module):
    """The module of an `MBConv`: expand (absent at expansion 1), depthwise, project, and the residual if it has one."""

    def __init__(self, block: MBConv, norm_eps: float) -> None:
        super().__init__()
        self.convs = nn.Sequential()
        for conv in block.convs():
            self.convs.add_module(conv.name, ConvNormAct(conv, norm_eps))
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


def chain_net(net: MobileNet, *, generator: torch.Generator | None = None) -> ChainNet:
    """The module of `net` with fresh weights drawn from `generator` (None: torch's default generator)."""
    head = nn.Sequential()
    head.add_module("conv", ConvNormAct(net.head_conv, net.norm_eps))
    head.add_module("pool", nn.AdaptiveAvgPool2d(1))
    head.add_module("flatten", nn.Flatten())
    head.add_module("dropout", nn.Dropout(net.dropout))
    head.add_module("classifier", nn.Linear(net.head, net.num_classes))
    module = ChainNet(
        ConvNormAct(net.stem_conv, net.norm_eps),
        nn.Sequential(*(Bottleneck(block, net.norm_eps) for block in net.blocks)),
        head,
    )
    init_weights(module, generator=generator)
    return module


def init_weights(
    module: nn.Module, *, generator: torch.Generator | None = None, zero_init_residual: bool = False
) -> None:
    """Draws all weights anew, as is usual for this family: He (fan out) for convolutions, N(0, 0.01) for linear layers.

    Args:
        module: changed in place.
        generator: where the weights come from; None is torch's default generator.
        zero_init_residual: the scale of a residual block's last BatchNorm starts at 0: the block is the identity.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.out_channels * math.prod(part.kernel_size)
            nn.init.normal_(part.weight, std=math.sqrt(2 / fan_out), generator=generator)
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.01, generator=generator)
            nn.init.zeros_(part.bias)
    if zero_init_residual:
        for part in module.modules():
            if isinstance(part, Bottleneck) and part.residual:
                nn.init.zeros_(part.last_norm.weight)
