"""Which networks a space's kernels are timed in."""

from __future__ import annotations

from collections import Counter

import numpy as np

from hwnas.latency.slots import SpaceKernels
from hwnas.ops import Op
from hwnas.spaces.base import Arch, Space

TIMES = 2
"""Each kernel is timed in at least so many networks, where as many have it."""

MOST = 60
"""Networks of one space; what they do not cover is timed alone."""

_CANDIDATES = 40
"""Architectures drawn for each that is taken: the one that covers most."""


def cover_archs(space: Space, kernels: SpaceKernels, seed: int = 0) -> list[Arch]:
    """Architectures that together have every kernel of the space at least `TIMES` times; few, drawn at random.

    None of them is a calibration network, so that calibration stays a test of the sum.
    """
    rng = np.random.default_rng([seed, 21])
    missing: Counter[Op] = Counter(dict.fromkeys(kernels.every(), TIMES))
    found: dict[Arch, None] = {}
    while missing and len(found) < MOST:
        drawn = [space.sample(rng) for _ in range(_CANDIDATES)]
        gains = [len(missing.keys() & set(kernels.of_genes(arch.genes))) for arch in drawn]
        best = drawn[int(np.argmax(gains))]
        if not max(gains) and len(found) > MOST // 2:
            break
        if best in found:
            continue
        found[best] = None
        missing -= Counter(set(kernels.of_genes(best.genes)))
    return list(found)
