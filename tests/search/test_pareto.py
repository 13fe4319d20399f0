"""Fronts of accuracy against a cost."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import Hwnas
from tiny_fashion import write_fashion_mnist
from tiny_images import write_dataset

from hwnas.budget import Budget
from hwnas.costs import Prices, macs_cost
from hwnas.errors import RuntimeMissing
from hwnas.progress import NullProgress
from hwnas.runs import RunFolder
from hwnas.search.evolution import Evolution, evolve
from hwnas.search.feasible import FeasibleSampler
from hwnas.search.pareto import best_spread, crowding, front, front_level
from hwnas.search.spos import SearchRequest, search
from hwnas.spaces import Arch, get_space
from hwnas.train.recipe import Recipe

SPACE = get_space("proxyless-tiny", num_classes=3)
MACS = macs_cost(SPACE)
TASTE = np.random.default_rng(7).normal(size=(len(SPACE.slots), 7))


def scores(archs: list[Arch]) -> list[float]:
    """Larger nets tend to be better, by a taste that differs from slot to slot."""
    cost = np.log(MACS.prices.total(np.array([arch.genes for arch in archs])))
    taste = [sum(TASTE[slot, gene] for slot, gene in enumerate(arch.genes)) for arch in archs]
    return [float(2 * c + 0.3 * t) for c, t in zip(cost, taste, strict=True)]


def hypervolume(pairs: list[tuple[Arch, float]]) -> float:
    from pymoo.indicators.hv import HV

    genes = np.array([arch.genes for arch, _ in pairs])
    points = np.stack([[-score for _, score in pairs], MACS.prices.total(genes) / 1e6], axis=1)
    return float(HV(ref_point=np.array([-20.0, 6.0]))(points))


def test_nothing_scored_dominates_a_net_of_the_front_and_the_ends_are_there() -> None:
    sampler = FeasibleSampler([MACS], [5e6])
    archs = [Arch(SPACE.name, tuple(row)) for row in sampler.sample(200, np.random.default_rng(0)).tolist()]
    pairs = list(dict(zip(archs, scores(archs), strict=True)).items())
    whole = front(pairs, MACS.prices, 1000)
    known = dict(pairs)
    cost = {arch: MACS.prices.total_of(arch.genes) for arch in known}
    for arch in whole:
        assert not any(
            known[other] >= known[arch] and cost[other] <= cost[arch]
            and (known[other] > known[arch] or cost[other] < cost[arch])
            for other in known
        )  # fmt: skip
    assert [cost[arch] for arch in whole] == sorted(cost[arch] for arch in whole)
    assert len(whole) > 4
    few = front(pairs, MACS.prices, 4)
    assert len(few) == 4
    assert (few[0], few[-1]) == (whole[0], whole[-1])
    assert set(few) <= set(whole)
    assert max(known, key=known.__getitem__) == whole[-1]


def test_the_level_of_a_front_is_the_mean_over_budgets_of_the_best_that_meets_one() -> None:
    sampler, rng, limit = FeasibleSampler([MACS], [5e6]), np.random.default_rng(1), 5e6
    archs = [Arch(SPACE.name, tuple(row)) for row in sampler.sample(60, rng).tolist()]
    pairs = [(arch, float(rng.random())) for arch in archs]
    costs = MACS.prices.total(np.array([arch.genes for arch in archs]))
    budgets = np.linspace(MACS.prices.total_of(MACS.prices.cheapest()), limit, 20001)
    best = [max((s for (_, s), cost in zip(pairs, costs, strict=True) if cost <= b), default=0.0) for b in budgets]
    assert front_level(pairs, MACS.prices, limit) == pytest.approx(np.mean(best), abs=1e-3)
    dearest = MACS.prices.total_of(MACS.prices.dearest())
    assert front_level(pairs, MACS.prices, 1e12) == front_level(pairs, MACS.prices, dearest)
    assert front_level(pairs[:1], MACS.prices, limit) < front_level(pairs, MACS.prices, limit)
    free = Prices.of(1.0, [[0.0] * len(choices) for choices in SPACE.slots])
    assert front_level(pairs, free, limit) == max(score for _, score in pairs)


def test_crowding() -> None:
    points = np.array([[0.0, 3.0], [1.0, 2.0], [2.0, 1.5], [4.0, 0.0]])
    assert crowding(points).tolist() == [np.inf, 2 / 4 + 1.5 / 3, 3 / 4 + 2 / 3, np.inf]
    assert np.isinf(crowding(np.zeros((3, 2)))).sum() == 2


def test_the_search_for_a_front_finds_a_better_one_than_that_for_the_best_net() -> None:
    """At equal evaluations, by hypervolume: pymoo's, under the same reference point."""
    settings = Evolution(population=20, generations=10, parents=10)
    better = 0
    for seed in range(5):
        sampler = FeasibleSampler([MACS], [5e6])
        volumes = []
        for how in (lambda book, count: best_spread(book, MACS.prices, count), None):
            rng = np.random.default_rng(seed)
            result = evolve(SPACE, sampler, scores, rng, settings=settings, select=how)
            volumes.append(hypervolume(list(result.evaluated)))
        better += volumes[0] > volumes[1]
    assert better >= 4


