"""Exact uniform sampling of what meets the budgets, and repairs."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from hwnas.budget import parse_budget
from hwnas.costs import Cost, Curve, Prices, macs_cost, params_cost
from hwnas.errors import ClaimError
from hwnas.search.feasible import FeasibleSampler
from hwnas.spaces import get_space


def _cost(name: str, table: np.ndarray, *, fixed: float = 0.0, margin: float = 1.0) -> Cost:
    return Cost(name, Prices(fixed, table), Prices(fixed * margin, table * margin))


def _small(seed: int) -> np.ndarray:
    """Prices of a space of 4 * 4 * 3 * 4 * 4 architectures; the third slot has three choices."""
    table = np.random.default_rng(seed).uniform(0.5, 3.0, (5, 4))
    table[2, 3] = np.inf
    return table


def _all(table: np.ndarray) -> np.ndarray:
    return np.array(list(itertools.product(*(np.flatnonzero(np.isfinite(row)) for row in table))))


LATENCY = _cost("latency", _small(0), fixed=1.0, margin=1.1)
SIZE = _cost("params", _small(1))
BENT = Cost(
    "latency",
    replace(LATENCY.prices, curve=Curve((6.0, 8.0, 11.0), (6.5, 7.5, 12.0), (0.9, 1.4))),
    replace(LATENCY.prices, curve=Curve((6.0, 8.0, 11.0), (7.2, 8.3, 13.3), (1.0, 1.6))),
)
SAGGING = Cost(
    "latency", *[replace(LATENCY.prices, curve=Curve((6.0, 8.0, 11.0), (5.0, 6.5, 9.0), (0.9, 1.4)))] * 2
)  # a sum is more than its total
SLEW = _cost("macs", np.where(np.isfinite(_small(0)), 5.0 - _small(0), np.inf))  # cheap where latency is dear


@pytest.mark.parametrize(
    ("costs", "limits"),
    [
        ([LATENCY], [9.5]),
        ([LATENCY], [8.6]),
        ([BENT], [9.5]),
        ([BENT], [8.5]),
        ([BENT, SIZE], [10.0, 8.0]),
        ([SAGGING], [7.2]),
        ([LATENCY, SIZE], [10.0, 8.0]),
        ([LATENCY, SLEW], [11.0, 16.5]),
        ([LATENCY, SIZE, SLEW], [11.0, 9.5, 17.0]),
        ([LATENCY], [1000.0]),
        ([LATENCY, SIZE], [np.inf, 8.0]),
    ],
)
def test_draws_are_uniform_over_exactly_the_feasible_architectures(costs: list[Cost], limits: list[float]) -> None:
    every = _all(LATENCY.prices.choices)
    meets = np.all([cost.upper.total(every) <= limit for cost, limit in zip(costs, limits, strict=True)], axis=0)
    feasible = {tuple(row): index for index, row in enumerate(every[meets].tolist())}
    assert len(feasible) > 3, "a case that tests nothing"
    sampler = FeasibleSampler(costs, limits)
    drawn = sampler.sample(100 * len(feasible), np.random.default_rng(7))
    seen = np.bincount([feasible[tuple(row)] for row in drawn.tolist()], minlength=len(feasible))
    assert stats.chisquare(seen).pvalue > 0.001
    assert sampler.count == sampler.drawn_count == pytest.approx(len(feasible), rel=0.15)
    assert sampler.fraction == pytest.approx(len(feasible) / len(every), rel=0.15)


@pytest.mark.parametrize(
    ("costs", "limits", "min_use"),
    [
        ([LATENCY], [9.5], 0.9),
        ([LATENCY], [11.0], 0.97),
        ([LATENCY, SIZE], [11.0, 9.0], 0.95),
        ([BENT], [9.0], 0.9),
        ([SAGGING], [7.5], 0.9),
        ([BENT, SIZE], [10.0, 9.0], 0.92),
    ],
)
def test_with_a_floor_draws_are_uniform_over_the_band(costs: list[Cost], limits: list[float], min_use: float) -> None:
    every = _all(LATENCY.prices.choices)
    meets = np.all([cost.upper.total(every) <= limit for cost, limit in zip(costs, limits, strict=True)], axis=0)
    band = meets & (costs[0].upper.total(every) >= min_use * limits[0])
    inside = {tuple(row): index for index, row in enumerate(every[band].tolist())}
    assert 3 < len(inside) < meets.sum()
    sampler = FeasibleSampler(costs, limits, min_use=min_use)
    drawn = sampler.sample(100 * len(inside), np.random.default_rng(3))
    seen = np.bincount([inside[tuple(row)] for row in drawn.tolist()], minlength=len(inside))
    assert stats.chisquare(seen).pvalue > 0.001
    assert sampler.drawn_count == pytest.approx(len(inside), rel=0.15)
    assert sampler.count == pytest.approx(meets.sum(), rel=0.15)
    assert sampler.fraction == pytest.approx(meets.mean(), rel=0.15)
    repaired = sampler.repair(every, np.random.default_rng(4))
    assert all(tuple(row) in inside for row in repaired.tolist())
    np.testing.assert_array_equal(repaired[band], every[band])


def test_a_floor_that_nothing_reaches_is_dropped() -> None:
    cost = _cost("latency", np.array([[1.0, 5.0], [1.0, 5.0]]))
    sampler = FeasibleSampler([cost], [5.5], min_use=0.9)  # totals are 2, 6 and 10
    assert sampler.floor == -np.inf
    assert sampler.sample(3, np.random.default_rng(0)).tolist() == [[0, 0]] * 3


def test_draws_and_repairs_depend_on_the_generator_alone() -> None:
    sampler = FeasibleSampler([LATENCY], [9.5])
    every = _all(LATENCY.prices.choices)
    runs = []
    for _ in range(2):
        rng = np.random.default_rng(3)
        runs.append((sampler.sample(50, rng), sampler.repair(every, rng)))
    assert all(np.array_equal(*pair) for pair in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("costs", "limits"), [([LATENCY], [9.5]), ([LATENCY, SIZE], [10.0, 8.0]), ([SIZE], [99.0]), ([BENT], [9.0])]
)
def test_repairs_change_as_few_genes_as_possible(costs: list[Cost], limits: list[float]) -> None:
    sampler = FeasibleSampler(costs, limits)
    every = _all(LATENCY.prices.choices)
    feasible = every[sampler.feasible(every)]
    repaired = sampler.repair(every, np.random.default_rng(0))
    assert sampler.feasible(repaired).all()
    least = (every[:, None, :] != feasible[None]).sum(axis=2).min(axis=1)
    changed = (every != repaired).sum(axis=1)
    assert (changed[least == 0] == 0).all()
    # The grid of repairs is coarse: rounding down can only suggest too few changes, which are then rejected.
    assert (changed >= least).all()
    assert (changed == least).mean() > 0.98


def test_a_gene_that_does_not_exist_is_repaired_even_under_a_budget_that_does_not_bind() -> None:
    genes = np.array([[0, 0, 3, 0, 0]])
    for limit in (9.5, 1000.0):
        sampler = FeasibleSampler([LATENCY], [limit])
        repaired = sampler.repair(genes, np.random.default_rng(0))
        assert sampler.feasible(repaired).all()


def test_never_stuck_where_one_in_a_billion_is_feasible() -> None:
    space = get_space("proxyless")
    macs, params = macs_cost(space), params_cost(space)
    rng = np.random.default_rng(0)
    for costs, limits, most in [
        ([macs], [148e6], 1e-9),
        ([macs], [102.6e6], 1e-15),
        ([params], [2.2e6], 1e-11),
        ([macs, params], [160e6, 2.6e6], 1e-8),
    ]:
        sampler = FeasibleSampler(costs, limits, space=space.name)
        assert sampler.fraction < most
        assert sampler.acceptance > 0.1
        drawn = sampler.sample(200, rng)
        assert drawn.shape == (200, 21)
        assert sampler.feasible(drawn).all()
        anything = np.stack([rng.integers(len(choices), size=5) for choices in space.slots], axis=1)
        assert sampler.feasible(sampler.repair(anything, rng)).all()


def test_the_cheapest_architecture_is_found_at_its_own_price() -> None:
    table = np.full((12, 3), 0.1)
    table[:, 1:] = [0.1 + 1e-9, 0.7]
    cost = _cost("latency", table, fixed=0.3)
    limit = cost.upper.total_of((0,) * 12)
    sampler = FeasibleSampler([cost], [limit])
    assert (sampler.sample(5, np.random.default_rng(0)) == 0).all()


def test_negative_prices_are_fine() -> None:
    """A calibration may make a choice cheaper than leaving it out."""
    table = np.array([[0.5, -0.2, 0.0], [0.3, 0.1, -0.1]])
    sampler = FeasibleSampler([_cost("latency", table, fixed=1.0)], [0.85])
    found = {tuple(row) for row in sampler.sample(200, np.random.default_rng(0)).tolist()}
    assert found == {(1, 2)}


def test_nothing_feasible_names_the_cheapest() -> None:
    table = np.array([[0.1, 0.2], [0.21, 0.4]])
    cost = Cost("latency", Prices(0.0, table), Prices(0.02, table))
    with pytest.raises(ClaimError) as error:
        FeasibleSampler([cost], [0.1], space="proxyless-tiny")
    assert str(error.value) == (
        "no architecture of proxyless-tiny meets latency <= 0.1 ms: "
        "the cheapest predicted is 0.31 ms (upper end 0.33 ms), so give 0.33 ms or more"
    )
    macs = macs_cost(get_space("proxyless-tiny"))
    with pytest.raises(ClaimError, match=r"meets macs <= 1M: the cheapest predicted is 1\.468M, so give") as error:
        FeasibleSampler([macs], [1e6])
    said = str(error.value).rpartition("so give ")[2].removesuffix(" or more")
    limit = parse_budget("macs", said)[0].value  # what it says can be typed, and is enough
    assert limit < 1.001 * macs.prices.total_of(macs.prices.cheapest())
    assert FeasibleSampler([macs], [limit]).count >= 1


def test_budgets_that_exclude_each_other_say_so() -> None:
    table = np.array([[0.0, 1.0]] * 8)
    one, other = _cost("latency", table), _cost("macs", 1 - table)
    assert FeasibleSampler([one, other], [4.0, 4.0]).feasible(np.array([[0, 1] * 4])).all()
    with pytest.raises(ClaimError, match=r"together: latency <= 3 ms \(alone, 0 ms is possible\) and macs <= 4"):
        FeasibleSampler([one, other], [3.0, 4.0])


def test_prices_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="must be numbers"):
        FeasibleSampler([_cost("latency", np.array([[np.nan, 1.0]]))], [3.0])
