"""Patterns of the SPOS paper (Guo et al. 2020), small enough for a CPU: Fashion-MNIST, the tiny spaces.

    python benchmarks/spos_evidence.py evolution   figure 3: evolution against random search at equal evaluations
    python benchmarks/spos_evidence.py sampling    figure 2: uniform against uniform constraint sampling
    python benchmarks/spos_evidence.py spaces      tables 3 and 4: blocks, channels, both, against baselines
    python benchmarks/spos_evidence.py ranking     Kendall's tau of inherited-weight and stand-alone accuracy
    python benchmarks/spos_evidence.py bits        table 6: searched bits against the same bits everywhere

Seeds, sizes and statistics are the constants below, fixed before the run. They are the second ones: supernets of 800
and 400 steps at a third of the learning rate were 31% accurate, and nothing was seen in them. Of differences, paired by
seed, the mean and its 95% interval by Student's t are printed; a pattern counts as seen where the interval lies wholly
on its side of zero, else it is reported as not seen. Trainings are kept in --work and go on where a killed run stopped.
--quick trains for a few steps: it shows that a part runs to its end, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from evidence import gist, mean_interval, verdict
from scipy.stats import kendalltau

from hwnas.costs import Cost, bitops_cost, macs_cost
from hwnas.nn.blocks import chain_net
from hwnas.progress import RichProgress
from hwnas.search.evolution import Evolution, evolve
from hwnas.search.feasible import FeasibleSampler
from hwnas.search.random_search import random_search
from hwnas.spaces import Arch, get_space
from hwnas.spaces.chain import ChainSpace, NetSpec
from hwnas.spaces.channels import FIFTHS, blocks_of
from hwnas.spaces.resnet import RESNET18_TINY, uniform_resnet
from hwnas.spaces.shufflenet import KINDS
from hwnas.train.batches import Batches
from hwnas.train.chance import step_rng, torch_generator
from hwnas.train.checkpoint import CheckpointStore
from hwnas.train.data import load_data
from hwnas.train.evaluate import Evaluator, accuracy
from hwnas.train.finish import train_net
from hwnas.train.loop import train_supernet
from hwnas.train.paths import make_paths
from hwnas.train.process import prepare_process
from hwnas.train.recipe import Phase, Sampling, Scoring

BUDGET = 0.5
"""Of the way from the cheapest to the most expensive architecture of the block space, in MACs."""
FLOOR = 0.92
"""Least share of the budget that nets which are compared at an equal cost use."""
UNIFORM_BITS = (2, 3, 4)
SUPERNET_LR = 0.012
"""Of 0.0015, 0.004, 0.008, 0.014, 0.015 and 0.03 those about this one trained the block space's supernet best."""
ALONE_LR = 0.004


