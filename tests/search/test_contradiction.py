"""Budgets that contradict each other, against the enumeration of a small space."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from hwnas.budget import parse_budget
from hwnas.costs import Cost, Curve, Prices, Walk
from hwnas.search.contradiction import contradiction, least_within
from hwnas.search.feasible import FeasibleSampler

RNG = np.random.default_rng(5)
GENES = np.array(list(itertools.product(range(4), repeat=6)))


def cost(name: str, table: np.ndarray, walk: Walk | None = None) -> Cost:
    prices = Prices(3.0, table, walk)
    return Cost(name, prices, prices)


def opposed(count: int) -> list[Cost]:
    """Costs of which one falls where another rises."""
    base = RNG.random((6, 4)) * 4
    tables = [base, 4 - base + RNG.random((6, 4)), RNG.random((6, 4)) * 4]
    return [cost(name, table) for name, table in zip(("latency", "macs", "params"), tables, strict=False)][:count]


@pytest.mark.parametrize("count", [2, 3])
def test_the_least_under_the_others_limits_is_nearly_that_of_all(count: int) -> None:
    for _ in range(10):
        costs = opposed(count)
        totals = [one.upper.total(GENES) for one in costs]
        limits = [float(np.quantile(total, 0.4)) for total in totals[1:]]
        meets = np.logical_and.reduce([total <= limit for total, limit in zip(totals[1:], limits, strict=True)])
        if not meets.any():
            continue
        genes = least_within(costs[0], costs[1:], limits)
        assert genes is not None
        assert all(one.upper.total_of(genes) <= limit for one, limit in zip(costs[1:], limits, strict=True))
        least = float(totals[0][meets].min())
        assert least <= costs[0].upper.total_of(genes) <= least * (1.001 if count == 2 else 1.06)


def test_limits_of_what_is_no_sum_are_met() -> None:
    first, second = opposed(2)
    totals = second.upper.total(GENES)
    middle = float(np.median(totals))
    bent = replace(second.upper, curve=Curve((middle,), (2 * middle,), (0.5, 3.0)))
    limit = float(np.quantile(bent.total(GENES), 0.4))
    genes = least_within(first, [Cost("macs", bent, bent)], [limit])
    assert genes is not None
    assert bent.total_of(genes) <= limit
    least = float(first.upper.total(GENES)[bent.total(GENES) <= limit].min())
    assert least <= first.upper.total_of(genes) <= 1.001 * least


def test_a_walk_is_allowed_for() -> None:
    first, second = opposed(2)
    after = np.tile(np.array([0, 1, 0, 1], dtype=np.intp), (6, 2, 1))
    walked = cost("macs", second.upper.choices, Walk(RNG.random((6, 2, 4)), after, np.array([0.0, 0.5])))
    limit = float(np.quantile(walked.upper.total(GENES), 0.5))
    genes = least_within(first, [walked], [limit])
    assert genes is not None
    assert walked.upper.total_of(genes) <= limit


def test_what_is_said_can_be_typed_and_met() -> None:
    costs = opposed(2)
    limits = [float(np.quantile(one.upper.total(GENES), 0.05)) for one in costs]
    refusal = contradiction(costs, limits, "toy")
    assert refusal is not None
    said = re.search(r"nearest that can be met is (\w+) <= (.+?) with the others kept, or (\w+) <= (.+)$", str(refusal))
    assert said is not None
    factors = []
    for name, text in ((said[1], said[2]), (said[3], said[4])):
        value = parse_budget(name, text)[0].value
        changed = [value if one.name == name else limit for one, limit in zip(costs, limits, strict=True)]
        assert FeasibleSampler(costs, changed).count >= 1
        factors += [new / old for new, old in zip(changed, limits, strict=True) if new != old]
    assert factors == sorted(factors)  # the one that has to give way least comes first


def test_a_budget_that_is_impossible_alone_is_no_contradiction() -> None:
    costs = opposed(2)
    assert contradiction(costs, [0.0, 100.0], "toy") is None
    assert contradiction(costs[:1], [0.0], "toy") is None
