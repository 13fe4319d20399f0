"""Depthwise convolutions are torch's, and so are their gradients, however they are come by."""

from __future__ import annotations

import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hwnas.nn.depthwise import TILES, DepthwiseConv2d, depthwise_conv2d, weight_gradient
from hwnas.spaces import AtomSpace, find_space


@settings(max_examples=60, deadline=None)
@given(
    case=st.sampled_from([*TILES, (3, 1), (7, 2)]),
    batch=st.integers(1, 3),
    channels=st.integers(1, 40),
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_a_convolution(
    case: tuple[int, int], batch: int, channels: int, height: int, width: int, last: bool, seed: int
) -> None:
    kernel, stride = case
    generator = torch.Generator().manual_seed(seed)
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(batch, channels, height, width, generator=generator).to(memory_format=layout).requires_grad_()
    weight = torch.randn(channels, 1, kernel, kernel, generator=generator).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hwnas.nn.depthwise.LEAST_MACS", 0)
        y = depthwise_conv2d(x, weight, stride)
    plain = nn.functional.conv2d(x.double(), weight.double(), None, stride, kernel // 2, 1, channels)
    torch.testing.assert_close(y.double(), plain, rtol=1e-4, atol=1e-5)
    grad = torch.randn(y.shape, generator=generator)
    ours = torch.autograd.grad(y, (x, weight), grad)
    theirs = torch.autograd.grad(plain, (x, weight), grad.double())
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    if case in TILES:  # also of what is too small to be worth it
        tiled = weight_gradient(
            *(t.detach().contiguous(memory_format=torch.channels_last) for t in (grad, x)), weight, stride
        )
        torch.testing.assert_close(tiled, theirs[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride"), TILES)
def test_every_tap_is_of_its_own_place(kernel: int, stride: int) -> None:
    """One pixel of input and one of gradient: exactly one tap sees both."""
    middle = 8 // stride
    for down in range(-(kernel // 2), kernel // 2 + 1):
        for right in range(-(kernel // 2), kernel // 2 + 1):
            x, grad = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16 // stride, 16 // stride)
            grad[0, 0, middle, middle] = 1
            x[0, 0, middle * stride + down, middle * stride + right] = 1
            found = weight_gradient(grad, x, torch.empty(1, 1, kernel, kernel), stride)
            assert found.nonzero().tolist() == [[0, 0, down + kernel // 2, right + kernel // 2]]


def test_nets_train_through_it_as_through_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole net of a space, with the tiles and without."""
    space = find_space("atomnas-tiny")
    assert isinstance(space, AtomSpace)
    net = space.build(space.supernet_arch, generator=torch.Generator().manual_seed(0))
    for part in net.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    assert {layer.kernel_size[0] for layer in net.modules() if isinstance(layer, DepthwiseConv2d)} == {3, 5, 7}
    images = torch.randn(16, *space.input_shape, generator=torch.Generator().manual_seed(1))
    images = images.to(memory_format=torch.channels_last)

    def gradients() -> list[torch.Tensor]:
        net.zero_grad()
        nn.functional.cross_entropy(net(images), torch.arange(16) % 10).backward()
        return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]

    taken = []
    monkeypatch.setattr(
        "hwnas.nn.depthwise.weight_gradient", lambda *args: taken.append(args) or weight_gradient(*args)
    )
    ours = gradients()
    assert len(taken) > 5 or platform.machine() != "x86_64"
    monkeypatch.setattr("hwnas.nn.depthwise.TILED", False)
    for mine, theirs in zip(ours, gradients(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
