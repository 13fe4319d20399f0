"""Exponential moving averages of a net's parameters, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


def decay_at(decay: float, updates: int) -> float:
    """The decay after `updates` updates: ``min(decay, (1 + t) / (10 + t))``.

    The published code has this warm-up (TensorFlow's), the paper does not say so: without it an importance factor that
    reaches zero in epoch 25 counts as dead in epoch 135 instead of 54, and shrinking saves little.
    """
    return min(decay, (1 + updates) / (10 + updates))


class Ema:
    """Averages of all parameters of a module.

    Attributes:
        decay: the largest; see `decay_at`.
        shadow: the averages, by parameter name. `hwnas.nn.prunable.select` cuts them with their parameters.
        updates: how often it was updated.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.shadow: dict[str, Tensor] = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the averages towards the module's parameters."""
        self.updates += 1
        parameters = dict(module.named_parameters())
        averages = [self.shadow[name] for name in parameters]
        weight = 1 - decay_at(self.decay, self.updates)
        torch._foreach_lerp_(averages, [p.detach() for p in parameters.values()], weight)

    @contextmanager
    def inside(self, module: nn.Module) -> Iterator[None]:
        """The module with the averages as its parameters; its own, and its buffers, are put back afterwards."""
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        buffers = {name: b.clone() for name, b in module.named_buffers()}
        self._write(module, self.shadow)
        try:
            yield
        finally:
            self._write(module, before)
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    buffer.copy_(buffers[name])

    def write(self, module: nn.Module) -> None:
        """Makes the averages the module's parameters, for good."""
        self._write(module, self.shadow)

    @staticmethod
    @torch.no_grad()
    def _write(module: nn.Module, values: dict[str, Tensor]) -> None:
        for name, parameter in module.named_parameters():
            parameter.copy_(values[name])


@dataclass
class Averaging:
    """The hooks of a retraining: averages of its parameters."""

    net: nn.Module
    decay: float
    ema: Ema = field(init=False)

    def __post_init__(self) -> None:
        self.ema = Ema(self.net, self.decay)

    def before_update(self, step: int, lr: float) -> None:
        """Nothing."""

    def after_update(self, done: int) -> None:
        """Averages."""
        del done
        self.ema.update(self.net)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside tensors."""
        return {"updates": self.ema.updates}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up a state."""
        self.ema.updates = int(state["updates"])

    def resumed(self, step: int) -> None:
        """Nothing was noted."""
