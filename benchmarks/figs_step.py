"""What gates and their cost add to a training step: the gated net beside the plain one, steps taken in turns.

    python benchmarks/figs_step.py figs-resnet50:224:8 figs-fbnet-tiny:28:64

prints, for each SPACE:PIXELS:BATCH, the median of the paired ratios of a whole step (forward, backward, penalty,
optimizer; the averages are left out), and its quartiles. Of a variant (``figs-fbnet-tiny@full:28:64``) it prints how
many times as long its gated step takes as that of the space without the ``@``: what removing redundant operators saves
(2.5 times in section 3.3 of the paper).
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable

import torch

from hwnas.errors import HwnasError
from hwnas.gate_costs import GateCount
from hwnas.nn.gates import GatedNet
from hwnas.search.figs_training import FigsTraining
from hwnas.spaces import GateSpace, find_space
from hwnas.train.optimizers import make_optimizer
from hwnas.train.process import prepare_process
from hwnas.train.recipe import Gates, Phase

WARM = 2

Step = Callable[[int], None]


def steps_of(space: GateSpace, batch: int) -> tuple[Step, Step]:
    """A step of the plain net, and one of the gated net."""
    phase = Phase(steps=1000, batch_size=batch, optimizer="adamw", lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, *space.input_shape, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % space.num_classes
    plain, inner = (space.supernet(generator=torch.Generator().manual_seed(0)) for _ in range(2))
    gated = GatedNet(inner, space.input_shape, readable=space.readable)
    for net in (plain, gated):
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        net.train()
    optimizer = make_optimizer(plain, phase)
    cost = GateCount(space, "macs")
    training = FigsTraining(space, gated, make_optimizer(gated.net, phase), cost, (), Gates(penalty=1e-6), 1000)

    def without(step: int) -> None:
        del step
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(plain(images), labels).backward()
        optimizer.step()

    def with_gates(step: int) -> None:
        training.optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(training.forward(images, step), labels).backward()
        training.before_update(step, 1e-3)
        training.optimizer.step()

    return without, with_gates


def compare(name: str, pixels: int, batch: int, pairs: int) -> None:
    """Prints a line, or two of a variant."""
    usual, _, variant = name.partition("@")
    both = steps_of(space_of(name, pixels), batch)
    times, (low, middle, high) = in_turns(both, pairs)
    print(
        f"{name} at {pixels} px, batch {batch}: gates and cost add {100 * (middle - 1):+.1f}% "
        f"(quartiles {100 * (low - 1):+.1f}% to {100 * (high - 1):+.1f}%, {pairs} pairs, "
        f"plain {1000 * times[0]:.0f} ms)",
        flush=True,
    )
    if variant:
        _, (low, middle, high) = in_turns((steps_of(space_of(usual, pixels), batch)[1], both[1]), pairs)
        beside = f"{middle:.2f} times that of {usual} (quartiles {low:.2f} to {high:.2f})"
        print(f"  its gated step takes {beside}", flush=True)


def space_of(name: str, pixels: int) -> GateSpace:
    """For images of so many pixels."""
    space = find_space(name, image_size=pixels)
    assert isinstance(space, GateSpace)
    return space


def in_turns(both: tuple[Step, Step], pairs: int) -> tuple[list[float], list[float]]:
    """Median seconds of two steps, and the quartiles of the second's ratio to the first."""
    times: list[list[float]] = [[], []]
    for step in range(WARM + pairs):
        for which in (0, 1) if step % 2 else (1, 0):
            began = time.perf_counter()
            both[which](step)
            if step >= WARM:
                times[which].append(time.perf_counter() - began)
    ratios = [second / first for first, second in zip(*times, strict=True)]
    return [statistics.median(found) for found in times], statistics.quantiles(ratios, n=4)


def main() -> None:
    """Compares what was named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", metavar="SPACE:PIXELS:BATCH")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    prepare_process(options.threads)
    asked = []
    for text in options.what:
        match = re.fullmatch(r"(.+):(\d+):(\d+)", text)
        if match is None:
            parser.error(f"{text!r} is no SPACE:PIXELS:BATCH, as figs-fbnet-tiny:28:64")
        try:
            space = find_space(match[1], image_size=int(match[2]))
        except HwnasError as error:
            parser.error(str(error))
        if not isinstance(space, GateSpace):
            parser.error(f"{match[1]} has no gates")
        asked.append((match[1], int(match[2]), int(match[3])))
    for name, pixels, batch in asked:
        compare(name, pixels, batch, options.pairs)


if __name__ == "__main__":
    main()
