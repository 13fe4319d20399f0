"""Convolutions that compute with few bits: PACT activations and DoReFa weights, emulated in floating point.

Activations (Choi et al. 2018, "PACT", equations 1 to 3) are clipped to [0, clip] and rounded to 2^k - 1 equal steps;
the clip is learned, its gradient is that of the inputs above it. Weights (Zhou et al. 2016, "DoReFa-Net", equations 6
and 9) of several bits are rounded between -1 and 1 after a tanh scaled to its largest, those of one bit are their sign
times their mean size. Rounding passes gradients straight through. A BatchNorm behind the convolution takes up the
scale of the weights.

The clip of k bits is a learned scale times the clip that is best for k bits and half-normal inputs (what a BatchNorm
and a ReLU give): so all bit widths of a supernet learn one number, and none has to start from PACT's wide clip and wait
for a decay to shrink it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.spaces.chain import ConvSpec

CLIPS = {1: 1.2240, 2: 1.9523, 3: 2.4739, 4: 2.8987, 5: 3.2701, 6: 3.6074, 7: 3.9205, 8: 4.2147}
"""By bits, the clip with the least mean squared error of rounding max(0, N(0, 1)) to 2^bits - 1 steps."""

_SMALLEST = 1e-6
"""Keeps a clip from being zero."""


def quantised_activation(x: Tensor, clip: Tensor, bits: int) -> Tensor:
    """`x` clipped to [0, clip] and rounded to one of 2^bits levels (PACT, equations 1 and 2).

    The gradient passes to `x` between 0 and the clip, and to the clip from what is above it (equation 3).
    """
    rounded: Tensor = _Quantise.apply(x, clip, bits)
    return rounded


class _Quantise(torch.autograd.Function):
    """`quantised_activation`, a third of the passes over memory that autograd's own arithmetic takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(x, clip)
        step = clip / (2**bits - 1)
        return torch.minimum(x, clip).clamp_(min=0).div_(step).round_().mul_(step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        x, clip = ctx.saved_tensors
        above = x >= clip
        to_clip = grad.masked_select(above).sum() if ctx.needs_input_grad[1] else None
        to_x = grad.masked_fill(above | (x <= 0), 0.0) if ctx.needs_input_grad[0] else None
        return to_x, to_clip, None


def quantised_weight(weight: Tensor, bits: int) -> Tensor:
    """`weight` at 2^bits levels from -1 to 1; at one bit plus and minus its mean size (DoReFa, equations 6 and 9)."""
    if bits == 1:
        held = weight.detach()
        size = held.abs().mean()
        signs: Tensor = weight + (torch.where(held < 0, -size, size) - held)
        return signs
    bent = torch.tanh(weight)
    placed = bent / (2 * bent.abs().max().clamp_min(_SMALLEST)) + 0.5
    steps = 2**bits - 1
    rounded: Tensor = placed + (torch.round(placed.detach() * steps) / steps - placed.detach())
    return 2 * rounded - 1


class QuantConv2d(nn.Conv2d):
    """A convolution without bias that quantises what arrives and its weights.

    Attributes:
        bits: of weights and activations.
        scale: of the clip; 1 fits what a BatchNorm and a ReLU give.
    """

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__(spec.cin, spec.cout, spec.kernel, spec.stride, spec.kernel // 2, bias=False)
        assert spec.bits
        self.bits = spec.bits
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.of(x, self.weight, self.bits)

    def of(self, x: Tensor, weight: Tensor, bits: tuple[int, int]) -> Tensor:
        """The convolution with other weights and bits."""
        x = quantised_activation(x, self.clip(bits[1]), bits[1])
        return functional.conv2d(x, quantised_weight(weight, bits[0]), None, self.stride, self.padding)

    def clip(self, bits: int) -> Tensor:
        """The clip of activations of so many bits."""
        clip: Tensor = (self.scale.abs() + _SMALLEST) * CLIPS[bits]
        return clip


class _Rounded(nn.Module):
    """Quantised activations of a finished net, spelled as arithmetic on constants."""

    def __init__(self, clip: float, bits: int) -> None:
        super().__init__()
        self.clip, self.step = clip, clip / (2**bits - 1)

    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = torch.round(x.clamp(0.0, self.clip) / self.step) * self.step
        return rounded


@torch.no_grad()
def emulate(module: nn.Module) -> None:
    """Turns every `QuantConv2d` of a finished net into plain fp32 arithmetic with the same results, in place.

    Weights are stored as they were rounded. It computes the numbers that a low-bit device would, at the speed of fp32.
    """
    for parent in list(module.modules()):
        for name, part in list(parent.named_children()):
            if type(part) is QuantConv2d:
                setattr(parent, name, _emulation(part))


def _emulation(conv: QuantConv2d) -> nn.Sequential:
    options: Any = {"stride": conv.stride, "padding": conv.padding, "bias": False}
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, **options)  # type: ignore[arg-type]
    plain.weight.copy_(quantised_weight(conv.weight, conv.bits[0]))
    return nn.Sequential(_Rounded(float(conv.clip(conv.bits[1])), conv.bits[1]), plain)
