"""RMSProp as AtomNAS and the MnasNet family train with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class RMSProp(Optimizer):
    """RMSProp with epsilon inside the square root, as the published code has it (meijieru/AtomNAS `utils/rmsprop.py`).

    ``square = alpha * square + (1 - alpha) * g^2; step = momentum * step + g / sqrt(square + eps); w -= lr * step``,
    where g holds ``weight_decay * w``. torch's own adds epsilon behind the root; at the published 1e-3 that is another
    optimizer. Its moments begin at zero. All parameters of a group are updated by a few calls.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        alpha: float = 0.9,
        momentum: float = 0.9,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "alpha": alpha, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step from the gradients that are there; parameters without one are left alone."""
        assert closure is None
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: list[Tensor] = [p.grad for p in params if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p] = {"square_avg": torch.zeros_like(p), "momentum_buffer": torch.zeros_like(p)}
            squares = [self.state[p]["square_avg"] for p in params]
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            if group["weight_decay"]:
                grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
            torch._foreach_mul_(squares, group["alpha"])
            torch._foreach_addcmul_(squares, grads, grads, value=1 - group["alpha"])
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_addcdiv_(buffers, grads, roots)
            torch._foreach_add_(params, buffers, alpha=-group["lr"])
