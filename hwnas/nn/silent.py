"""What dead channels still give, and where it goes when they are removed.

A channel whose gate is closed, or whose importance is zero, is a constant: a bias, or the shift of its BatchNorm.
Layers make other constants of it, until a BatchNorm takes one in its running mean. In training a BatchNorm takes a
constant off by itself. All this is in double precision, wherever the layers are.

`hwnas.nn.shrink` removes atoms while a net trains and folds at once, block by block; `hwnas.nn.cut` follows constants
through any traced net. Both remove channels by `hwnas.nn.prunable.select`, in place: the one in the net with its
optimizer, the other in copies of its layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

AnyNorm = nn.BatchNorm2d | nn.BatchNorm1d


def through_layer(layer: nn.Conv2d | nn.Linear, constants: Tensor) -> Tensor:
    """What a layer makes of constants, without its bias.

    Args:
        layer: linear, or a convolution of one group or depthwise.
        constants: of its input channels, float64 [channels].

    Returns:
        float64 [output channels], where `constants` are.
    """
    weight = layer.weight.detach().to(constants)
    summed = weight.sum((2, 3)) if weight.ndim == 4 else weight
    depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
    return summed[:, 0] * constants if depthwise else summed @ constants


def through_norm(norm: AnyNorm, constants: Tensor) -> Tensor:
    """What a BatchNorm makes of constants in inference, float64 [channels]."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.to(constants) + norm.eps)
    given = (constants - norm.running_mean.to(constants)) * scale
    if norm.affine:
        given = given * norm.weight.detach().to(constants) + norm.bias.detach().to(constants)
    return given


def absorb(norm: AnyNorm, constants: Tensor) -> None:
    """Takes constants [channels], which its input will no longer have, off a BatchNorm's running mean."""
    assert norm.running_mean is not None
    norm.running_mean -= constants.to(norm.running_mean)
