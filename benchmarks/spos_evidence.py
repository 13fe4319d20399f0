"""Patterns of the SPOS paper, small enough for a CPU: Fashion-MNIST, spos-shufflenet-tiny.

    python benchmarks/spos_evidence.py evolution   figure 3: evolution against random search at equal evaluations
    python benchmarks/spos_evidence.py sampling    figure 2: uniform against uniform constraint sampling
    python benchmarks/spos_evidence.py ranking     Kendall's tau of inherited-weight and stand-alone accuracy

Seeds, sizes and statistics are the constants below, fixed before the first run. A pattern counts as seen where the 95%
interval lies wholly on its side of zero; else it is reported as not seen. Supernets are kept in --work and go on where
a killed run stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau, t

from hwnas.costs import macs_cost
from hwnas.progress import RichProgress
from hwnas.search.evolution import Evolution, evolve
from hwnas.search.feasible import FeasibleSampler
from hwnas.search.random_search import random_search
from hwnas.spaces import Arch, get_space
from hwnas.train.chance import step_rng, torch_generator
from hwnas.train.checkpoint import CheckpointStore
from hwnas.train.data import DataSplits, load_data
from hwnas.train.evaluate import Evaluator, accuracy
from hwnas.train.finish import train_net
from hwnas.train.loop import Batches, train_supernet
from hwnas.train.paths import make_paths
from hwnas.train.recipe import Phase, Sampling, Scoring

SPACE = get_space("spos-shufflenet-tiny")
COSTS = {"macs": macs_cost(SPACE)}
SEEDS = 5
BUDGET = 0.5
"""Of the way from the cheapest to the most expensive architecture, in MACs."""
EVOLUTION = Evolution(population=10, generations=5, parents=4)
SUPERNET = Phase(steps=800, batch_size=32, optimizer="adamw", lr=4e-3, weight_decay=0.02, warmup_steps=50, flip=False)
SHORT = SUPERNET.model_copy(update={"steps": 400})
ALONE = SUPERNET.model_copy(update={"steps": 300})
SCORING = Scoring(recalibrate_images=200, val_images=1000, batch_size=50)
ARCHITECTURES = 20


class Bench:
    """The data, and supernets by name."""

    def __init__(self, work: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.work, self.threads, self.progress = work, threads, RichProgress()
        self.splits: DataSplits = load_data("fashion-mnist", seed=0)

    def evaluator(self, name: str, phase: Phase, seed: int, sampling: Sampling | None = None) -> Evaluator:
        """What scores with a supernet that is trained now, or was before."""
        supernet = SPACE.supernet(generator=torch_generator(step_rng(seed, "weights", 0)))
        batches = Batches(self.splits.train, self.splits.normalisation, phase, seed, "supernet")
        train_supernet(
            supernet,
            batches,
            progress=self.progress,
            paths=make_paths(SPACE, sampling, COSTS, seed),
            store=CheckpointStore(self.work, f"{name}-{seed}"),
        )
        return Evaluator(supernet, self.splits, SCORING, seed=0)


def limit() -> float:
    prices = COSTS["macs"].prices
    low, high = (prices.total_of(genes) for genes in (prices.cheapest(), prices.dearest()))
    return low + BUDGET * (high - low)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95% interval by Student's t."""
    data = np.asarray(values)
    half = float(t.ppf(0.975, len(data) - 1) * data.std(ddof=1) / len(data) ** 0.5)
    return float(data.mean()), float(data.mean()) - half, float(data.mean()) + half


def verdict(pattern: str, values: Sequence[float], unit: str) -> bool:
    """Prints a mean with its interval, and whether the pattern, a positive mean, is seen."""
    mean, low, high = mean_interval(values)
    seen = low > 0
    print(f"{pattern}: {mean:+.2f} {unit} (95%: {low:+.2f} to {high:+.2f}, {len(values)} seeds): "
          f"{'seen' if seen else 'NOT SEEN'}")  # fmt: skip
    return seen


