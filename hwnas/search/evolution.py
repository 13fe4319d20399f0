"""Evolutionary search of SPOS (Guo et al. 2020, algorithm 1), with children feasible by construction.

Four differences from the paper: the last generation is scored too (the algorithm as printed drops it), no
architecture is evaluated twice, a child over the budget is led back towards its parent (the paper breeds another one),
and with a recipe's `budget_use` only architectures are drawn that use at least that share of the budget (the paper
draws from all that meet it, as `budget_use = 0` does).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from hwnas.costs import Genes
from hwnas.search.feasible import FeasibleSampler
from hwnas.search.result import Book, Evaluate, Generation, SearchResult
from hwnas.spaces.base import Arch, Space

_TRIES = 10
"""Children bred for each that is wanted, before the rest of a generation is drawn at random."""


@dataclass(frozen=True, slots=True)
class Evolution:
    """The settings of algorithm 1.

    Attributes:
        population: P, architectures a generation; half are children of crossover, half of mutation.
        generations: T, generations after the first.
        parents: k, how many of the best of all so far are bred from.
        mutation: probability that a gene is drawn anew.
    """

    population: int = 50
    generations: int = 20
    parents: int = 10
    mutation: float = 0.1

    def __post_init__(self) -> None:
        if self.population < 1 or self.generations < 0 or self.parents < 1 or not 0 < self.mutation <= 1:
            raise ValueError(f"impossible settings: {self}")

    @property
    def evaluations(self) -> int:
        """Architectures that a whole search evaluates."""
        return self.population * (self.generations + 1)


def evolve(
    space: Space,
    sampler: FeasibleSampler,
    evaluate: Evaluate,
    rng: np.random.Generator,
    *,
    settings: Evolution | None = None,
    on_generation: Callable[[Generation], None] | None = None,
    select: Callable[[Book, int], list[Arch]] | None = None,
) -> SearchResult:
    """The architecture with the highest score that evolution finds among the feasible ones.

    The search depends on nothing but the generator and the scores: one that was interrupted is repeated exactly when
    `evaluate` answers from a cache what it was asked before.

    Args:
        space: what is searched.
        sampler: draws and repairs its feasible architectures.
        evaluate: scores of a list of architectures, higher is better.
        rng: the only source of chance.
        settings: None is the paper's.
        on_generation: called after each generation.
        select: so many parents from everything scored so far; None takes the best.
    """
    settings = settings or Evolution()
    book = Book(space, sampler, evaluate)
    for index in range(settings.generations + 1):
        new: dict[Arch, None] = {}
        if index:
            chosen = select(book, settings.parents) if select else book.ranked()[: settings.parents]
            parents = np.array([arch.genes for arch in chosen])
            crossed = settings.population // 2
            _breed(book, new, crossed, partial(_cross, parents, rng), rng)
            _breed(book, new, settings.population, partial(_mutate, space, parents, settings.mutation, rng), rng)
        book.fill(new, settings.population, rng)
        if not new:
            break
        book.score(list(new))
        if on_generation:
            on_generation(book.generation(index, settings.generations))
    return book.result(settings.evaluations)


Children = tuple[Genes, Genes]
"""Architectures [n, slots], and for each a feasible one that it is like."""


def _breed(
    book: Book, into: dict[Arch, None], wanted: int, children: Callable[[int], Children], rng: np.random.Generator
) -> None:
    """Adds new feasible children to `into` until there are `wanted`, or enough was tried."""
    for _ in range(_TRIES):
        missing = wanted - len(into)
        if missing <= 0:
            return
        genes, homes = children(missing)
        book.add_new(into, lead_back(book.sampler, genes, homes, rng), wanted)


def lead_back(sampler: FeasibleSampler, genes: Genes, homes: Genes, rng: np.random.Generator) -> Genes:
    """`genes` [n, slots], those that are not feasible with as few genes as it takes of their `homes`, which are.

    The genes that differ are taken over in a random order until the architecture is feasible. That prices some twenty
    candidates for each in one go, and so costs a thousandth of counting the nearest ones (`FeasibleSampler.repair`).
    """
    led: Genes = np.array(genes, dtype=np.int64)
    rows = np.flatnonzero(~sampler.admissible(led))
    if not len(rows):
        return led
    slots = led.shape[1]
    rank = np.where(led[rows] != homes[rows], rng.random((len(rows), slots)), 2.0).argsort(axis=1).argsort(axis=1)
    taken = rank[:, None, :] < np.arange(slots + 1)[None, :, None]  # [rows, how many, slots]
    ways = np.where(taken, homes[rows][:, None, :], led[rows][:, None, :])
    meets = sampler.admissible(ways.reshape(-1, slots)).reshape(len(rows), slots + 1)
    led[rows] = ways[np.arange(len(rows)), meets.argmax(axis=1)]  # the last is its home, which meets everything
    return led


def _cross(parents: Genes, rng: np.random.Generator, n: int) -> Children:
    """Children of `n` random pairs: each gene of either parent."""
    pairs = rng.integers(len(parents), size=(2, n))
    first = rng.random((n, parents.shape[1])) < 0.5
    homes: Genes = parents[pairs[0]]
    children: Genes = np.where(first, homes, parents[pairs[1]])
    return children, homes


def _mutate(space: Space, parents: Genes, probability: float, rng: np.random.Generator, n: int) -> Children:
    """`n` random parents with each gene drawn anew with `probability`."""
    chosen = parents[rng.integers(len(parents), size=n)]
    anew = rng.integers([len(choices) for choices in space.slots], size=chosen.shape)
    children: Genes = np.where(rng.random(chosen.shape) < probability, anew, chosen)
    return children, chosen
