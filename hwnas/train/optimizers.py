"""Optimizers and learning rates, as a recipe's phase says."""

from __future__ import annotations

import math

import torch
from torch import nn

from hwnas.train.recipe import Phase
from hwnas.train.rmsprop import RMSProp


def learning_rate(phase: Phase, step: int) -> float:
    """Learning rate of a step (from 0): linear warm-up to the peak, then decay; linear and cosine end at 0."""
    if step < phase.warmup_steps:
        return phase.lr * (step + 1) / (phase.warmup_steps + 1)
    if phase.schedule == "staircase":
        return float(phase.lr * phase.decay ** ((step - phase.warmup_steps) // phase.decay_steps))
    if phase.schedule == "exponential":
        return float(phase.lr * phase.decay ** ((step - phase.warmup_steps) / phase.decay_steps))
    progress = (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps)
    left = 1 - progress if phase.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return phase.lr * left


def set_rates(optimizer: torch.optim.Optimizer, phase: Phase, step: int) -> float:
    """Sets an optimizer's learning rates for a step, and Adam's epsilon where it is TensorFlow's; returns the rate.

    TensorFlow 1 divides by ``sqrt(v) + eps`` with v not yet corrected for its bias: in torch's terms, by an epsilon
    that is ``1 / sqrt(1 - beta2^t)`` times as large; a group's ``own_eps`` goes before that of the phase.
    """
    lr = learning_rate(phase, step)
    for group in optimizer.param_groups:
        group["lr"] = lr
        if phase.tf_epsilon and "eps" in group:
            group["eps"] = group.get("own_eps", phase.eps) / math.sqrt(1 - group["betas"][1] ** (step + 1))
    return lr


def make_optimizer(module: nn.Module, phase: Phase) -> torch.optim.Optimizer:
    """The optimizer of a phase; weight decay on parameters of two or more dimensions only.

    A parameter without a gradient is left alone by both: no decay, no momentum, no step counted. That is what keeps
    the choices that a path did not take unchanged. Of a weight that choices slice, a supernet guards the rest.
    """
    optimizer = _optimizer(module, phase)
    if guard := getattr(module, "guard", None):
        guard(optimizer)
    return optimizer


def _optimizer(module: nn.Module, phase: Phase) -> torch.optim.Optimizer:
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": phase.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if phase.optimizer == "rmsprop":
        return RMSProp(groups, lr=phase.lr, momentum=phase.momentum)
    if phase.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=phase.lr, momentum=phase.momentum, foreach=True)
    if phase.optimizer == "adam":
        return torch.optim.Adam(groups, lr=phase.lr, eps=phase.eps, foreach=True)
    return torch.optim.AdamW(groups, lr=phase.lr, eps=phase.eps, fused=True)
