"""Prices that depend on what stands before a slot: walks, and what is drawn under them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from hwnas.costs import Cost, Prices
from hwnas.errors import ClaimError
from hwnas.search import feasible as module
from hwnas.search.feasible import FeasibleSampler

MONEY = st.floats(-2, 8, allow_nan=False, width=32)


@dataclass(frozen=True)
class Chain:
    """What a walk is made from: `table` and `after` are [slots, states, choices], `tail` is [states]."""

    fixed: float
    table: np.ndarray
    after: np.ndarray
    tail: np.ndarray

    def prices(self) -> Prices:
        return Prices.of_walk(self.fixed, self.table, self.after, self.tail)

    def every(self) -> np.ndarray:
        """Genes [n, slots] of all architectures."""
        exists = np.isfinite(self.table).any(axis=1)
        return np.array(list(itertools.product(*map(np.flatnonzero, exists))))

    def total(self, genes: np.ndarray) -> float:
        """By hand, from the table as it was given."""
        total, state = self.fixed, 0
        for slot, gene in enumerate(genes):
            total += self.table[slot, state, gene]
            state = self.after[slot, state, gene]
        return total + self.tail[state]

    def totals(self) -> np.ndarray:
        return np.array([self.total(genes) for genes in self.every()])


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    """Up to 4 slots, 3 states and 3 choices. States that nothing leads to have no prices, some slots fewer choices.

    Some states do not allow a choice; each allows one at least.
    """
    slots, states, choices = draw(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)))
    shape = (slots, states, choices)
    table = draw(hnp.arrays(np.float64, shape, elements=MONEY))
    after = draw(hnp.arrays(np.intp, shape, elements=st.integers(0, states - 1)))
    tail = draw(hnp.arrays(np.float64, states, elements=MONEY))
    for slot in range(slots):
        table[slot, :, draw(st.integers(1, choices)) :] = np.inf
    reached = {0}
    for slot in range(slots):
        absent = [state for state in range(states) if state not in reached]
        for state in sorted(reached):
            table[slot, state, draw(st.sampled_from([choices, *range(1, choices)])) :] = np.inf
        known = np.isfinite(table[slot])
        reached = {int(end) for state in reached for end in after[slot, state][known[state]]}
        table[slot, absent] = np.inf
        after[slot, absent] = 0
    tail[[state for state in range(states) if state not in reached]] = np.inf
    return Chain(draw(MONEY), table, after, tail)


@settings(max_examples=150, deadline=None)
@given(chain=chains(), factor=st.floats(0.1, 10))
def test_totals_and_extremes_are_those_of_the_table(chain: Chain, factor: float) -> None:
    prices, every, totals = chain.prices(), chain.every(), chain.totals()
    np.testing.assert_allclose(prices.total(every), totals, atol=1e-9)
    assert prices.total_of(prices.cheapest()) == pytest.approx(totals.min(), abs=1e-9)
    assert prices.total_of(prices.dearest()) == pytest.approx(totals[np.isfinite(totals)].max(), abs=1e-9)
    scaled = prices.scaled(factor)
    np.testing.assert_allclose(scaled.total(every), factor * totals, atol=1e-8)
    assert scaled.total_of(scaled.cheapest()) == pytest.approx(factor * totals.min(), abs=1e-8)


@settings(max_examples=150, deadline=None)
@given(chain=chains())
def test_a_walk_only_adds(chain: Chain) -> None:
    """Without the walk an architecture is never dearer."""
    prices, every = chain.prices(), chain.every()
    assert (Prices(prices.fixed, prices.choices).total(every) <= prices.total(every) + 1e-9).all()


def test_prices_that_are_the_same_in_every_state_have_no_walk() -> None:
    row = np.array([1.0, 2.0])
    table = np.stack([np.stack([row, row])] * 3)
    after = np.ones(table.shape, np.intp)
    assert Prices.of_walk(0.5, table, after, np.array([3.0, 3.0])) == Prices(3.5, pytest.approx(table[:, 0]), None)


def test_a_total_is_the_same_however_many_are_priced_with_it() -> None:
    chain = _chain(3, slots=12, states=3, choices=4)
    prices = chain.prices()
    genes = np.random.default_rng(0).integers(4, size=(20_000, 12))
    totals = prices.total(genes)
    assert all(prices.total_of(tuple(genes[row])) == totals[row] for row in range(0, 20_000, 499))


# -- drawing ----------------------------------------------------------------------------------------------------------


def _chain(seed: int, slots: int = 5, states: int = 2, choices: int = 3) -> Chain:
    rng = np.random.default_rng(seed)
    table = rng.uniform(0.5, 3.0, (slots, states, choices))
    table[2, :, -1] = np.inf  # a slot with fewer choices
    return Chain(1.0, table, rng.integers(states, size=table.shape), rng.uniform(0, 1, states))


CHAIN = _chain(0, slots=7)  # 1458 architectures, of which some shares are few enough to be listed
LATENCY = Cost("latency", CHAIN.prices(), CHAIN.prices().scaled(1.1))
OTHER = Cost("macs", *[Prices(0.0, _chain(1, slots=7).table[:, 0])] * 2)
EVERY = CHAIN.every()
UPPER = 1.1 * CHAIN.totals()


def _limit(share: float) -> float:
    """What this share of all architectures meets."""
    return float(np.quantile(UPPER, share))


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("min_use", [0.0, 0.9])
def test_draws_are_uniform_over_exactly_what_is_feasible(share: float, min_use: float) -> None:
    limit = _limit(share)
    wanted = (limit >= UPPER) & (min_use * limit <= UPPER)
    feasible = {tuple(row): index for index, row in enumerate(EVERY[wanted].tolist())}
    assert len(feasible) >= 2
    sampler = FeasibleSampler([LATENCY], [limit], min_use=min_use)
    drawn = sampler.sample(100 * len(feasible), np.random.default_rng(5))
    seen = np.bincount([feasible[tuple(row)] for row in drawn.tolist()], minlength=len(feasible))
    assert stats.chisquare(seen).pvalue > 0.001
    assert sampler.drawn_count == pytest.approx(len(feasible), rel=0.2)
    assert sampler.count == pytest.approx((limit >= UPPER).sum(), rel=0.2)
    repaired = sampler.repair(EVERY, np.random.default_rng(6))
    assert {tuple(row) for row in repaired.tolist()} <= set(feasible)
    np.testing.assert_array_equal(repaired[wanted], EVERY[wanted])


def test_two_budgets_of_which_one_walks() -> None:
    limits = [_limit(0.6), float(np.quantile(OTHER.upper.total(EVERY), 0.6))]
    wanted = (limits[0] >= UPPER) & (OTHER.upper.total(EVERY) <= limits[1])
    sampler = FeasibleSampler([LATENCY, OTHER], limits)
    drawn = sampler.sample(60 * int(wanted.sum()), np.random.default_rng(5))
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in EVERY[wanted].tolist()}


@pytest.mark.parametrize("few", [0, 256])
@settings(max_examples=60, deadline=None)
@given(chain=chains(), share=st.floats(0, 1), use=st.sampled_from([0.0, 0.8]))
def test_nothing_feasible_is_lost(few: int, chain: Chain, share: float, use: float) -> None:
    """Of any chain: all that is drawn and repaired is feasible, and all that is feasible is drawn."""
    totals = chain.totals()
    limit = float(np.quantile(totals[np.isfinite(totals)], share)) + 1e-9
    cost = Cost("latency", chain.prices(), chain.prices())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FEW", few)  # 0: off the grid, however few there are
        sampler = FeasibleSampler([cost], [limit], min_use=use)
    wanted = (totals <= limit) & (totals >= sampler.floor)
    assert wanted.any()
    drawn = sampler.sample(40 * int(wanted.sum()), np.random.default_rng(0))
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in chain.every()[wanted].tolist()}
    repaired = sampler.repair(chain.every(), np.random.default_rng(1))
    assert {tuple(row) for row in repaired.tolist()} <= {tuple(row) for row in drawn.tolist()}


def test_draws_from_the_enumeration_of_a_hundred_thousand_are_uniform() -> None:
    rng = np.random.default_rng(3)
    shape = (5, 3, 10)
    chain = Chain(1.0, rng.uniform(0.5, 3.0, shape), rng.integers(3, size=shape), rng.uniform(0, 1, 3))
    prices, every = chain.prices(), chain.every()
    totals = prices.total(every)
    limit = float(np.quantile(totals, 0.3))
    wanted = (totals <= limit) & (totals >= 0.8 * limit)
    assert len(every) == 100_000
    sampler = FeasibleSampler([Cost("latency", prices, prices)], [limit], min_use=0.8)
    drawn = sampler.sample(20 * int(wanted.sum()), np.random.default_rng(4))
    seen = np.bincount(drawn @ 10 ** np.arange(4, -1, -1), minlength=len(every))
    assert not seen[~wanted].any()
    assert stats.chisquare(seen[wanted]).pvalue > 0.001
    assert sampler.drawn_count == pytest.approx(wanted.sum(), rel=0.01)


def test_a_share_of_a_limit_below_zero_is_no_floor() -> None:
    """0.8 of -1 is more than -1: nothing meets both."""
    prices = Prices(-1.0, np.array([[0.0, 1.0]]))
    sampler = FeasibleSampler([Cost("latency", prices, prices)], [-1.0 + 1e-9], min_use=0.8)
    assert sampler.floor == -np.inf
    assert (sampler.sample(10, np.random.default_rng(0)) == 0).all()
    assert (sampler.repair(np.ones((3, 1), int), np.random.default_rng(0)) == 0).all()


@pytest.mark.parametrize("few", [0, 256])
@pytest.mark.parametrize("scale", [0.0, 5e-324, 1e-300, 1e-9, 1e300])
@pytest.mark.parametrize("use", [0.0, 0.5, 1.0])
def test_prices_of_any_scale(few: int, scale: float, use: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """All free, as small and as large as numbers are: the limit is what one architecture costs to the last bit."""
    monkeypatch.setattr(module, "_FEW", few)
    prices = Prices(0.0, scale * np.array([[0.0, 1.0, 4.0]] * 3))
    every = np.array(list(itertools.product(range(3), repeat=3)))
    totals = prices.total(every)
    for limit in np.unique(totals)[::3]:
        sampler = FeasibleSampler([Cost("latency", prices, prices)], [float(limit)], min_use=use)
        binds = use * limit > 0 and limit < totals.max()
        assert sampler.floor == (use * limit if binds else -np.inf)
        wanted = (totals <= limit) & (totals >= sampler.floor)
        drawn = sampler.sample(60 * int(wanted.sum()), np.random.default_rng(0))
        assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in every[wanted].tolist()}
        assert sampler.admissible(sampler.repair(every, np.random.default_rng(1))).all()


def test_what_only_the_walk_makes_impossible_is_refused_with_the_true_cheapest() -> None:
    """Each state is cheap somewhere, none everywhere: the least prices add up to 0, every architecture costs 2."""
    table = np.array([[[0.0, 0.0], [9.0, 9.0]], [[0.0, 2.0], [2.0, 0.0]], [[2.0, 2.0], [0.0, 0.0]]])
    after = np.array([[[1, 0], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]])
    prices = Chain(0.0, table, after, np.zeros(2)).prices()
    with pytest.raises(
        ClaimError, match=r"meets latency <= 1\.5 ms: the cheapest predicted is 2 ms, so give 2 ms or more$"
    ):
        FeasibleSampler([Cost("latency", prices, prices)], [1.5])
    drawn = FeasibleSampler([Cost("latency", prices, prices)], [2.0]).sample(100, np.random.default_rng(0))
    assert {tuple(genes[:2]) for genes in drawn.tolist()} == {(0, 1), (1, 0)}


def test_states_may_forbid_choices() -> None:
    """The narrow choice is followed by narrow ones only: a rule of a space, alone and beside a budget of its own."""
    slots = 6
    table = np.zeros((slots, 2, 3))
    table[1:, 1, 1:] = np.inf  # state 1 allows choice 0 alone
    after = np.zeros(table.shape, np.intp)
    after[:, :, 0] = 1
    rule = Chain(0.0, table, after, np.zeros(2)).prices()
    every = np.array(list(itertools.product(range(3), repeat=slots)))
    allowed = np.isfinite(rule.total(every))
    assert int(allowed.sum()) == sum(2 ** (slots - narrow) for narrow in range(slots + 1))
    shape = Cost("macs", rule, rule)
    money = Prices(0.0, np.random.default_rng(0).uniform(1, 2, (slots, 3)))
    for limit in (np.inf, float(np.quantile(money.total(every[allowed]), 0.4))):
        wanted = allowed & (money.total(every) <= limit)
        for costs, limits in (([shape, Cost("latency", money, money)], [1.0, limit]),
                              ([Cost("latency", money, money), shape], [limit, 0.0])):  # fmt: skip
            sampler = FeasibleSampler(costs, limits)
            drawn = sampler.sample(100 * int(wanted.sum()), np.random.default_rng(1))
            seen = np.bincount(drawn @ 3 ** np.arange(slots - 1, -1, -1), minlength=len(every))
            assert not seen[~wanted].any()
            assert stats.chisquare(seen[wanted]).pvalue > 0.001
            assert sampler.acceptance > 0.9
            assert sampler.feasible(sampler.repair(every, np.random.default_rng(2))).all()


@pytest.mark.parametrize("above", [0.0, 1e-3, 0.02])
def test_never_stuck_near_the_cheapest(above: float) -> None:
    """At the price of the cheapest of 10^12 architectures, and a little above it."""
    chain = _chain(7, slots=20, states=2, choices=4)
    prices = chain.prices()
    cheapest, dearest = (prices.total_of(genes) for genes in (prices.cheapest(), prices.dearest()))
    limit = cheapest + above * (dearest - cheapest)
    sampler = FeasibleSampler([Cost("latency", prices, prices)], [limit])
    drawn = sampler.sample(5, np.random.default_rng(0))
    assert (prices.total(drawn) <= limit).all()
    anything = np.random.default_rng(1).integers(2, size=(3, 20))
    assert (prices.total(sampler.repair(anything, np.random.default_rng(2))) <= limit).all()


@pytest.mark.parametrize("slots", [3, 25])
def test_a_fee_just_above_the_budget_is_no_trap(slots: int) -> None:
    """One architecture meets it. The grid cannot tell it from the 3^slots that pay a hair more than the budget."""
    table = np.zeros((slots, 2, 3))
    table[0, 0] = [0.0, 1.0 + 1e-7, 9.0]  # the fee, and then all is free
    table[1:, 0] = [0.0, 2.0, 3.0]
    table[1:, 1] = 0.0
    after = np.zeros(table.shape, np.intp)
    after[0, 0, 1] = 1
    after[1:, 1] = 1
    prices = Chain(5.0, table, after, np.zeros(2)).prices()
    sampler = FeasibleSampler([Cost("latency", prices, prices)], [6.0])
    assert sampler.count == sampler.acceptance == 1
    assert (sampler.sample(10, np.random.default_rng(0)) == 0).all()
    assert (sampler.repair(np.ones((2, slots), int), np.random.default_rng(0)) == 0).all()


def test_two_budgets_that_walk_apart_are_counted_side_by_side() -> None:
    """Both walks have states of their own: exactly what meets both is drawn, near the cheapest of each too."""
    chains = [_chain(0, slots=7), _chain(3, slots=7, states=3)]
    costs = [Cost(name, *[chain.prices()] * 2) for name, chain in zip(("latency", "macs"), chains, strict=True)]
    totals = [chain.totals() for chain in chains]
    for share in (0.3, 0.9):
        limits = [float(np.quantile(total, share)) for total in totals]
        wanted = np.logical_and(*(total <= limit for total, limit in zip(totals, limits, strict=True)))
        assert wanted.any()
        sampler = FeasibleSampler(costs, limits)
        drawn = sampler.sample(60 * int(wanted.sum()), np.random.default_rng(5))
        assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in EVERY[wanted].tolist()}
        assert sampler.count == pytest.approx(wanted.sum(), rel=0.1)
