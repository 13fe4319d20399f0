"""How many evaluations a search needs to find the best net under a MAC budget, where all accuracies are known.

    pip install 'hwnas[benchmark]'
    python benchmarks/nasbench_macro.py nasbench_macro.csv.gz

The file is NAS-Bench-Macro (xiusu/NAS-Bench-Macro, Apache-2.0): all 6,561 chains of 8 layers with 3 choices, with the
mean CIFAR-10 accuracy of three trainings; columns ``arch``, ``mean_acc``, ``flops``.

Fixed before the first run: budgets at the quantiles `QUANTILES` of the MACs of all nets; seeds 0 to 99; populations of
50 for all; at most `MOST` evaluations. What is counted is the evaluations up to the constrained optimum, and up to a
net within `NEAR` points of it (the three trainings of one net differ by about as much). Nobody pays for what it knows
already: a net evaluated again, or seen to be over budget by its MACs, costs nothing. Medians and quartiles over the
seeds, those that did not find it counted as more than `MOST`.

The methods: hwnas' evolution as the paper has it (all nets within budget) and with the default recipe's floor (at least
92% of the budget used); its random search; regularised evolution (Real et al. 2019; sample of 10, one gene mutated,
redrawn until it meets the budget); NSGA-II of pymoo on error and MACs with the budget as its constraint.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from hwnas.costs import Cost, Prices
from hwnas.search.evolution import Evolution, evolve
from hwnas.search.feasible import FeasibleSampler
from hwnas.search.random_search import random_search
from hwnas.spaces import Arch, Space

QUANTILES = (0.05, 0.10, 0.25, 0.50, 0.75)
SEEDS = 100
POPULATION = 50
MOST = 1050
NEAR = 0.1
FLOOR = 0.92
SAMPLE = 10
Genes = tuple[int, ...]


@dataclass(frozen=True)
class Chain:
    """What the searches ask of a space: a name and the names of the choices."""

    slots: tuple[tuple[str, ...], ...]
    name: str = "nasbench-macro"


@dataclass(frozen=True)
class Problem:
    """All nets, and a budget.

    Attributes:
        accuracy, macs: of every net.
        macs_cost: the same MACs, as prices of choices.
        budget: the most MACs.
    """

    accuracy: dict[Genes, float]
    macs: dict[Genes, int]
    macs_cost: Cost
    budget: float

    @property
    def chain(self) -> Space:
        """The space, as far as a search looks at it."""
        first = next(iter(self.macs))
        return cast(Space, Chain((("skip", "k3e3", "k5e6"),) * len(first)))

    @property
    def best(self) -> float:
        """Accuracy of the best net within the budget."""
        return max(self.accuracy[genes] for genes, macs in self.macs.items() if macs <= self.budget)

    def sampler(self, min_use: float = 0.0) -> FeasibleSampler:
        """The nets within the budget."""
        return FeasibleSampler([self.macs_cost], [self.budget], min_use=min_use)


class Done(Exception):
    """The optimum is found, or enough was evaluated."""


@dataclass
class Meter:
    """Counts evaluations of different nets until the optimum is among them."""

    problem: Problem
    known: dict[Genes, float] = field(default_factory=dict)
    near: int = MOST + 1
    found: int = MOST + 1

    def __call__(self, genes: Sequence[int]) -> float:
        """Accuracy of a net within the budget."""
        key = tuple(int(gene) for gene in genes)
        if key not in self.known:
            if len(self.known) == MOST:
                raise Done
            score = self.known[key] = self.problem.accuracy[key]
            if self.near > MOST and score >= self.problem.best - NEAR:
                self.near = len(self.known)
            if score >= self.problem.best:
                self.found = len(self.known)
                raise Done
        return self.known[key]

    def archs(self, archs: list[Arch]) -> list[float]:
        """As the searches of hwnas evaluate."""
        return [self(arch.genes) for arch in archs]


def ours(problem: Problem, meter: Meter, seed: int, *, search: Callable[..., Any], min_use: float = 0.0) -> None:
    """A search of hwnas."""
    settings = Evolution(population=POPULATION, generations=MOST // POPULATION - 1)
    sampler = problem.sampler(min_use)
    search(problem.chain, sampler, meter.archs, np.random.default_rng(seed), settings=settings)


def regularised(problem: Problem, meter: Meter, seed: int) -> None:
    """Regularised evolution: the oldest dies."""
    rng = np.random.default_rng(seed)
    first = problem.sampler().sample(POPULATION, rng).tolist()
    alive = deque((meter(genes), genes) for genes in first)
    for _ in range(20 * MOST):
        chosen = rng.choice(len(alive), SAMPLE, replace=False)
        _, parent = max(alive[index] for index in chosen)
        child = mutated(problem, parent, rng)
        alive.append((meter(child), child))
        alive.popleft()


def mutated(problem: Problem, parent: list[int], rng: np.random.Generator) -> list[int]:
    """`parent` with one gene changed, within the budget; as it is where a hundred tries are over it."""
    for _ in range(100):
        child = list(parent)
        slot = int(rng.integers(len(child)))
        child[slot] = (child[slot] + int(rng.integers(1, 3))) % 3
        if problem.macs[tuple(child)] <= problem.budget:
            return child
    return parent


def nsga2(problem: Problem, meter: Meter, seed: int) -> None:
    """NSGA-II of pymoo, with its operators for whole numbers."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    class Macro(ElementwiseProblem):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            slots = len(problem.chain.slots)
            super().__init__(n_var=slots, n_obj=2, n_ieq_constr=1, xl=0, xu=2, vtype=int)

        def _evaluate(self, x: Any, out: dict[str, Any], *_: Any, **__: Any) -> None:
            macs = problem.macs[tuple(int(gene) for gene in x)]
            error = 100.0 - meter(x) if macs <= problem.budget else 100.0
            out["F"], out["G"] = [error, macs / 1e6], [(macs - problem.budget) / 1e6]

    algorithm = NSGA2(
        pop_size=POPULATION,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    minimize(Macro(), algorithm, ("n_gen", 400), seed=seed, verbose=False)


METHODS: dict[str, Callable[[Problem, Meter, int], None]] = {
    "hwnas evolution": partial(ours, search=evolve),
    "  with a floor": partial(ours, search=evolve, min_use=FLOOR),
    "random search": partial(ours, search=random_search),
    "regularised evolution": regularised,
    "NSGA-II (pymoo)": nsga2,
}


def run(problem: Problem, name: str, seed: int) -> tuple[int, int]:
    """Evaluations to a net near the optimum and to the optimum."""
    meter = Meter(problem)
    with contextlib.suppress(Done):
        METHODS[name](problem, meter, seed)
    return meter.near, meter.found


def read(path: Path) -> tuple[dict[Genes, float], dict[Genes, int]]:
    """Accuracies in percent and MACs of all nets."""
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    keys = [tuple(int(letter) for letter in row["arch"]) for row in rows]
    accuracy = {key: float(row["mean_acc"]) for key, row in zip(keys, rows, strict=True)}
    return accuracy, {key: int(row["flops"]) for key, row in zip(keys, rows, strict=True)}


def priced(macs: dict[Genes, int]) -> Cost:
    """The MACs as prices of choices, taken from nets that differ in one; they add up exactly for all nets.

    Raises:
        ValueError: they do not.
    """
    slots = len(next(iter(macs)))
    base = macs[(0,) * slots]
    alone = [[macs[(0,) * slot + (choice,) + (0,) * (slots - slot - 1)] - base for choice in range(3)]
             for slot in range(slots)]  # fmt: skip
    prices = Prices.of(base, alone)
    if not (prices.total(np.array(list(macs))) == np.array(list(macs.values()))).all():
        raise ValueError("the MACs of the file do not add up over layers")
    return Cost("macs", prices, prices)


def quartiles(counts: Sequence[int]) -> str:
    """Median and quartiles of observed values, for people."""
    low, middle, high = (sorted(counts)[int(share * (len(counts) - 1) + 0.5)] for share in (0.25, 0.5, 0.75))
    texts = [f">{MOST}" if value > MOST else str(value) for value in (middle, low, high)]
    return f"{texts[0]:>5} ({texts[1]} to {texts[2]})"


def main() -> None:
    """Prints a block a budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="nasbench_macro.csv.gz")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--quick", action="store_true", help="two seeds: only checks that it runs")
    args = parser.parse_args()
    if args.quick:
        args.seeds = 2
    accuracy, macs = read(args.file)
    cost = priced(macs)
    with ProcessPoolExecutor(args.jobs) as pool:
        for quantile in QUANTILES:
            budget = float(np.quantile(list(macs.values()), quantile))
            problem = Problem(accuracy, macs, cost, budget)
            within = sum(value <= budget for value in macs.values())
            print(f"at most {budget / 1e6:.2f}M MACs: {within} of {len(macs)} nets, the best has {problem.best:.2f}%")
            for name in METHODS:
                counts = list(pool.map(partial(run, problem, name), range(args.seeds), chunksize=5))
                near, found = zip(*counts, strict=True)
                missed = sum(count > MOST for count in found)
                print(
                    f"  {name:22} optimum {quartiles(found):22} within {NEAR} {quartiles(near):20}"
                    + (f" {missed} of {args.seeds} never" if missed else ""),
                    flush=True,
                )
    if args.quick:
        print("--quick: the script runs; medians and quartiles of two seeds mean nothing")


if __name__ == "__main__":
    main()
