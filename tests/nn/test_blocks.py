"""Blocks compute what their papers say, checked against plain tensor arithmetic."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from hwnas.nn.blocks import Bottleneck, ChannelShuffle, ConvNormAct, ShuffleUnit, block_module
from hwnas.spaces.mobile import MBConv, Pointwise
from hwnas.spaces.shufflenet import ShuffleBlock

IMAGES = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))


def trained(module: nn.Module) -> nn.Module:
    """The module in inference, with statistics, scales and shifts of its own."""
    generator = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        if tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_channel_shuffle_is_torchs(groups: int) -> None:
    assert torch.equal(ChannelShuffle(groups)(IMAGES), nn.ChannelShuffle(groups)(IMAGES))


@pytest.mark.parametrize("xception", [False, True])
def test_a_shuffle_block_keeps_the_even_channels_and_works_on_the_odd_ones(xception: bool) -> None:
    unit = trained(block_module(ShuffleBlock(3, 8, 8, 4, xception=xception), 1e-5))
    assert isinstance(unit, ShuffleUnit)
    with torch.no_grad():
        out = unit(IMAGES)
        assert torch.equal(out[:, :4], IMAGES[:, 0::2])
        torch.testing.assert_close(out[:, 4:], unit.main(IMAGES[:, 1::2]))


def test_a_shuffle_block_of_stride_2_works_on_all_channels_twice() -> None:
    unit = trained(block_module(ShuffleBlock(5, 8, 20, 10, stride=2), 1e-5))
    assert isinstance(unit, ShuffleUnit)
    with torch.no_grad():
        out = unit(IMAGES)
        assert out.shape == (2, 20, 3, 3)
        torch.testing.assert_close(out[:, :8], unit.projection(IMAGES))
        torch.testing.assert_close(out[:, 8:], unit.main(IMAGES))
        assert out.min() >= 0


def test_the_group_convolutions_of_a_bottleneck_are_mixed_by_a_shuffle() -> None:
    block = trained(block_module(MBConv(3, 1, 8, 8, groups=2, act="relu", always_expands=True), 1e-5))
    assert isinstance(block, Bottleneck)
    convs = dict(block.convs.named_children())
    assert list(convs) == ["expand", "shuffle", "depthwise", "project"]
    assert [convs[name].conv.groups for name in ("expand", "depthwise", "project")] == [2, 8, 2]
    with torch.no_grad():
        hidden = functional.channel_shuffle(convs["expand"](IMAGES), 2)
        expected = IMAGES + convs["project"](convs["depthwise"](hidden))
        torch.testing.assert_close(block(IMAGES), expected)


def test_expansion_1_has_its_first_convolution_where_it_is_asked_for() -> None:
    assert [layer.name for layer in MBConv(3, 1, 8, 8).layers()] == ["depthwise"]
    assert [layer.name for layer in MBConv(3, 1, 8, 8, always_expands=True).layers()] == ["expand", "depthwise"]


def test_a_pointwise_block_changes_width_and_size() -> None:
    module = block_module(Pointwise(8, 12, stride=2), 1e-5)
    assert isinstance(module, ConvNormAct)
    assert module(IMAGES).shape == (2, 12, 3, 3)
