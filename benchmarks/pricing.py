"""How long it takes to price a million architectures of the `proxyless` space: ``python benchmarks/pricing.py``."""

from __future__ import annotations

import time

import numpy as np

from hwnas.costs import macs_cost
from hwnas.spaces import get_space

ARCHITECTURES = 1_000_000


def main() -> None:
    space, rng = get_space("proxyless"), np.random.default_rng(0)
    prices = macs_cost(space).prices
    genes = np.stack([rng.integers(len(choices), size=ARCHITECTURES) for choices in space.slots], axis=1)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        prices.total(genes)
        seconds.append(time.perf_counter() - start)
    print(
        f"{ARCHITECTURES:,} architectures of {space.name} priced in {1000 * float(np.median(seconds)):.0f} ms "
        f"(median of {len(seconds)}; {min(seconds) * 1000:.0f} to {max(seconds) * 1000:.0f} ms)"
    )


if __name__ == "__main__":
    main()
