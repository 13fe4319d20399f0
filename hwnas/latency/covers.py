"""Which networks a space's kernels are timed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np

from hwnas.latency.slots import SpaceKernels
from hwnas.ops import Op
from hwnas.spaces.base import Arch, Space

TIMES = 2
"""Each kernel is timed in at least so many networks, where as many have it."""

DRAWN = 30
"""Networks that are drawn uniformly, the best of some at a time; behind them each slot takes what is still missing."""

MOST = 160
"""Networks of one space; what they do not cover is timed alone."""

_CANDIDATES = 40
"""Architectures drawn for each that is taken: the one that covers most."""


def cover_archs(space: Space, kernels: SpaceKernels, *, without: Collection[Arch] = (), seed: int = 0) -> list[Arch]:
    """Architectures that together have every kernel of the space at least `TIMES` times; few, drawn at random.

    Args:
        space: whose architectures.
        kernels: of the space, as the runtime runs them.
        without: not among them: calibration networks, so that calibration stays a test of the sum.
        seed: of the draws.
    """
    rng = np.random.default_rng([seed, 21])
    missing: Counter[Op] = Counter(dict.fromkeys(kernels.every(), TIMES))
    found: dict[Arch, None] = {}
    while missing and len(found) < MOST:
        if len(found) < DRAWN:
            drawn = [space.sample(rng) for _ in range(_CANDIDATES)]
        else:
            drawn = [_directed(space, kernels, missing.keys(), rng) for _ in range(_CANDIDATES)]
        drawn = [arch for arch in drawn if arch not in found and arch not in without]
        gains = [len(missing.keys() & set(kernels.of_genes(arch.genes))) for arch in drawn]
        if not drawn or (not max(gains) and len(found) >= DRAWN):
            break
        best = drawn[int(np.argmax(gains))]
        found[best] = None
        missing -= Counter(set(kernels.of_genes(best.genes)))
    return list(found)


def _directed(space: Space, kernels: SpaceKernels, missing: Collection[Op], rng: np.random.Generator) -> Arch:
    """An architecture whose slots take, where they can, choices with missing kernels."""
    genes, state = [], 0
    for choices in kernels.slots:
        row = choices[state]
        wanted = [gene for gene, choice in enumerate(row) if any(op in missing for op in choice.kernels)]
        gene = int(rng.choice(wanted if wanted else len(row)))
        genes.append(gene)
        state = row[gene].after
    return Arch(space.name, tuple(genes))
