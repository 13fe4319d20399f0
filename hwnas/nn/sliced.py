"""Modules of which a choice uses the first channels: weights of the largest size, sliced as views (SPOS, section 4).

The convolutions take ``weight[:out, :in]`` for each batch: nothing is copied, nothing is masked, and channels outside
of the slice are not computed. A BatchNorm is shared by all widths. In training it normalises by the batch, which is of
one width; its running statistics mix the widths and fit none, as they mix the paths of any supernet, and are recomputed
for an architecture before it is scored (`hwnas.train.recalibrate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.nn.blocks import ACTIVATIONS, Norm, QuantUnit, ShuffleUnit, block_module
from hwnas.nn.depthwise import depthwise_conv2d
from hwnas.nn.quantise import QuantConv2d
from hwnas.spaces.chain import Block, ConvSpec
from hwnas.spaces.resnet import QuantBlock
from hwnas.spaces.shufflenet import ShuffleBlock

Region = tuple[slice, ...]
"""The first channels of a tensor, dimension by dimension."""


class SlicedConv2d(nn.Conv2d):
    """A convolution without bias, dense or depthwise, of which the first channels are used."""

    def forward(self, x: Tensor, spec: ConvSpec) -> Tensor:  # type: ignore[override]
        """As many channels of `x` as arrive, to as many as `spec` says."""
        if self.groups > 1:
            return depthwise_conv2d(x, self.weight[: spec.cout], self.stride[0])
        return functional.conv2d(x, self.weight[: spec.cout, : x.shape[1]], None, self.stride, self.padding)


class SlicedQuantConv2d(QuantConv2d):
    """A quantised convolution of which the first channels are used, with the bits of whoever uses them."""

    def forward(self, x: Tensor, spec: ConvSpec) -> Tensor:  # type: ignore[override]
        """As many channels of `x` as arrive, to as many as `spec` says, with its bits."""
        assert spec.bits
        return self.of(x, self.weight[: spec.cout, : x.shape[1]], spec.bits)


class SlicedBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm of which as many channels are used as arrive."""

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        mean, var, tracked = self.running_mean, self.running_var, self.num_batches_tracked
        assert mean is not None
        assert var is not None
        assert tracked is not None
        momentum = self.momentum
        if self.training:
            tracked.add_(1)
            momentum = 1.0 / float(tracked) if momentum is None else momentum
        weight = self.weight[:channels] if self.affine else None
        bias = self.bias[:channels] if self.affine else None
        return functional.batch_norm(
            x, mean[:channels], var[:channels], weight, bias, self.training, momentum or 0.0, self.eps
        )


class SlicedConvNormAct(nn.Module):
    """`hwnas.nn.blocks.ConvNormAct`, sliced: the same names."""

    def __init__(self, spec: ConvSpec, norm: Norm) -> None:
        super().__init__()
        if spec.bits:
            self.conv: nn.Conv2d = SlicedQuantConv2d(spec)
        else:
            self.conv = SlicedConv2d(
                spec.cin, spec.cout, spec.kernel, spec.stride, spec.kernel // 2, groups=spec.groups, bias=False
            )
        self.norm = norm(spec.cout)
        self.act = ACTIVATIONS[spec.act]()

    def forward(self, x: Tensor, spec: ConvSpec) -> Tensor:
        y: Tensor = self.act(self.norm(self.conv(x, spec)))
        return y


def run_sliced(chain: nn.Sequential, specs: Iterable[ConvSpec], x: Tensor) -> Tensor:
    """`x` through a chain of `SlicedConvNormAct`, as wide as `specs` say."""
    for layer, spec in zip(chain, specs, strict=True):
        x = layer(x, spec)
    return x


class SlicedShuffleUnit(ShuffleUnit):
    """`ShuffleUnit`, sliced: made for the widest block, run for any."""

    def __init__(self, block: ShuffleBlock, norm: Norm) -> None:
        super().__init__(block, norm, SlicedConvNormAct)

    def forward(self, x: Tensor, block: ShuffleBlock) -> Tensor:  # type: ignore[override]
        """`block` is what the architecture has there."""
        kept, entry = self.cut(x)
        kept = run_sliced(self.projection, block.projection(), kept)
        return torch.cat((kept, run_sliced(self.main, block.main(), entry)), 1)


class SlicedQuantUnit(QuantUnit):
    """`QuantUnit`, sliced: made for the widest block, run for any width and bits."""

    def __init__(self, block: QuantBlock, norm: Norm) -> None:
        super().__init__(block, norm, SlicedConvNormAct)

    def forward(self, x: Tensor, block: QuantBlock) -> Tensor:  # type: ignore[override]
        """`block` is what the architecture has there."""
        kept = run_sliced(self.shortcut, block.shortcut(), x)
        y: Tensor = self.act(run_sliced(self.main, block.main(), x) + kept)
        return y


SLICED: dict[type[Block], Callable[[Any, Norm], nn.Module]] = {
    ShuffleBlock: SlicedShuffleUnit,
    QuantBlock: SlicedQuantUnit,
}
"""The sliced module of each kind of block that has one."""


def sliced_module(block: Block, norm_eps: float, *, affine: bool = True) -> nn.Module:
    """The module whose weights are shared by all blocks that are narrower than `block`."""
    return SLICED[type(block)](block, partial(SlicedBatchNorm2d, eps=norm_eps, affine=affine))


class Narrowed(nn.Module):
    """One block of a sliced module: a view that computes what the block computes, with the shared weights.

    Attributes:
        wide: what holds the weights.
        block: whose channels are used.
    """

    def __init__(self, wide: nn.Module, block: Block) -> None:
        super().__init__()
        self.wide = wide
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.wide(x, self.block)
        return y

    def regions(self) -> dict[str, Region]:
        """What of each tensor the block uses, by the tensor's name in the wide module and in the plain one."""
        norm = next(part for part in self.wide.modules() if isinstance(part, nn.BatchNorm2d))
        return {name: tuple(map(slice, shape)) for name, shape in _shapes(self.block, norm.eps, norm.affine).items()}

    def plain(self) -> nn.Module:
        """The block alone, with a copy of its weights and statistics."""
        norm = next(part for part in self.wide.modules() if isinstance(part, nn.BatchNorm2d))
        with torch.device("meta"):  # no weights are drawn for it
            module = block_module(self.block, norm.eps, affine=norm.affine)
        held = self.wide.state_dict()
        state = {name: _copy(held[name], region) for name, region in self.regions().items()}
        module.load_state_dict(state, assign=True)
        return module.train(self.wide.training)


def _copy(tensor: Tensor, region: Region) -> Tensor:
    # By the strides: torch calls a 1x1 weight contiguous in either format, and takes other kernels for each.
    last = tensor.ndim == 4 and tensor.stride(1) == 1 and tensor.stride(3) == tensor.shape[1]
    return tensor[region].clone(memory_format=torch.channels_last if last else torch.contiguous_format)


@lru_cache(maxsize=4096)
def _shapes(block: Block, eps: float, affine: bool) -> dict[str, torch.Size]:
    """The shapes of everything in the state of a block's plain module."""
    with torch.device("meta"):
        module = block_module(block, eps, affine=affine)
    return {name: tensor.shape for name, tensor in module.state_dict().items()}
