"""What a search costs beside the networks' own arithmetic; ratios within one run, so that the machine hardly matters.

    python benchmarks/search_speed.py [overhead] [step] [memory] [scoring]

overhead  the whole evolution, P = 50 and T = 20, with a table look-up instead of inference: under 0.5 s
step      a supernet's training step against that of the plain network of the same path: at most 1.05 times, paired
memory    the peak of a supernet's training step above its weights against the plain network's: at most 1.1 times
scoring   the share of candidate scoring that is spent inside the model's forward: at least 90%

--quick measures a few small steps: it shows that the parts run, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hwnas.costs import macs_cost, params_cost
from hwnas.search.evolution import evolve
from hwnas.search.feasible import FeasibleSampler
from hwnas.spaces import Arch, Space, get_space
from hwnas.train.batches import Batches
from hwnas.train.data import DataInfo, DataSplits, Images, Normalisation
from hwnas.train.evaluate import Evaluator
from hwnas.train.optimizers import make_optimizer
from hwnas.train.process import prepare_process
from hwnas.train.recipe import Phase, Scoring


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        image, batch: of a training step: pixels of a side, images.
        pairs: of steps.
        candidates: that are scored.
        train, val: images that each is scored on.
    """

    image: int = 96
    batch: int = 64
    pairs: int = 24
    candidates: int = 12
    train: int = 500
    val: int = 1500

    @property
    def phase(self) -> Phase:
        """The training that a step is of."""
        return Phase(steps=1000, batch_size=self.batch, optimizer="sgd", lr=0.01, weight_decay=4e-5)

    def space(self) -> Space:
        """The space that a step is of."""
        return get_space("spos-shufflenet", image_size=self.image, num_classes=100)


FULL, QUICK = Sizes(), Sizes(image=64, batch=4, pairs=3, candidates=2, train=50, val=100)


def noise(count: int, size: int) -> Images:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return Images(images, torch.arange(count) % 10)


def overhead(_: Sizes = FULL) -> bool:
    """Seconds of an evolution whose scores cost nothing, by how many budgets bind and how tight they are."""
    good = True
    for name in ("spos-shufflenet", "proxyless"):
        space = get_space(name)
        taste = np.random.default_rng(0).normal(size=(len(space.slots), max(map(len, space.slots))))
        costs = [macs_cost(space), params_cost(space)]
        ends = [[c.prices.total_of(g) for g in (c.prices.cheapest(), c.prices.dearest())] for c in costs]

        def score(archs: list[Arch], taste: np.ndarray = taste) -> list[float]:
            genes = np.array([arch.genes for arch in archs])
            return taste[np.arange(genes.shape[1]), genes].sum(axis=1).tolist()  # type: ignore[no-any-return]

        for count, share, use in ((1, 0.5, 0.0), (1, 0.5, 0.92), (1, 0.1, 0.92), (2, 0.5, 0.92)):
            limits = [low + share * (high - low) for low, high in ends[:count]]
            began = time.perf_counter()
            sampler = FeasibleSampler(costs[:count], limits, min_use=use)
            built = time.perf_counter()
            result = evolve(space, sampler, score, np.random.default_rng(0))
            done = time.perf_counter()
            good &= done - began < 0.5
            print(
                f"overhead  {name:16} {count} budget(s) at {share:.0%}, at least {use:.0%} used: {done - began:.3f} s "
                f"({built - began:.3f} s of it counting), {len(result.evaluated)} candidates"
            )
    return good


def stepper(module: nn.Module, batches: Batches, phase: Phase, genes: tuple[int, ...] | None) -> Callable[[int], float]:
    """One whole training step, augmentation included; returns its seconds."""
    module.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = make_optimizer(module, phase)
    loss_function = nn.CrossEntropyLoss()

    def step(index: int) -> float:
        began = time.perf_counter()
        images, labels = batches.at(index)
        optimizer.zero_grad(set_to_none=True)
        scores = module(images) if genes is None else module(images, genes)
        loss_function(scores, labels).backward()
        optimizer.step()
        return time.perf_counter() - began

    return step


