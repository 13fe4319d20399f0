"""Random search: the baseline of evolution, with as many evaluations under the same budgets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hwnas.search.evolution import Evolution
from hwnas.search.feasible import FeasibleSampler
from hwnas.search.result import Book, Evaluate, Generation, SearchResult
from hwnas.spaces.base import Arch, Space


def random_search(
    space: Space,
    sampler: FeasibleSampler,
    evaluate: Evaluate,
    rng: np.random.Generator,
    *,
    settings: Evolution | None = None,
    on_generation: Callable[[Generation], None] | None = None,
) -> SearchResult:
    """The best of uniformly drawn feasible architectures. Arguments as `hwnas.search.evolution.evolve`."""
    settings = settings or Evolution()
    book = Book(space, sampler, evaluate)
    for index in range(settings.generations + 1):
        new: dict[Arch, None] = {}
        book.fill(new, settings.population, rng)
        if not new:
            break
        book.score(list(new))
        if on_generation:
            on_generation(book.generation(index, settings.generations))
    return book.result(settings.evaluations)
