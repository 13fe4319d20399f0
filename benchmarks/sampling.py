"""How fast, and how exactly, architectures under a budget are drawn: ``python benchmarks/sampling.py``.

- Speed: draws a second from spaces under budgets, and as a ratio to what it takes to draw genes blindly and price them,
  measured in turn with it. Blind draws keep only the share that happens to be feasible.
- Exactness: all of a space of 10^5 architectures is enumerated, with prices that depend on the slots before (a walk),
  and what is drawn is compared with it by a chi-square test.
- Rarity: a space in which one architecture in 10^9 is feasible, and it is known how many are.

Draws are independent and uniform over all that is feasible; the time to set a sampler up stands in a column of its own.

Exit 1 where a test of exactness or rarity fails; speeds are only printed.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable

import numpy as np
from scipy import stats

from hwnas.costs import Cost, Genes, Prices, macs_cost, params_cost
from hwnas.search.feasible import FeasibleSampler
from hwnas.spaces import get_space

DRAWS, ROUNDS = 100_000, 7


def main() -> int:
    print(f"{'under the budget':<50}{'set up':>8}{'draws/s':>10}{'blind/s':>11}{'feasible':>10}{'accepted':>10}")
    slowest = math.inf
    for name in ("proxyless", "fbnet", "spos-shufflenet"):
        space = get_space(name)
        macs, params = macs_cost(space), params_cost(space)
        exists = np.isfinite(macs.prices.choices)
        walked = _walked(len(space.slots), exists.shape[1], states=2)
        for title, costs, share, use in (
            ("half of the range of MACs", [macs], 0.5, 0.0),
            ("the same, 92% used", [macs], 0.5, 0.92),
            ("a tenth of it", [macs], 0.1, 0.0),
            ("a tenth of it, 92% used", [macs], 0.1, 0.92),
            ("half of MACs and of parameters", [macs, params], 0.5, 0.0),
            ("half of the range, with a walk", [walked], 0.5, 0.0),
            ("a tenth of it, with a walk, 92% used", [walked], 0.1, 0.92),
            ("a fiftieth of it, with a walk", [walked], 0.02, 0.0),
        ):
            limits = [_between(cost, share) for cost in costs]
            slowest = min(slowest, _speed(f"{name}: {title}", costs, limits, use, exists))
    print(f"the slowest of them: {slowest:,.0f} independent uniform draws a second")
    return 0 if _exact() & _rare() else 1


def _between(cost: Cost, share: float) -> float:
    """A limit that lies at `share` of the way from the cheapest to the dearest architecture."""
    ends = [cost.upper.total_of(genes) for genes in (cost.upper.cheapest(), cost.upper.dearest())]
    return ends[0] + share * (ends[1] - ends[0])


def _walked(slots: int, choices: int, states: int) -> Cost:
    """Prices that depend on the state that the slots before leave."""
    rng = np.random.default_rng(slots)
    table = rng.uniform(0.5, 3.0, (slots, states, choices))
    after = rng.integers(states, size=table.shape)
    prices = Prices.of_walk(1.0, table, after, rng.uniform(0, 1, states))
    return Cost("latency", prices, prices)


def _speed(title: str, costs: list[Cost], limits: list[float], use: float, exists: np.ndarray) -> float:
    """Draws a second, the median of some rounds."""
    start = time.perf_counter()
    sampler = FeasibleSampler(costs, limits, min_use=use)
    ready = time.perf_counter() - start
    rng = np.random.default_rng(0)
    widths = exists.sum(axis=1)

    def blind() -> Genes:
        genes = np.stack([rng.integers(width, size=DRAWS) for width in widths], axis=1)
        sampler.feasible(genes)
        return genes

    seconds: dict[Callable[[], Genes], list[float]] = {lambda: sampler.sample(DRAWS, rng): [], blind: []}
    for _ in range(ROUNDS):  # in turn: the machine's regimes meet both
        for draw, taken in seconds.items():
            start = time.perf_counter()
            draw()
            taken.append(time.perf_counter() - start)
    drawn, blindly = (DRAWS / float(np.median(taken)) for taken in seconds.values())
    print(f"{title:<50}{ready:>6.2f} s{drawn:>10,.0f}{blindly:>11,.0f}{sampler.fraction:>10.2g}"
          f"{sampler.acceptance:>10.1%}")  # fmt: skip
    return drawn


def _exact() -> bool:
    """Draws against the enumeration of 10^5 architectures (5 slots of 10 choices, 3 states)."""
    cost = _walked(5, 10, states=3)
    every = np.array(list(itertools.product(range(10), repeat=5)))
    totals = cost.upper.total(every)
    limit = float(np.quantile(totals, 0.3))
    fine = True
    for use, floor in ((0.0, -math.inf), (0.9, 0.9 * limit)):
        meets = (totals <= limit) & (totals >= floor)
        sampler = FeasibleSampler([cost], [limit], min_use=use)
        drawn = sampler.sample(20 * int(meets.sum()), np.random.default_rng(1))
        seen = np.bincount(drawn @ 10 ** np.arange(4, -1, -1), minlength=len(every))
        chance = float(stats.chisquare(seen[meets]).pvalue)
        good = chance > 1e-3 and not seen[~meets].any()
        fine &= good
        print(f"{len(every):,} architectures enumerated, {int(meets.sum()):,} of them within the budget"
              f"{f' and above {use:.0%} of it' if use else ''}: {len(drawn):,} draws, "
              f"{int(seen[~meets].sum())} outside, chi-square p = {chance:.2f}; "
              f"count said to be {sampler.drawn_count:,.0f}: {'passed' if good else 'FAILED'}")  # fmt: skip
    return fine


def _rare() -> bool:
    """30 slots of 10 choices: a choice costs nothing or 1, and at most `dear` slots may pay."""
    slots, choices, dear = 30, 10, 13
    table = np.ones((slots, choices))
    table[:, 0] = 0.0
    known = sum(math.comb(slots, paid) * (choices - 1) ** paid for paid in range(dear + 1))
    prices = Prices(0.0, table)
    start = time.perf_counter()
    sampler = FeasibleSampler([Cost("latency", prices, prices)], [float(dear)])
    drawn = sampler.sample(DRAWS, np.random.default_rng(2))
    seconds = time.perf_counter() - start
    paid = (drawn > 0).sum(axis=1)
    expected = np.array([math.comb(slots, k) * (choices - 1) ** k / known for k in range(dear + 1)])
    often = expected * DRAWS > 10
    seen = np.append(np.bincount(paid, minlength=dear + 1)[often], 0)
    seen[-1] = DRAWS - seen.sum()
    wanted = np.append(expected[often], 1 - expected[often].sum()) * DRAWS
    chance = float(stats.chisquare(seen, wanted).pvalue)
    good = chance > 1e-3 and paid.max() <= dear and abs(sampler.count / known - 1) < 0.01
    print(f"one in {choices**slots / known:.1e} is feasible, {known:.4e} known, {sampler.count:.4e} counted; {DRAWS:,} "
          f"drawn in {seconds:.1f} s, all within the budget: {bool(paid.max() <= dear)}, chi-square p = {chance:.2f}: "
          f"{'passed' if good else 'FAILED'}")  # fmt: skip
    return good


if __name__ == "__main__":
    sys.exit(main())
