"""A space lowered slot by slot is each of its networks lowered; the networks that cover its kernels."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest

from hwnas.costs import macs_cost
from hwnas.latency.covers import MOST, TIMES, cover_archs
from hwnas.latency.lowering import lowering
from hwnas.latency.plan import CALIBRATION_NETWORKS, calibration_archs
from hwnas.latency.slots import Kernels, SpaceKernels
from hwnas.ops import Op
from hwnas.spaces import SPACES, Space, get_space

BLOCKS = (0, 8, 16)
CASES = [(name, block) for name in SPACES for block in BLOCKS]


@cache
def lowered(name: str, block: int) -> tuple[Space, SpaceKernels]:
    space = get_space(name)
    return space, SpaceKernels.of(space, lowering({"runtime": "onnxruntime", "channel_block": block}))


def cost(kernels: Kernels) -> float:
    """A made-up price, other for each kernel."""
    return sum(1e-3 + op.macs / 1e9 + (sum(map(ord, op.key)) % 97) / 1e3 for op in kernels)


@pytest.mark.parametrize(("name", "block"), CASES)
def test_an_architecture_has_the_kernels_of_its_network(name: str, block: int) -> None:
    space, kernels = lowered(name, block)
    lower = lowering({"runtime": "onnxruntime", "channel_block": block})
    rng = np.random.default_rng(block)
    every = set(kernels.every())
    for _ in range(8):
        arch = space.sample(rng)
        whole = lower(space.network(arch))
        assert kernels.of_genes(arch.genes) == whole
        assert every >= set(whole)


@pytest.mark.parametrize(("name", "block"), CASES)
def test_prices_are_sums_over_kernels_and_extremes_are_extreme(name: str, block: int) -> None:
    space, kernels = lowered(name, block)
    prices = kernels.prices(cost, 0.25)
    rng = np.random.default_rng(block)
    genes = np.array([space.sample(rng).genes for _ in range(300)])
    totals = prices.total(genes)
    expected = [0.25 + cost(kernels.of_genes(row)) for row in genes[:20].tolist()]
    np.testing.assert_allclose(totals[:20], expected, rtol=1e-9)
    least, most = (prices.total_of(found) for found in (prices.cheapest(), prices.dearest()))
    assert least < totals.min()
    assert most > totals.max()
    for found, sign in ((prices.cheapest(), 1), (prices.dearest(), -1)):  # nor does a change of one gene go beyond
        for slot, choices in enumerate(space.slots):
            near = np.array([[*found[:slot], gene, *found[slot + 1 :]] for gene in range(len(choices))])
            assert (sign * prices.total(near) >= sign * prices.total_of(found) - 1e-12).all()


def test_covers_are_cheap_middling_and_expensive_networks() -> None:
    """Uniform draws lie in a fifth of the range: no cheap kernel is then timed among cheap ones."""
    space, kernels = lowered("fbnet", 8)
    macs = np.array([space.network(arch).macs for arch in cover_archs(space, kernels)])
    prices = macs_cost(space).prices
    least, most = (prices.total_of(genes) for genes in (prices.cheapest(), prices.dearest()))
    places = (macs - least) / (most - least)
    assert places.min() < 0.15
    assert places.max() > 0.7
    assert ((places > 0.25) & (places < 0.6)).sum() >= 3


# the joint space takes a minute for each block size
@pytest.mark.parametrize(("name", "block"), [case for case in CASES if case[0] != "spos-joint" or case[1] == 16])
def test_covers_have_every_kernel_often_and_no_calibration_network(name: str, block: int) -> None:
    space, kernels = lowered(name, block)
    calibration = calibration_archs(space, CALIBRATION_NETWORKS)
    found = cover_archs(space, kernels, without=calibration)
    assert found == cover_archs(space, kernels, without=calibration)
    assert len(found) == len(set(found)) <= MOST
    assert not set(found) & set(calibration)
    assert found[0] not in cover_archs(space, kernels, without=found[:1])
    counts: Counter[Op] = Counter(op for arch in found for op in set(kernels.of_genes(arch.genes)))
    assert {op.key for op in kernels.every() if counts[op] < TIMES} == set()
