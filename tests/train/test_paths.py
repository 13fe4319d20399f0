"""The paths of a supernet's training: uniform, and under a constraint."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from hwnas.costs import Cost, Curve, Prices, macs_cost
from hwnas.errors import HwnasError
from hwnas.spaces import Arch, Space, get_space
from hwnas.train.paths import ConstrainedPaths, make_paths, sampling_identity
from hwnas.train.recipe import Recipe, Sampling, load_recipe

SHUFFLE = get_space("spos-shufflenet")
TINY = get_space("proxyless-tiny")
DRAWS = 20_000


class Toy(Space):
    """Four slots of four choices: 256 architectures that can be counted."""

    def __init__(self) -> None:
        self.name, self.slots = "toy", (("a", "b", "c", "d"),) * 4

    fixed_ops = slot_ops = network = build = supernet = None  # type: ignore[assignment]


Toy.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
TOY = Toy()
TOY_COST = {"macs": Cost("macs", *[Prices.of(10, np.arange(16).reshape(4, 4).tolist())] * 2)}


def every(low: float, high: float) -> list[tuple[int, ...]]:
    genes = np.array(list(itertools.product(range(4), repeat=4)))
    totals = TOY_COST["macs"].prices.total(genes)
    return [tuple(row) for row in genes[(totals >= low) & (totals <= high)].tolist()]


@pytest.mark.parametrize(("low", "high"), [("36", "39"), ("40", "1k"), ("1", "37"), ("42", "43")])
def test_uniform_over_exactly_those_in_the_range(low: str, high: str) -> None:
    paths = make_paths(TOY, Sampling(low=low, high=high), TOY_COST, seed=3)
    known = every(float(low), 1000.0 if high == "1k" else float(high))
    counts = Counter(paths(step) for step in range(DRAWS))
    assert set(counts) == set(known)
    assert chisquare([counts[genes] for genes in known]).pvalue > 1e-3


@pytest.mark.parametrize(("low", "high"), [(36, 39), (40, 1000), (1, 37)])
def test_a_range_of_what_is_no_sum_has_the_same_architectures(low: float, high: float) -> None:
    curve = Curve((38.0,), (100.0,), (0.5, 3.0))
    bent = Cost("macs", *[replace(TOY_COST["macs"].prices, curve=curve)] * 2)
    ends = (float(curve.at(np.array(end))) for end in (low, high))
    sampling = Sampling(**dict(zip(("low", "high"), map(str, ends), strict=True)))
    paths = make_paths(TOY, sampling, {"macs": bent}, seed=3)
    counts, known = Counter(paths(step) for step in range(DRAWS)), every(low, high)
    assert set(counts) == set(known)
    assert chisquare([counts[genes] for genes in known]).pvalue > 1e-3
    assert sampling_identity(sampling, {"macs": bent}) != sampling_identity(sampling, TOY_COST)


def test_every_bin_is_as_frequent_and_uniform_within() -> None:
    paths = ConstrainedPaths(TOY, Sampling(low="33.5", high="42.5", bins=3), TOY_COST, seed=0)
    counts = Counter(paths(step) for step in range(DRAWS))
    bins = [every(low, high) for low, high in itertools.pairwise(paths.edges)]
    per_bin = [sum(counts[genes] for genes in known) for known in bins]
    assert sum(per_bin) == DRAWS
    assert len({len(known) for known in bins}) > 1  # equally frequent, although not equally many
    assert chisquare(per_bin).pvalue > 1e-3
    assert min(chisquare([counts[genes] for genes in known]).pvalue for known in bins) > 1e-3


def test_the_published_bins_of_the_papers_space() -> None:
    """Seven bins of 10M MACs from 290M to 360M, of which chance alone would meet the last 2% of the time."""
    sampling = load_recipe("paper").sampling
    assert sampling == Sampling(cost="macs", low="290M", high="360M", bins=7)
    macs = {"macs": macs_cost(SHUFFLE)}
    paths = make_paths(SHUFFLE, sampling, macs, seed=0)
    totals = macs["macs"].prices.total(np.array([paths(step) for step in range(3500)]))
    assert totals.min() >= 290e6
    assert totals.max() <= 360e6
    assert chisquare(np.histogram(totals, np.linspace(290e6, 360e6, 8))[0]).pvalue > 1e-3


def test_a_path_is_a_function_of_seed_and_step() -> None:
    macs = {"macs": macs_cost(TINY)}
    sampling = Sampling(low="30%", high="50%", bins=4)
    one, other = (make_paths(TINY, sampling, macs, seed=1) for _ in range(2))
    steps = [0, 1000, 3, 255, 256, 3]
    assert [one(step) for step in steps] == [other(step) for step in reversed(steps)][::-1]
    assert one(3) != make_paths(TINY, sampling, macs, seed=2)(3)
    TINY.check(Arch(TINY.name, one(3)))


@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        ({"low": "90%", "high": "10%"}, "low must be below high"),
        ({"low": "1G", "high": "2G"}, "has no architecture"),
        ({"low": "1", "high": "2"}, "has no architecture"),
        ({"cost": "latency", "low": "1ms", "high": "2ms"}, "there are no prices"),
        ({"low": "zoo:mobilenet-v2", "high": "1G"}, "write a quantity"),
        ({"low": "1,2", "high": "1G"}, "write a quantity"),
    ],
)
def test_ranges_that_make_no_sense(sampling: dict[str, str], says: str) -> None:
    with pytest.raises(HwnasError, match=says):
        make_paths(TINY, Sampling.model_validate(sampling), {"macs": macs_cost(TINY)}, seed=0)


def test_what_the_supernet_depends_on_names_the_sampling_and_its_prices() -> None:
    sampling = Sampling(low="40", high="1k")
    assert sampling_identity(None, TOY_COST) is None
    one = sampling_identity(sampling, TOY_COST)
    dearer = {"macs": Cost("macs", *[TOY_COST["macs"].prices.scaled(2.0)] * 2)}
    assert one is not None
    assert one != sampling_identity(sampling, dearer)
    assert Recipe.model_validate({**load_recipe("quickstart").model_dump(), "sampling": sampling}).sampling == sampling
