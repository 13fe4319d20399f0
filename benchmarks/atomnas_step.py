"""A training step of an AtomNAS supernet: hwnas against a straightforward implementation of the paper, side by side.

The straightforward one has the published code's habits: plain (NCHW) tensors, penalties as terms of the loss, and a
Python loop over all tensors for weight decay, RMSProp and the moving averages. Both start from the same weights and see
the same images, each in a process of its own; steps are taken in turns, and the losses must agree. A third process is
hwnas as it trains: with the memory that it keeps (`hwnas.train.process`).

    python benchmarks/atomnas_step.py --space atomnas-c --batch 8 --steps 20
"""

from __future__ import annotations

import argparse
import time
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from resource import RUSAGE_SELF, getrusage
from statistics import median

import torch
from torch import Tensor, nn

from hwnas.atom_costs import CountCost
from hwnas.errors import HwnasError
from hwnas.nn.blocks import ChainNet
from hwnas.nn.shrink import importances, remove_atoms
from hwnas.search.atom_training import AtomTraining
from hwnas.spaces import AtomSpace, find_space
from hwnas.train.ema import decay_at
from hwnas.train.process import keep_freed_memory
from hwnas.train.recipe import Atoms
from hwnas.train.rmsprop import RMSProp

PENALTY, DECAY, LR, L2 = 1e-4, 0.9999, 1e-3, 1e-5
PLAIN, DEFAULT, KEPT = WHICH = ("straightforward", "hwnas, memory as usual", "hwnas, memory kept")


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


@dataclass(frozen=True)
class Sizes:
    """What a step is of."""

    space: str
    batch: int
    threads: int


def work(pipe: Connection, sizes: Sizes, which: str) -> None:
    """A process: takes a step at every word, and tells its seconds, its loss, the bookkeeping's share and the peak."""
    torch.set_num_threads(sizes.threads)
    if which == KEPT:
        keep_freed_memory()
    space = atom_space(sizes.space)
    ours, plain = both(space)
    stepper: Ours | Plain = plain if which == PLAIN else ours
    del ours, plain
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(sizes.batch, *space.input_shape, generator=generator).to(memory_format=torch.channels_last)
    labels = torch.arange(sizes.batch) % space.num_classes
    while pipe.recv():
        began = time.perf_counter()
        loss = stepper.step(images, labels)
        seconds = time.perf_counter() - began
        pipe.send((seconds, loss, getattr(stepper, "beside_s", 0.0) / seconds, peak_mib()))
    if isinstance(stepper, Ours):
        began = time.perf_counter()
        dead = {ref: torch.arange(len(gamma)) % 3 == 0 for ref, gamma in importances(stepper.net).items()}
        remove_atoms(stepper.net, dead, optimizer=stepper.hooks.optimizer, shadows=[stepper.hooks.ema.shadow])
        pipe.send(time.perf_counter() - began)


def atom_space(name: str) -> AtomSpace:
    """A space of atoms.

    Raises:
        HwnasError: it is none.
    """
    space = find_space(name)
    if not isinstance(space, AtomSpace):
        raise HwnasError(f"{name} is no space of atoms: give atomnas-a, -b, -c or -tiny")
    return space


def peak_mib() -> float:
    """The most memory that this process has held."""
    return getrusage(RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Prints ratios of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="atomnas-c")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.steps < 2:
        parser.error("--steps: give 2 or more; the first one does not count")
    try:
        space = atom_space(args.space)
    except HwnasError as error:
        parser.error(str(error))
    sizes = Sizes(args.space, args.batch, args.threads)
    context = get_context("spawn")
    pipes: dict[str, Connection] = {}
    for which in WHICH:
        pipes[which], theirs = context.Pipe()
        context.Process(target=work, args=(theirs, sizes, which), daemon=True).start()
        theirs.close()  # so that a process that dies is noticed
    rows: dict[str, list[tuple[float, float, float, float]]] = {which: [] for which in WHICH}
    for _ in range(args.steps):
        for which, pipe in pipes.items():
            pipe.send(True)
            rows[which].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    losses = {which: [row[1] for row in rows[which]] for which in WHICH}
    shape, atoms = space.input_shape, space.supernet_arch.atoms
    print(f"{args.space}, {shape[1]} px, batch {args.batch}, {args.threads} threads, {args.steps} steps in turns")
    for which in WHICH:
        ratio = median(slow[0] / fast[0] for slow, fast in zip(rows[PLAIN][1:], rows[which][1:], strict=True))
        seconds, peak = median(row[0] for row in rows[which][1:]), rows[which][-1][3]
        print(f"  {which:24} {seconds:.3f} s a step, {ratio:.2f} times as fast, peak {peak:.0f} MiB")
    beside = median(row[2] for row in rows[KEPT][1:])
    print(f"penalty, averages and bookkeeping: {100 * beside:.1f}% of the step")
    first, last = (100 * abs(losses[KEPT][at] / losses[PLAIN][at] - 1) for at in (0, -1))
    print(f"losses differ by {first:.2g}% in the first step, {last:.2g}% in the last: single precision drifts apart")
    print(f"removing a third of all {atoms} atoms: {pipes[KEPT].recv():.2f} s")


if __name__ == "__main__":
    main()
