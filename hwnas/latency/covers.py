"""Which networks a space's kernels are timed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from hwnas.costs import macs_cost
from hwnas.latency.slots import SpaceKernels
from hwnas.ops import Op
from hwnas.spaces.base import Arch, Space

TIMES = 4
"""Each kernel is timed in at least so many networks, where as many have it."""

DRAWN = 30
"""Networks that are drawn, the best of some at a time; behind them each slot takes what is still missing."""

TILT = 6.0
"""How strongly the cheapest and the most expensive networks that are drawn favour cheap and expensive choices."""

TURNS = 7
"""Of networks that are drawn one after the other: from the cheapest to the most expensive, then again."""

MOST = 160
"""Networks of one space; what they do not cover is timed alone."""

_CANDIDATES = 40
"""Architectures drawn for each that is taken: the one that covers most."""


def cover_archs(space: Space, kernels: SpaceKernels, *, without: Collection[Arch] = (), seed: int = 0) -> list[Arch]:
    """Architectures that together have every kernel of the space at least `TIMES` times; few, drawn at random.

    They are cheap, middling and expensive ones: what a kernel finds in the cache depends on how much its neighbours
    move, and cheap choices mostly have cheap neighbours. Timed in middling networks only, cheap kernels of `fbnet` took
    a tenth more than in cheap ones, and expensive kernels a tenth less than in expensive ones.

    Args:
        space: whose architectures.
        kernels: of the space, as the runtime runs them.
        without: not among them: calibration networks, so that calibration stays a test of the sum.
        seed: of the draws.
    """
    rng = np.random.default_rng([seed, 21])
    prices, tilts = macs_cost(space).prices.choices, np.linspace(-TILT, TILT, TURNS)
    missing: Counter[Op] = Counter(dict.fromkeys(kernels.every(), TIMES))
    found: dict[Arch, None] = {}
    while missing and len(found) < MOST:
        drawn: list[Arch] = []
        if len(found) < DRAWN:
            tilt = float(tilts[len(found) % TURNS])
            drawn = _new((tilted_arch(space, prices, tilt, rng) for _ in range(_CANDIDATES)), found, without)
        if not drawn:  # so late, or all that are so cheap are known
            directed = (_directed(space, kernels, missing.keys(), rng) for _ in range(_CANDIDATES))
            drawn = _new(directed, found, without)
        gains = [len(missing.keys() & set(kernels.of_genes(arch.genes))) for arch in drawn]
        if not drawn or (not max(gains) and len(found) >= DRAWN):
            break
        best = drawn[int(np.argmax(gains))]
        found[best] = None
        missing -= Counter(set(kernels.of_genes(best.genes)))
    return list(found)


def _new(drawn: Iterable[Arch], found: Collection[Arch], without: Collection[Arch]) -> list[Arch]:
    return [arch for arch in drawn if arch not in found and arch not in without]


def tilted_arch(space: Space, prices: NDArray[np.float64], tilt: float, rng: np.random.Generator) -> Arch:
    """An architecture whose slots favour expensive (`tilt` above 0) or cheap choices; `prices` are [slot, choice]."""
    genes = []
    for slot, choices in enumerate(space.slots):
        row = prices[slot, : len(choices)]
        weights = np.exp(tilt * (row - row.min()) / max(1.0, np.ptp(row)))
        genes.append(int(rng.choice(len(choices), p=weights / weights.sum())))
    return Arch(space.name, tuple(genes))


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
