"""One contract for every search method."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from hwnas.costs import macs_cost
from hwnas.errors import HwnasError
from hwnas.search.evolution import Evolution, evolve, lead_back
from hwnas.search.feasible import FeasibleSampler
from hwnas.search.random_search import random_search
from hwnas.search.result import Generation, SearchResult
from hwnas.spaces import Arch, get_space

METHODS: dict[str, Callable[..., SearchResult]] = {"evolution": evolve, "random": random_search}
SPACE = get_space("proxyless-tiny")
MACS = macs_cost(SPACE)
SMALL = Evolution(population=10, generations=5, parents=4)

_TASTE = np.random.default_rng(99).normal(size=(len(SPACE.slots), 7))


def _score(arch: Arch) -> float:
    """An accuracy as it might be: some choices are better, slot by slot."""
    return float(sum(_TASTE[slot, gene] for slot, gene in enumerate(arch.genes)))


def _evaluate(archs: list[Arch]) -> list[float]:
    return [_score(arch) for arch in archs]


def _run(method: str, limit: float = 4e6, seed: int = 0, **options: object) -> SearchResult:
    sampler = FeasibleSampler([MACS], [limit], space=SPACE.name)
    options = {"evaluate": _evaluate, "settings": SMALL, **options}
    return METHODS[method](SPACE, sampler, rng=np.random.default_rng(seed), **options)


@pytest.mark.parametrize("method", METHODS)
def test_the_contract(method: str) -> None:
    seen: list[Generation] = []
    result = _run(method, on_generation=seen.append)
    archs = [arch for arch, _ in result.evaluated]
    assert len(archs) == len(set(archs)) == SMALL.evaluations == 60
    for arch in archs:
        SPACE.check(arch)
        assert MACS.upper.total_of(arch.genes) <= 4e6
    assert all(score == _score(arch) for arch, score in result.evaluated)
    assert (result.best, result.score) == max(result.evaluated, key=lambda pair: pair[1])
    assert result.complete
    assert result.message == ""
    assert [(g.index, g.last, g.evaluated) for g in seen] == [(i, 5, 10 * (i + 1)) for i in range(6)]
    assert (seen[-1].best, seen[-1].score) == (result.best, result.score)


@pytest.mark.parametrize("method", METHODS)
def test_deterministic_under_a_seed(method: str) -> None:
    assert _run(method) == _run(method)
    assert _run(method).evaluated != _run(method, seed=1).evaluated


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_search_is_repeated_exactly_from_its_cache(method: str) -> None:
    cache: dict[Arch, float] = {}
    asked = itertools.count()

    def killed(archs: list[Arch]) -> list[float]:
        for arch in archs:
            if next(asked) == 33:
                raise KeyboardInterrupt
            cache[arch] = _score(arch)
        return [cache[arch] for arch in archs]

    with pytest.raises(KeyboardInterrupt):
        _run(method, evaluate=killed)
    anew: list[Arch] = []

    def cached(archs: list[Arch]) -> list[float]:
        anew.extend(arch for arch in archs if arch not in cache)
        return [cache.get(arch, _score(arch)) for arch in archs]

    assert _run(method, evaluate=cached) == _run(method)
    assert len(anew) == SMALL.evaluations - 33


@pytest.mark.parametrize("method", METHODS)
def test_a_feasible_set_that_is_exhausted_ends_the_search(method: str) -> None:
    sampler = FeasibleSampler([MACS], [1.7e6])
    result = _run(method, limit=1.7e6)
    drawn = {tuple(row) for row in sampler.sample(5000, np.random.default_rng(1)).tolist()}
    assert 1 < len(drawn) < SMALL.evaluations
    assert {arch.genes for arch, _ in result.evaluated} == drawn
    assert not result.complete
    assert f"{len(result.evaluated)} instead of 60 architectures" in result.message
    assert f"about {len(drawn)} can be" in result.message


@pytest.mark.parametrize("method", METHODS)
def test_scores_that_are_nan_or_missing(method: str) -> None:
    result = _run(method, evaluate=lambda archs: [math.nan if arch.genes[0] else _score(arch) for arch in archs])
    assert result.best.genes[0] == 0
    assert math.isfinite(result.score)
    with pytest.raises(HwnasError, match="10 architectures were evaluated and 0 scores"):
        _run(method, evaluate=lambda archs: [])


def test_the_last_generation_counts() -> None:
    """Scores that rise with every evaluation: the best is then in the last generation."""
    counter = itertools.count()
    result = _run("evolution", evaluate=lambda archs: [float(next(counter)) for _ in archs])
    assert result.score == SMALL.evaluations - 1
    assert result.best == result.evaluated[-1][0]


def test_the_papers_settings() -> None:
    assert Evolution() == Evolution(population=50, generations=20, parents=10, mutation=0.1)
    assert Evolution().evaluations == 1050


def test_evolution_beats_random_search_where_choices_matter() -> None:
    settings = Evolution(population=20, generations=10, parents=6)
    pairs = [tuple(_run(name, seed=seed, settings=settings).score for name in METHODS) for seed in range(5)]
    assert all(evolved > drawn for evolved, drawn in pairs)


@pytest.mark.parametrize("broken", [{"population": 0}, {"parents": 0}, {"mutation": 0.0}, {"generations": -1}])
def test_impossible_settings(broken: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="impossible settings"):
        Evolution(**broken)  # type: ignore[arg-type]


def test_children_are_led_back_by_as_few_genes_of_their_home_as_it_takes() -> None:
    sampler = FeasibleSampler([MACS], [4e6], min_use=0.9)
    rng = np.random.default_rng(3)
    homes = sampler.sample(200, rng)
    children = rng.integers([len(choices) for choices in SPACE.slots], size=homes.shape)
    led = lead_back(sampler, children, homes, rng)
    meets = sampler.admissible(children)
    assert 0 < meets.sum() < 200
    assert (led[meets] == children[meets]).all()
    assert sampler.admissible(led).all()
    assert ((led == children) | (led == homes)).all()
    changed = (led != children).sum(axis=1)[~meets]
    assert changed.min() >= 1
    assert (changed < (homes != children).sum(axis=1)[~meets]).any()  # not simply the home
