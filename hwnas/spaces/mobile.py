"""Inverted bottlenecks, the blocks of MobileNetV2 and its family: ProxylessNAS and FBNet search among them."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.network import NetworkBuilder
from hwnas.spaces.chain import Block, ConvSpec, ShuffleSpec, wire_chain

SKIP = "skip"
"""The choice that leaves a layer out."""


@dataclass(frozen=True, slots=True)
class MBConv(Block):
    """An inverted bottleneck: 1x1 expand, depthwise, linear 1x1 project (Sandler et al. 2018).

    It adds its input where stride is 1 and the width stays.

    Attributes:
        kernel: of the depthwise convolution.
        expand: width between the 1x1 convolutions as a multiple of `cin`.
        cin, cout: channels in and out.
        stride: of the depthwise convolution.
        groups: of both 1x1 convolutions; more than one are followed by a channel shuffle after the first (Wu et al.
            2019, figure 3).
        act: activation after the first two convolutions.
        always_expands: whether there is an expand convolution where `expand` is 1: in FBNet there is, in MobileNetV2
            there is not.
    """

    kernel: int
    expand: int
    cin: int
    cout: int
    stride: int = 1
    groups: int = 1
    act: str = "relu6"
    always_expands: bool = False

    @property
    def residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.cin == self.cout

    def layers(self) -> tuple[ConvSpec | ShuffleSpec, ...]:
        """All layers but `project` in order."""
        hidden = self.cin * self.expand
        layers: list[ConvSpec | ShuffleSpec] = []
        if self.expand != 1 or self.always_expands:
            layers.append(ConvSpec("expand", self.cin, hidden, groups=self.groups, act=self.act))
            if self.groups > 1:
                layers.append(ShuffleSpec("shuffle", self.groups))
        layers.append(
            ConvSpec("depthwise", hidden, hidden, self.kernel, self.stride, groups=hidden, act=self.act),
        )
        return tuple(layers)

    @property
    def project(self) -> ConvSpec:
        """The last layer, which takes the residual."""
        return ConvSpec("project", self.cin * self.expand, self.cout, groups=self.groups)

    def wire(self, builder: NetworkBuilder, prefix: str) -> None:
        entry = builder.last
        hidden = wire_chain(builder, self.layers(), entry, prefix)
        op = self.project.op(builder.shape(hidden), residual=self.residual)
        builder.add(op, (hidden, entry) if self.residual else (hidden,), prefix + "project")


@dataclass(frozen=True, slots=True)
class Pointwise(Block):
    """One 1x1 convolution with BatchNorm and activation."""

    cin: int
    cout: int
    stride: int = 1
    act: str = "relu"

    @property
    def conv(self) -> ConvSpec:
        """Its only layer."""
        return ConvSpec("conv", self.cin, self.cout, stride=self.stride, act=self.act)

    def wire(self, builder: NetworkBuilder, prefix: str) -> None:
        wire_chain(builder, (self.conv,), builder.last, prefix)
