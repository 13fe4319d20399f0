"""Recipes: those that ship, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwnas.errors import HwnasError, UsageError
from hwnas.train.recipe import load_recipe, recipe_names


def test_all_that_ship_load() -> None:
    assert recipe_names() == ["atomnas", "default", "figs", "figs-paper", "paper", "quickstart"]
    for name in recipe_names():
        load_recipe(name)


def test_the_papers_numbers() -> None:
    paper = load_recipe("paper")
    supernet = paper.supernet
    assert (supernet.optimizer, supernet.momentum, supernet.lr, supernet.schedule) == ("sgd", 0.9, 0.5, "linear")
    assert (supernet.batch_size, supernet.steps, supernet.weight_decay) == (1024, 150_000, 4e-5)
    assert supernet.label_smoothing == 0.1
    assert (paper.scoring.recalibrate_images, paper.scoring.val_images) == (20_000, 50_000)
    evolution = paper.evolution
    assert (evolution.population, evolution.generations, evolution.topk, evolution.mutation) == (50, 20, 10, 0.1)


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = (Path(__file__).parents[2] / "hwnas/train/recipes/quickstart.toml").read_text()
    path.write_text(text)
    assert load_recipe(path) == load_recipe("quickstart")
    path.write_text(text.replace("batch_size = 32", "batchsize = 64", 1))
    with pytest.raises(HwnasError, match=r"mine.toml: supernet\.batch"):
        load_recipe(path)
    path.write_text(text.replace("batch_size = 32", "batch_size = 0", 1))
    with pytest.raises(HwnasError, match=r"supernet\.batch_size: .* greater than or equal to 2"):
        load_recipe(path)
    path.write_text("[supernet")
    with pytest.raises(HwnasError, match="not TOML"):
        load_recipe(path)
    with pytest.raises(UsageError, match="default, figs, figs-paper, paper, quickstart"):
        load_recipe("fast")


def test_the_papers_retraining() -> None:
    train = load_recipe("paper").train
    assert train is not None
    assert (train.optimizer, train.lr, train.schedule) == ("sgd", 0.5, "linear")
    assert (train.batch_size, train.steps, train.weight_decay) == (1024, 300_000, 4e-5)
    assert (train.label_smoothing, train.jitter, train.crop_scale) == (0.1, 0.4, 0.08)


def test_what_weights_depend_on_has_newer_keys_only_where_they_matter() -> None:
    plain, jittered = load_recipe("default").supernet, load_recipe("paper").supernet
    assert "jitter" not in plain.identity()
    assert jittered.identity()["jitter"] == 0.4
    assert plain.identity()["lr"] == plain.lr
