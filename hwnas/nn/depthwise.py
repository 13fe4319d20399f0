"""Depthwise convolutions of five and seven taps, whose weights get their gradient several times as fast on a CPU.

oneDNN has a kernel for the gradient of a depthwise weight that is at most three columns wide; a wider one goes through
a general convolution, four to ten times as slow, and that is most of the backward pass of a mobile net. The gradient of
a wide weight is that of narrow ones side by side, each of which sees the input from another column on
(`weight_gradient`). The output and the gradient of the input are torch's own.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

TILES: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {
    (5, 1): ((-2, 3), (1, 2)),
    (7, 1): ((-3, 2), (-1, 3), (2, 2)),
    (5, 2): ((-2, 3), (1, 2)),
}
"""Of a kernel of so many taps and stride: narrow ones, each with its first tap, the middle one being 0, and its width.

With stride 2 oneDNN's kernel does not take seven rows.
"""

LEAST_MACS = 2_800_000
"""With less to compute the further calls cost more than they save; the same goes for maps smaller than the kernel."""

TILED = platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
"""Whether this is a processor, and a torch, whose oneDNN has those kernels."""


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution without bias, padded so that a stride of 1 keeps the size."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.stride[0])


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The depthwise convolution that keeps the size, but for its stride.

    Args:
        x: [batch, channels, height, width].
        weight: [channels, 1, kernel, kernel], the kernel odd.
        stride: of both dimensions.
    """
    kernel, channels = weight.shape[-1], weight.shape[0]
    fast = (
        TILED
        and (kernel, stride) in TILES
        and min(x.shape[2:]) >= kernel
        and _macs(x.shape, kernel, stride) >= LEAST_MACS
        and torch.is_grad_enabled()
        and weight.requires_grad
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
    )
    if not fast:
        return functional.conv2d(x, weight, None, stride, kernel // 2, 1, channels)
    y: Tensor = _Depthwise.apply(x, weight, stride)
    return y


def _macs(shape: torch.Size, kernel: int, stride: int) -> int:
    batch, channels, height, width = shape
    return batch * channels * -(-height // stride) * -(-width // stride) * kernel**2


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        kernel, stride = weight.shape[-1], ctx.stride
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _backward(grad, x, weight, stride, (kernel // 2, kernel // 2), of_weight=False)
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(grad, x, weight, stride)
        return of_x, of_weight, None


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The gradient of a depthwise weight, a tile of columns at a time.

    Args:
        grad: of the output, [batch, channels, height out, width out].
        x: the input, [batch, channels, height, width].
        weight: [channels, 1, kernel, kernel], of `TILES`; only its shape matters.
        stride: of both dimensions.
    """
    channels, kernel = weight.shape[0], weight.shape[-1]
    parts = []
    for first, width in TILES[kernel, stride]:
        tile = weight[..., :width]
        centred = stride == 1 and first == -(width // 2) and width % 2 == 1
        if centred:  # of x as it is
            seen, padding = x, width // 2
        else:
            seen, padding = _columns(x, first, (grad.shape[3] - 1) * stride + width), 0
        parts.append(_backward(grad, seen, tile, stride, (kernel // 2, padding), of_weight=True))
    return torch.cat(parts, 3).view(channels, 1, kernel, kernel)


def _columns(x: Tensor, first: int, width: int) -> Tensor:
    """So many columns of `x` from the first one on, those outside of it zero."""
    batch, channels, height, wide = x.shape
    left = min(width, max(0, -first))
    right = min(width - left, max(0, first + width - wide))
    new = torch.empty((batch, channels, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    new[..., :left] = 0
    new[..., width - right :] = 0
    new[..., left : width - right] = x[..., first + left : first + width - right]
    return new


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], *, of_weight: bool
) -> Tensor:
    strides, wanted, groups = (stride, stride), (not of_weight, of_weight, False), weight.shape[0]
    found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, strides, padding, (1, 1), False, (0, 0), groups, wanted
    )
    return found[int(of_weight)]
