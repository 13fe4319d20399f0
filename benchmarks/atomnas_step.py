"""A training step of an AtomNAS supernet: hwnas against a straightforward implementation of the paper, side by side.

The straightforward one has the published code's habits: plain (NCHW) tensors, penalties as terms of the loss, and a
Python loop over all tensors for weight decay, RMSProp and the moving averages. Both start from the same weights and see
the same images; steps are interleaved, and the losses must agree.

    python benchmarks/atomnas_step.py --space atomnas-c --batch 8 --steps 5
"""

from __future__ import annotations

import argparse
import time
from copy import deepcopy
from statistics import median

import torch
from torch import Tensor, nn

from hwnas.atom_costs import CountCost
from hwnas.nn.blocks import ChainNet
from hwnas.nn.shrink import importances, remove_atoms
from hwnas.search.atom_training import AtomTraining
from hwnas.spaces import AtomSpace, find_space
from hwnas.train.ema import decay_at
from hwnas.train.recipe import Atoms
from hwnas.train.rmsprop import RMSProp

PENALTY, DECAY, LR, L2 = 1e-4, 0.9999, 1e-3, 1e-5


class Plain:
    """The straightforward implementation."""

    def __init__(self, net: ChainNet, prices: list[float]) -> None:
        self.net, self.prices, self.updates = net.to(memory_format=torch.contiguous_format).train(), prices, 0
        self.squares = [torch.zeros_like(p) for p in net.parameters()]
        self.buffers = [torch.zeros_like(p) for p in net.parameters()]
        self.averages = [p.detach().clone() for p in net.parameters()]

    def step(self, images: Tensor, labels: Tensor) -> float:
        images = images.contiguous()
        scores = self.net(images)
        data_loss = nn.functional.cross_entropy(scores, labels)
        loss = data_loss
        for parameter in self.net.parameters():
            if parameter.ndim >= 2:
                loss = loss + 0.5 * L2 * (parameter**2).sum()
        for gamma, price in zip(importances(self.net).values(), self.prices, strict=True):
            loss = loss + PENALTY * price * gamma.abs().sum()
        self.net.zero_grad()
        loss.backward()
        self.updates += 1
        decay = decay_at(DECAY, self.updates)
        with torch.no_grad():
            for p, square, buffer in zip(self.net.parameters(), self.squares, self.buffers, strict=True):
                assert p.grad is not None
                square.mul_(0.9).addcmul_(p.grad, p.grad, value=0.1)
                buffer.mul_(0.9).addcdiv_(p.grad, square.add(1e-3).sqrt_())
                p.add_(buffer, alpha=-LR)
            for p, average in zip(self.net.parameters(), self.averages, strict=True):
                average.mul_(decay).add_(p, alpha=1 - decay)
        return float(data_loss.detach())


class Ours:
    """What a search runs."""

    def __init__(self, space: AtomSpace, net: ChainNet) -> None:
        self.net = net.to(memory_format=torch.channels_last).train()
        parameters = list(net.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": L2},
            {"params": [p for p in parameters if p.ndim < 2]},
        ]
        settings = Atoms(penalty=PENALTY, ema_decay=DECAY, ramp=0.0)
        optimizer = RMSProp(groups, lr=LR)
        self.hooks = AtomTraining(space, net, optimizer, CountCost(space, "macs"), (), settings, steps=10**6)
        self.beside_s = 0.0

    def step(self, images: Tensor, labels: Tensor) -> float:
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.hooks.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        value = float(loss.detach())
        del loss
        began = time.perf_counter()
        self.hooks.before_update(0, LR)
        penalty_s = time.perf_counter() - began
        self.hooks.optimizer.step()
        began = time.perf_counter()
        self.hooks.after_update(1)
        self.beside_s = penalty_s + time.perf_counter() - began
        return value


def both(space: AtomSpace, dtype: torch.dtype = torch.float32) -> tuple[Ours, Plain]:
    """The two implementations with the same weights, without dropout."""
    net = space.build(space.supernet_arch, generator=torch.Generator().manual_seed(0)).to(dtype)
    for part in net.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    ours = Ours(space, deepcopy(net))
    return ours, Plain(net, ours.hooks._prices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="atomnas-c")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    space = find_space(args.space)
    assert isinstance(space, AtomSpace)
    ours, plain = both(space)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(args.batch, *space.input_shape, generator=generator).to(memory_format=torch.channels_last)
    labels = torch.arange(args.batch) % space.num_classes
    times: dict[str, list[float]] = {"plain": [], "hwnas": []}
    beside, worst = [], 0.0
    for _ in range(args.steps):
        losses = {}
        for name, kind in (("plain", plain), ("hwnas", ours)):
            began = time.perf_counter()
            losses[name] = kind.step(images, labels)
            times[name].append(time.perf_counter() - began)
        beside.append(ours.beside_s / times["hwnas"][-1])
        worst = max(worst, abs(losses["hwnas"] / losses["plain"] - 1))
    slow, fast = median(times["plain"][1:]), median(times["hwnas"][1:])
    print(f"{args.space}, {space.input_shape[1]} px, batch {args.batch}, {args.threads} threads, {args.steps} steps")
    print(f"straightforward {slow:.3f} s a step, hwnas {fast:.3f} s: {slow / fast:.2f} times as fast")
    print(f"penalty, averages and bookkeeping: {100 * median(beside):.1f}% of the step")
    print(f"losses differ by {100 * worst:.3g}% at most")
    began = time.perf_counter()
    dead = {ref: torch.arange(len(gamma)) % 3 == 0 for ref, gamma in importances(ours.net).items()}
    remove_atoms(ours.net, dead, optimizer=ours.hooks.optimizer, shadows=[ours.hooks.ema.shadow])
    print(f"removing a third of all {space.supernet_arch.atoms} atoms: {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
