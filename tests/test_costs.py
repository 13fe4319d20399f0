"""Prices of choices, and of a million architectures at once."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.costs import Curve, Prices, macs_cost
from hwnas.spaces import Arch, get_space


def test_a_million_architectures_are_priced_as_their_operators_add_up() -> None:
    space, rng = get_space("proxyless"), np.random.default_rng(0)
    genes = np.stack([rng.integers(len(choices), size=1_000_000) for choices in space.slots], axis=1)
    totals = macs_cost(space).prices.total(genes)
    assert totals.shape == (1_000_000,)
    for row in [0, 1, 8191, 8192, 999_999, *rng.integers(1_000_000, size=40)]:
        arch = Arch(space.name, tuple(int(gene) for gene in genes[row]))
        assert totals[row] == space.network(arch).macs


def test_a_total_is_the_same_to_the_last_bit_however_many_are_priced_with_it() -> None:
    rng = np.random.default_rng(1)
    prices = Prices(0.1, rng.random((21, 7)))
    genes = rng.integers(7, size=(10_000, 21))
    totals = prices.total(genes)
    assert all(prices.total_of(tuple(genes[row])) == totals[row] for row in range(0, 10_000, 97))


@given(
    st.lists(st.tuples(st.floats(0.01, 9), st.floats(0.01, 9)), min_size=1, max_size=6),
    st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)),
    st.floats(-50, 50),
)
def test_a_curve_rises_and_is_turned_round(
    steps: list[tuple[float, float]], rises: tuple[float, float], at: float
) -> None:
    knots, values = (tuple(np.cumsum(column).tolist()) for column in zip(*steps, strict=True))
    curve = Curve(knots, values, rises)
    assert curve.at(np.array(knots)) == pytest.approx(np.array(values))
    value = float(curve.at(np.array(at)))
    assert curve.sum_at(value) == pytest.approx(at, abs=1e-9)
    assert curve.at(np.array(at + 0.01)) > value
    other = curve.scaled(1.5, -2.0)
    assert other.at(np.array(at)) == pytest.approx(1.5 * value - 2)
    assert other.sum_at(1.5 * value - 2) == pytest.approx(at, abs=1e-9)
    assert curve.at(np.array([np.inf, at])).tolist() == [np.inf, value]


def test_totals_follow_the_curve_and_comparisons_the_sums() -> None:
    rng = np.random.default_rng(1)
    prices = Prices(0.1, rng.random((21, 7)))
    bent = replace(prices, curve=Curve((5.0, 8.0, 12.0), (6.0, 7.0, 15.0), (0.5, 2.0)))
    genes = rng.integers(7, size=(10_000, 21))
    sums, totals = prices.total(genes), bent.total(genes)
    assert bent.curve is not None
    np.testing.assert_array_equal(totals, bent.curve.at(sums))
    assert (np.argsort(sums) == np.argsort(totals)).all()
    assert (bent.cheapest(), bent.dearest()) == (prices.cheapest(), prices.dearest())
    assert bent.sum_at(float(totals[0])) == pytest.approx(sums[0])
    assert bent.scaled(2.0).total(genes) == pytest.approx(2 * totals)
    assert all(bent.total_of(tuple(genes[row])) == totals[row] for row in range(0, 10_000, 97))


def test_choices_that_do_not_exist_are_neither_cheapest_nor_dearest() -> None:
    prices = Prices(0.0, np.array([[2.0, 1.0, np.inf], [1.0, 2.0, 3.0]]))
    assert prices.cheapest() == (1, 0)
    assert prices.dearest() == (0, 2)
    assert prices.total(np.array([[2, 0]]))[0] == np.inf
