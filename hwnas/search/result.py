"""What a search returns, and the book it keeps while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hwnas.costs import Genes
from hwnas.errors import HwnasError
from hwnas.search.feasible import FeasibleSampler
from hwnas.spaces.base import Arch, Space

Evaluate = Callable[[list[Arch]], list[float]]
"""Scores of architectures, higher is better, in their order. NaN counts as the worst score."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Progress: `index` counts from 0 to `last`; `best` and `score` are the best of everything evaluated."""

    index: int
    last: int
    evaluated: int
    best: Arch
    score: float


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: the architecture with the highest score; of equals the one evaluated first.
        score: its score.
        evaluated: every architecture once, in the order of evaluation, with its score.
        complete: as many were evaluated as were asked for.
        message: empty, or why it is not complete.
    """

    best: Arch
    score: float
    evaluated: tuple[tuple[Arch, float], ...]
    complete: bool = True
    message: str = ""


@dataclass(slots=True)
class Book:
    """Architectures evaluated so far; none is evaluated twice."""

    space: Space
    sampler: FeasibleSampler
    evaluate: Evaluate
    scores: dict[Arch, float] = field(default_factory=dict)

    def score(self, archs: Sequence[Arch]) -> None:
        """Evaluates `archs`, which are new.

        Raises:
            HwnasError: the callback gave another number of scores.
        """
        scores = self.evaluate(list(archs))
        if len(scores) != len(archs):
            raise HwnasError(f"{len(archs)} architectures were evaluated and {len(scores)} scores came back")
        for arch, score in zip(archs, scores, strict=True):
            self.scores[arch] = -math.inf if math.isnan(score) else float(score)

    def ranked(self) -> list[Arch]:
        """Everything evaluated, the best first; of equals the one evaluated first."""
        return sorted(self.scores, key=lambda arch: -self.scores[arch])

    def add_new(self, into: dict[Arch, None], genes: Genes, wanted: int) -> None:
        """Adds those of `genes` that are neither evaluated nor in `into`, until there are `wanted`."""
        for row in genes.tolist():
            arch = Arch(self.space.name, tuple(row))
            if len(into) < wanted and arch not in self.scores:
                into[arch] = None

    def fill(self, into: dict[Arch, None], wanted: int, rng: np.random.Generator) -> None:
        """Fills `into` up to `wanted` with new feasible architectures drawn uniformly.

        It gives up after 100 draws for each that is wanted: then next to all feasible ones are known.
        """
        for _ in range(100):
            if len(into) >= wanted:
                return
            self.add_new(into, self.sampler.sample(wanted, rng), wanted)

    def generation(self, index: int, last: int) -> Generation:
        """Where the search stands."""
        best = self.ranked()[0]
        return Generation(index, last, len(self.scores), best, self.scores[best])

    def result(self, wanted: int) -> SearchResult:
        """The outcome, when `wanted` evaluations were asked for."""
        best, done = self.ranked()[0], len(self.scores)
        message = ""
        if done < wanted:
            message = (
                f"{done} instead of {wanted} architectures were evaluated: no further one that meets the budget "
                f"could be drawn (about {self.sampler.drawn_count:.0f} can be)"
            )
        return SearchResult(best, self.scores[best], tuple(self.scores.items()), done >= wanted, message)