def scored(evaluator: Evaluator, threads: int) -> tuple[dict[Arch, float], object]:
    """Scores that are computed once, and the function that gives them."""
    known: dict[Arch, float] = {}

    def evaluate(archs: list[Arch]) -> list[float]:
        new = [arch for arch in archs if arch not in known]
        known.update(zip(new, evaluator.scores([arch.genes for arch in new], threads), strict=True))
        return [known[arch] for arch in archs]

    return known, evaluate


def evolution(bench: Bench) -> None:
    """The best validation accuracy of each method, seed by seed on one supernet; the mean of the differences."""
    _, evaluate = scored(bench.evaluator("evolution", SUPERNET, 0), bench.threads)
    sampler = FeasibleSampler([COSTS["macs"]], [limit()])
    differences = []
    for seed in range(SEEDS):
        best = [
            100 * search(SPACE, sampler, evaluate, np.random.default_rng(seed), settings=EVOLUTION).score
            for search in (evolve, random_search)
        ]
        differences.append(best[0] - best[1])
        print(f"  seed {seed}: evolution {best[0]:.2f}%, random {best[1]:.2f}%", flush=True)
    verdict(f"evolution over random search, {EVOLUTION.evaluations} evaluations each", differences, "points")


def sampling(bench: Bench) -> None:
    """The best accuracy that evolution finds on a supernet of each kind; the mean of the differences over seeds."""
    prices = COSTS["macs"].prices
    low = prices.total_of(prices.cheapest())
    bins = Sampling(low=str(int(low + 0.25 * (limit() - low) / BUDGET)), high=str(int(limit())), bins=5)
    differences = []
    for seed in range(SEEDS):
        best = []
        for name, kind in (("uniform", None), ("constraint", bins)):
            _, evaluate = scored(bench.evaluator(name, SHORT, seed, kind), bench.threads)
            sampler = FeasibleSampler([COSTS["macs"]], [limit()])
            found = evolve(SPACE, sampler, evaluate, np.random.default_rng(seed), settings=EVOLUTION)  # type: ignore[arg-type]
            best.append(100 * found.score)
        differences.append(best[1] - best[0])
        print(f"  seed {seed}: uniform {best[0]:.2f}%, uniform constraint {best[1]:.2f}%", flush=True)
    verdict("uniform constraint over uniform sampling", differences, "points")


def ranking(bench: Bench) -> None:
    """Kendall's tau over architectures drawn uniformly, with a bootstrap interval over architectures."""
    evaluator = bench.evaluator("evolution", SUPERNET, 0)
    rng = np.random.default_rng(0)
    archs = [SPACE.sample(rng) for _ in range(ARCHITECTURES)]
    inherited = list(evaluator.scores([arch.genes for arch in archs], bench.threads))
    alone = []
    for index, arch in enumerate(archs):
        module = SPACE.build(arch, generator=torch_generator(step_rng(0, "alone", index)))
        store = CheckpointStore(bench.work, f"alone-{index}")
        train_net(module, bench.splits, ALONE, seed=0, stream="alone", progress=bench.progress,
                  description=f"network {index + 1} of {ARCHITECTURES}", store=store)  # fmt: skip
        alone.append(accuracy(module, bench.splits.val, bench.splits.normalisation))
    tau = float(kendalltau(inherited, alone).statistic)
    drawn = rng.integers(len(archs), size=(4000, len(archs)))
    taus = [kendalltau(np.take(inherited, rows), np.take(alone, rows)).statistic for rows in drawn]
    low, high = np.nanquantile(taus, [0.025, 0.975])
    spread = 100 * (max(alone) - min(alone))
    print(f"Kendall's tau of inherited and stand-alone accuracy, {len(archs)} architectures: {tau:.2f} "
          f"(95%: {low:.2f} to {high:.2f}; stand-alone accuracies spread over {spread:.1f} points): "
          f"{'seen' if low > 0 else 'NOT SEEN'}")  # fmt: skip


PARTS = {"evolution": evolution, "sampling": sampling, "ranking": ranking}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--work", type=Path, default=Path("runs/spos-evidence"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    began = time.monotonic()
    PARTS[options.part](Bench(options.work, options.threads))
    print(f"took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
