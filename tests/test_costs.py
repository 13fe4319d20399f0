"""Prices of choices, and of a million architectures at once."""

import numpy as np

from hwnas.costs import Prices, macs_cost
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


def test_choices_that_do_not_exist_are_neither_cheapest_nor_dearest() -> None:
    prices = Prices(0.0, np.array([[2.0, 1.0, np.inf], [1.0, 2.0, 3.0]]))
    assert prices.cheapest() == (1, 0)
    assert prices.dearest() == (0, 2)
    assert prices.total(np.array([[2, 0]]))[0] == np.inf
