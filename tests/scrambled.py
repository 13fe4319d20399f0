"""Networks in which nothing is as it was initialised, so that what is folded away wrongly shows."""

from __future__ import annotations

import torch
from torch import nn


def scrambled(net: nn.Module, seed: int = 0) -> nn.Module:
    """`net` in double precision, every parameter and statistic drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for part in net.double().modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.bias, part.running_mean):
                nn.init.normal_(tensor, std=0.4, generator=generator)
            for tensor in (part.weight, part.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
        elif isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, generator=generator)
            if part.bias is not None:
                nn.init.normal_(part.bias, std=0.4, generator=generator)
    return net