def two_steppers(sizes: Sizes) -> tuple[Callable[[int], float], Callable[[int], float]]:
    """The steps of a supernet and of the plain network along the same path."""
    space, phase = sizes.space(), sizes.phase
    data = noise(4 * sizes.batch, sizes.image)
    batches = Batches(data, Normalisation.of(data.images), phase, 0, "speed")
    genes = space.sample(np.random.default_rng(1)).genes
    supernet = space.supernet(generator=torch.Generator().manual_seed(0))
    plain = space.build(Arch(space.name, genes), generator=torch.Generator().manual_seed(0))
    return stepper(supernet, batches, phase, genes), stepper(plain, batches, phase, None)


def step(sizes: Sizes = FULL) -> bool:
    """Paired ratios, in turns; the median and a 95% interval by resampling the pairs."""
    ours, plain = two_steppers(sizes)
    for index in range(3):
        ours(index), plain(index)
    ratios = []
    for index in range(sizes.pairs):
        first, second = (ours, plain) if index % 2 else (plain, ours)
        times = first(index), second(index)
        ratios.append(times[0] / times[1] if index % 2 else times[1] / times[0])
    low, high = interval(ratios)
    middle = statistics.median(ratios)
    print(
        f"step      supernet over plain network, {sizes.pairs} pairs: {middle:.3f} times (95%: {low:.3f} to {high:.3f})"
    )
    return middle <= 1.05


def interval(values: list[float]) -> tuple[float, float]:
    """95% interval of the median, by bootstrap."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (4000, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)


def peak_mib(which: str, sizes: Sizes) -> float:
    """Peak memory of three steps above what is held before them, in a process of its own."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"import search_speed; search_speed.print_peak({which!r}, search_speed.{sizes!r})"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def print_peak(which: str, sizes: Sizes) -> None:
    torch.set_num_threads(1)
    ours, plain = two_steppers(sizes)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far (proc(5))
    before = status_mib("VmRSS")
    run = ours if which == "supernet" else plain
    for index in range(3):
        run(index)
    print(status_mib("VmHWM") - before)


def status_mib(name: str) -> float:
    """A figure of this process's memory, of /proc/self/status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def memory(sizes: Sizes = FULL) -> bool:
    ours, plain = peak_mib("supernet", sizes), peak_mib("plain", sizes)
    print(f"memory    a step's peak: supernet {ours:.0f} MiB, plain network {plain:.0f} MiB: {ours / plain:.3f} times")
    return ours / plain <= 1.1


def scoring(sizes: Sizes = FULL) -> bool:
    """Seconds inside the extracted networks' forward over all seconds, one thread."""
    torch.set_num_threads(1)
    space = get_space("spos-shufflenet-tiny")
    train, val = noise(sizes.train, 28), noise(sizes.val, 28)
    splits = DataSplits(
        DataInfo("noise", "noise", tuple("0123456789"), 28), train, val, Normalisation.of(train.images), None
    )
    supernet = space.supernet(generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recipe = Scoring(recalibrate_images=sizes.train, val_images=sizes.val, batch_size=50)
    evaluator = Evaluator(supernet, splits, recipe, seed=0)
    inside = 0.0
    entered: list[float] = []

    def before(*_: object) -> None:
        entered.append(time.perf_counter())

    def after(*_: object) -> None:
        nonlocal inside
        inside += time.perf_counter() - entered.pop()

    extract = supernet.extract

    def watched(arch: Arch) -> nn.Module:
        net = extract(arch)
        net.register_forward_pre_hook(before)
        net.register_forward_hook(after)
        return net

    supernet.extract = watched
    rng = np.random.default_rng(0)
    genes = [space.sample(rng).genes for _ in range(sizes.candidates)]
    evaluator(genes[0])  # fills the cache of images
    inside, began = 0.0, time.perf_counter()
    list(evaluator.scores(genes, 1))
    whole = time.perf_counter() - began
    print(f"scoring   {inside / whole:.1%} of {whole / sizes.candidates:.3f} s a candidate is inside its forward")
    return inside / whole >= 0.9


PARTS = {"overhead": overhead, "step": step, "memory": memory, "scoring": scoring}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="all of them where none is named")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="only check that the parts run: the figures mean nothing")
    options = parser.parse_args()
    prepare_process(options.threads)
    sizes = QUICK if options.quick else FULL
    missed = [name for name in options.parts or PARTS if not PARTS[name](sizes)]
    if options.quick:
        print("--quick: the parts run; the figures above mean nothing")
        return 0
    print(f"missed: {', '.join(missed)}" if missed else "all within their limits")
    return 3 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