@dataclass(frozen=True)
class Sizes:
    """How much is trained and scored.

    Attributes:
        seeds: of trainings and searches.
        architectures: whose ranks are compared.
        evolution: of every search.
        scoring: of every candidate.
        supernet: the training of a supernet that is the only one of its part.
        short: of one of several.
        alone: of a net from scratch.
    """

    seeds: int
    architectures: int
    evolution: Evolution
    scoring: Scoring
    supernet: Phase
    short: Phase
    alone: Phase

    @classmethod
    def of(cls, steps: tuple[int, int, int], seeds: int, archs: int, evolution: Evolution, scoring: Scoring) -> Sizes:
        """With so many steps of the three trainings."""
        phases = [
            Phase(
                steps=count,
                batch_size=32,
                optimizer="adamw",
                lr=lr,
                weight_decay=0.02,
                warmup_steps=min(50, count // 2),
                flip=False,
            )
            for count, lr in zip(steps, (SUPERNET_LR, SUPERNET_LR, ALONE_LR), strict=True)
        ]
        return cls(seeds, archs, evolution, scoring, *phases)


FULL = Sizes.of(
    (4000, 2000, 500), 5, 20, Evolution(population=10, generations=5, parents=4),
    Scoring(recalibrate_images=200, val_images=1000, batch_size=50),
)  # fmt: skip
QUICK = Sizes.of(
    (6, 4, 3), 2, 4, Evolution(population=4, generations=1, parents=2),
    Scoring(recalibrate_images=20, val_images=50, batch_size=10),
)  # fmt: skip


def chain_space(name: str) -> ChainSpace:
    """A space whose architectures are chains of blocks."""
    space = get_space(name)
    assert isinstance(space, ChainSpace)
    return space


BLOCKS, JOINT, QUANT = map(chain_space, ("spos-shufflenet-tiny", "spos-joint-tiny", "resnet18-quant-tiny"))
MACS = macs_cost(BLOCKS)


class Bench:
    """The data, and what is trained on it, by name."""

    def __init__(self, work: Path, threads: int, sizes: Sizes = FULL) -> None:
        prepare_process(threads)
        self.sizes = sizes
        self.work, self.threads, self.progress = work, threads, RichProgress()
        self.splits = load_data("fashion-mnist", seed=0)

    def scores(
        self, space: ChainSpace, phase: Phase, seed: int = 0, sampling: Sampling | None = None
    ) -> Callable[[list[Arch]], list[float]]:
        """What scores with the weights of a supernet that is trained now, or was before."""
        supernet = space.supernet(generator=torch_generator(step_rng(seed, "weights", 0)))
        train_supernet(
            supernet,
            Batches(self.splits.train, self.splits.normalisation, phase, seed, "supernet"),
            progress=self.progress,
            paths=make_paths(space, sampling, {"macs": macs_cost(space)}, seed),
            store=CheckpointStore(self.work, f"{space.name}-{gist((phase, sampling, seed))}"),
        )
        evaluator, known = Evaluator(supernet, self.splits, self.sizes.scoring, seed=0), dict[Arch, float]()

        def evaluate(archs: list[Arch]) -> list[float]:
            new = [arch for arch in archs if arch not in known]
            known.update(zip(new, evaluator.scores([arch.genes for arch in new], self.threads), strict=True))
            return [known[arch] for arch in archs]

        return evaluate

    def alone(self, net: NetSpec, seed: int) -> float:
        """Validation accuracy in percent of a net that is trained from scratch."""
        module = chain_net(net, generator=torch_generator(step_rng(seed, "alone", 0)))
        phase = self.sizes.alone
        name = f"alone-{gist((net, phase, seed))}"
        train_net(module, self.splits, phase, seed=seed, stream="alone", progress=self.progress,
                  description=name, store=CheckpointStore(self.work, name))  # fmt: skip
        return 100 * accuracy(module, self.splits.val, self.splits.normalisation)

    def table(self, nets: dict[str, Callable[[int], NetSpec]]) -> dict[str, list[float]]:
        """Accuracies of nets trained alike, with every seed; prints them."""
        found = {}
        for name, net in nets.items():
            seeds = range(self.sizes.seeds)
            found[name] = [self.alone(net(seed), seed) for seed in seeds]
            mean, low, high = mean_interval(found[name])
            specs = [net(seed).network() for seed in seeds]
            cost = np.mean([spec.bitops / 2**20 if spec.quantised else spec.macs / 1e6 for spec in specs])
            unit = "M BitOps (M is 2^20)" if specs[0].quantised else "M MACs"
            print(f"  {name:28} {mean:6.2f}% (95%: {low:.2f} to {high:.2f}), {cost:.2f} {unit}", flush=True)
        return found


def limit() -> float:
    """The budget in MACs."""
    low, high = (MACS.prices.total_of(genes) for genes in (MACS.prices.cheapest(), MACS.prices.dearest()))
    return low + BUDGET * (high - low)


def evolution(bench: Bench) -> None:
    """The best validation accuracy of each method, seed by seed on one supernet."""
    evaluate, settings = bench.scores(BLOCKS, bench.sizes.supernet), bench.sizes.evolution
    sampler = FeasibleSampler([MACS], [limit()])
    best: dict[str, list[float]] = {"evolution": [], "random": []}
    for seed in range(bench.sizes.seeds):
        for name, search in zip(best, (evolve, random_search), strict=True):
            found = search(BLOCKS, sampler, evaluate, np.random.default_rng(seed), settings=settings)
            best[name].append(100 * found.score)
        print(f"  seed {seed}: " + ", ".join(f"{name} {values[-1]:.2f}%" for name, values in best.items()), flush=True)
    verdict(f"evolution over random search, {settings.evaluations} evaluations each", *best.values())


def sampling(bench: Bench) -> None:
    """The best accuracy that evolution finds on a supernet of each kind, a new one for every seed."""
    low = MACS.prices.total_of(MACS.prices.cheapest())
    constraint = Sampling(low=str(round((low + limit()) / 2)), high=str(round(limit())), bins=5)
    sampler = FeasibleSampler([MACS], [limit()])
    best: dict[str, list[float]] = {"uniform constraint": [], "uniform": []}
    for seed in range(bench.sizes.seeds):
        for name, kind in zip(best, (constraint, None), strict=True):
            evaluate = bench.scores(BLOCKS, bench.sizes.short, seed, kind)
            found = evolve(BLOCKS, sampler, evaluate, np.random.default_rng(seed), settings=bench.sizes.evolution)
            best[name].append(100 * found.score)
        print(f"  seed {seed}: " + ", ".join(f"{name} {values[-1]:.2f}%" for name, values in best.items()), flush=True)
    verdict("uniform constraint over uniform sampling", *best.values())


def searched(bench: Bench, space: ChainSpace, cost: Cost, most: float) -> NetSpec:
    """The net that evolution finds near a budget."""
    sampler = FeasibleSampler([cost], [most], space=space.name, min_use=FLOOR)
    evaluate, rng = bench.scores(space, bench.sizes.short), np.random.default_rng(0)
    return space.net(evolve(space, sampler, evaluate, rng, settings=bench.sizes.evolution).best)


def drawn(space: ChainSpace, seed: int) -> NetSpec:
    """A random net near the budget."""
    sampler = FeasibleSampler([macs_cost(space)], [limit()], space=space.name, min_use=FLOOR)
    return space.net(Arch(space.name, tuple(sampler.sample(1, np.random.default_rng(seed))[0].tolist())))


def rescaled(kind: str) -> NetSpec:
    """One kind of block everywhere, as wide as the budget allows: one width, in the first slots the next one."""
    cost, slots = macs_cost(JOINT).prices, len(JOINT.slots)
    base, widths = KINDS.index(kind) * len(FIFTHS), range(len(FIFTHS))
    rows = [(base + w + 1,) * more + (base + w,) * (slots - more) for w in widths[:-1] for more in range(slots)]
    genes = max((row for row in rows if cost.total_of(row) <= limit()), key=cost.total_of)
    return JOINT.net(Arch(JOINT.name, genes))


def spaces(bench: Bench) -> None:
    """Nets of about equal MACs, all trained alike from scratch; random ones are others for every seed."""
    threes = chain_space("spos-channels-tiny")
    blocks = searched(bench, BLOCKS, MACS, limit())
    both = chain_space(f"spos-channels-tiny@{blocks_of(blocks, 'spos-channels-tiny')}")
    found = {
        "choice_3 + channel search": searched(bench, threes, macs_cost(threes), limit()),
        "block + channel search": searched(bench, both, macs_cost(both), limit()),
        "joint search": searched(bench, JOINT, macs_cost(JOINT), limit()),
    }
    nets: dict[str, Callable[[int], NetSpec]] = {f"all choice_{kind}": always(rescaled(kind)) for kind in KINDS}
    nets |= {"random blocks": lambda seed: drawn(BLOCKS, seed), "block search": always(blocks)}
    nets |= {"choice_3 + random channels": lambda seed: drawn(threes, seed)}
    table = bench.table(nets | {name: always(net) for name, net in found.items()})
    everywhere = np.mean([table[f"all choice_{kind}"] for kind in KINDS], axis=0).tolist()
    verdict("block search over one block everywhere (mean of four)", table["block search"], everywhere)
    verdict("block search over random blocks", table["block search"], table["random blocks"])
    verdict("channel search over random channels", table["choice_3 + channel search"],
            table["choice_3 + random channels"])  # fmt: skip
    verdict("block + channel search over block search", table["block + channel search"], table["block search"])
    verdict("joint search over block search", table["joint search"], table["block search"])


def always(net: NetSpec) -> Callable[[int], NetSpec]:
    """The same net for every seed."""
    return lambda _: net


def bits(bench: Bench) -> None:
    """The mixed net that evolution finds with at most the BitOps of a uniform one, both trained alike from scratch."""
    cost = bitops_cost(QUANT)
    assert cost is not None
    for number in UNIFORM_BITS:
        uniform = uniform_resnet(RESNET18_TINY, number, QUANT.input_shape, QUANT.num_classes)
        mixed = searched(bench, QUANT, cost, uniform.network().bitops)
        table = bench.table({f"uniform {number}W{number}A": always(uniform), "searched": always(mixed)})
        verdict(f"searched over {number}W{number}A at equal BitOps", table["searched"],
                table[f"uniform {number}W{number}A"])  # fmt: skip


def ranking(bench: Bench) -> None:
    """Kendall's tau over architectures drawn uniformly, with a bootstrap interval over architectures."""
    evaluate, rng = bench.scores(BLOCKS, bench.sizes.supernet), np.random.default_rng(0)
    archs = [BLOCKS.sample(rng) for _ in range(bench.sizes.architectures)]
    inherited, alone = evaluate(archs), [bench.alone(BLOCKS.net(arch), 0) for arch in archs]
    tau = float(kendalltau(inherited, alone).statistic)
    rows = rng.integers(len(archs), size=(4000, len(archs)))
    taus = [kendalltau(np.take(inherited, row), np.take(alone, row)).statistic for row in rows]
    low, high = np.nanquantile(taus, [0.025, 0.975])
    print(f"Kendall's tau of inherited and stand-alone accuracy, {len(archs)} architectures: {tau:.2f} "
          f"(95%: {low:.2f} to {high:.2f}; stand-alone accuracies spread over {max(alone) - min(alone):.1f} points): "
          f"{'seen' if low > 0 else 'NOT SEEN'}")  # fmt: skip


PARTS = {"evolution": evolution, "sampling": sampling, "spaces": spaces, "ranking": ranking, "bits": bits}


def main() -> None:
    """Prints one piece of evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--work", type=Path, default=Path("runs/spos-evidence"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="only check that the part runs: its figures mean nothing")
    options = parser.parse_args()
    began = time.monotonic()
    PARTS[options.part](Bench(options.work, options.threads, QUICK if options.quick else FULL))
    print(f"took {time.monotonic() - began:.0f} s")
    if options.quick:
        print("--quick: the part runs; the figures above mean nothing")


if __name__ == "__main__":
    main()