BUDGET = Budget("macs", 5e6, "5M")
RECIPE = Recipe.model_validate(
    {
        "supernet": {"steps": 2, "batch_size": 8, "optimizer": "adamw", "lr": 2e-3},
        "scoring": {"recalibrate_images": 8, "val_images": 6, "batch_size": 8},
        "evolution": {"population": 6, "generations": 1, "topk": 3},
        "finetune": {"steps": 1, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3},
    }
)


def test_the_nets_of_a_front_are_found_nets_of_the_run(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", train=12, test=2)
    request = SearchRequest(SPACE, f"folder:{data}", [[BUDGET]], {"macs": MACS}, RECIPE, tmp_path / "run", front=3)
    outcome = search(request, NullProgress())
    assert outcome.evaluated == 24
    assert 1 <= len(outcome.results) <= 3
    names = [f"macs-5M-front-{place}" for place in range(1, len(outcome.results) + 1)]
    assert [result["net"] for result in outcome.results] == names
    macs = [result["macs"] for result in outcome.results]
    found = [result["search_accuracy"] for result in outcome.results]
    assert macs == sorted(macs)
    assert found == sorted(found)
    assert macs[-1] <= 5e6
    run = RunFolder.open(tmp_path / "run")
    beside = [net for net in run.nets() if "-random-front-" in net.name]
    assert 1 <= len(beside) <= 3
    for result in outcome.results:
        within = [net for net in beside if net.result()["macs"] <= result["macs"]]
        assert (result["baseline"] is None) == (not within)
        if within:
            best = max(within, key=lambda net: net.result()["search_accuracy"])
            assert result["baseline"]["search_accuracy"] == best.result()["search_accuracy"]
            assert result["baseline"]["accuracy"] is not None
        levels = {result["front_accuracy"], result["baseline_front_accuracy"]}
        assert levels == {outcome.results[0]["front_accuracy"], outcome.results[0]["baseline_front_accuracy"]}
        assert all(0 < level < 1 for level in levels)
    assert {result["net"] for result in RunFolder.open(tmp_path / "run").results()} == set(names)
    assert search(request, NullProgress()).results == outcome.results
    alone = replace(request, baseline=False, out=tmp_path / "alone")
    for result in search(alone, NullProgress()).results:
        assert (result["baseline"], result["baseline_front_accuracy"], result["evaluated"]) == (None, None, 12)
        assert result["front_accuracy"] == outcome.results[0]["front_accuracy"]
    larger = tmp_path / "run" / "nets" / f"macs-5M-front-{len(names) + 1}"  # as an earlier search may have left it
    shutil.copytree(tmp_path / "run" / "nets" / names[-1], larger)
    search(replace(request, front=2), NullProgress())
    left = {result["net"] for result in RunFolder.open(tmp_path / "run").results()}
    assert left == set(names[: min(2, len(names))])


def test_a_front_without_its_library_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pymoo", None)
    request = SearchRequest(SPACE, "folder:none", [[BUDGET]], {"macs": MACS}, RECIPE, tmp_path / "run", front=3)
    with pytest.raises(RuntimeMissing, match="pymoo"):
        search(request, NullProgress())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "says"), [(["--method", "random", "--front", "3"], "for the method spos"), (["--front", "1"], "--front")]
)
def test_fronts_that_make_no_sense(hwnas: Hwnas, args: list[str], says: str) -> None:
    env = {"HWNAS_FASHION_MNIST": str(write_fashion_mnist(hwnas.folder / "fashion"))}
    done = hwnas("search", "--macs", "60%", *args, env=env)
    assert done.code == 2
    assert says in done.error
