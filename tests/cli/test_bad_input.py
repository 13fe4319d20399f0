"""What a search refuses: one line that says why and what to do, and nothing is lost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from command import Hwnas
from tiny_fashion import TINY_RECIPE, write_fashion_mnist
from tiny_images import write_dataset

from hwnas.costs import macs_cost, params_cost
from hwnas.spaces import get_space

SHORT = ("--recipe", "tiny.toml", "--population", "2", "--generations", "1")


@pytest.fixture
def fashion(hwnas: Hwnas) -> dict[str, str]:
    (hwnas.folder / "tiny.toml").write_text(TINY_RECIPE)
    return {"HWNAS_FASHION_MNIST": str(write_fashion_mnist(hwnas.folder / "fashion"))}


def test_contradicting_budgets_name_what_would_do(hwnas: Hwnas, fashion: dict[str, str]) -> None:
    """The choices with the fewest MACs have not the fewest parameters."""
    space = get_space("spos-shufflenet-tiny")
    least = [cost.prices.total_of(cost.prices.cheapest()) for cost in (macs_cost(space), params_cost(space))]
    macs, params = (str(int(value)) for value in least)
    args = ("search", "--space", "spos-shufflenet-tiny", *SHORT, "--out", "run")
    done = hwnas(*args, "--macs", macs, "--params", params, env=fashion)
    assert done.code == 3
    assert "the nearest that can be met is " in done.error
    assert not (hwnas.folder / "run").exists()


def test_a_table_that_lacks_operators_says_which_command_measures_them(
    hwnas: Hwnas, fashion: dict[str, str], measured: Any
) -> None:
    done = hwnas("search", "--space", "fbnet-tiny", "--latency", "60%", "--lut", measured.lut, env=fashion)
    assert done.code == 1
    assert "lacks" in done.error
    assert "hwnas profile" in done.error
    assert "--space fbnet-tiny" in done.error


def test_a_run_of_another_space_or_other_classes_is_left_alone(hwnas: Hwnas, fashion: dict[str, str]) -> None:
    args = ("search", "--macs", "95%", *SHORT, "--method", "random", "--out", "run")
    assert hwnas(*args, env=fashion).code == 0
    before = {path: path.read_bytes() for path in (hwnas.folder / "run").rglob("*") if path.is_file()}
    done = hwnas(*args, "--space", "spos-shufflenet-tiny", env=fashion)
    assert done.code == 1
    assert "space (proxyless-tiny there, spos-shufflenet-tiny now)" in done.error
    write_dataset(hwnas.folder / "images", train=12)
    done = hwnas(*args, "--data", "folder:images")
    assert done.code == 1
    assert "num_classes (10 there, 3 now)" in done.error
    assert {path: path.read_bytes() for path in before} == before


def test_a_class_with_too_few_images_is_named(hwnas: Hwnas) -> None:
    root = write_dataset(hwnas.folder / "images", train=12)
    for image in sorted((root / "train" / "green").iterdir())[1:]:
        image.unlink()
    done = hwnas("search", "--macs", "60%", "--data", f"folder:{root}", "--out", "run")
    assert done.code == 1
    assert "class 'green' has 1 image(s): it needs 2 or more" in done.error


def test_a_loss_that_is_no_number_names_its_step(hwnas: Hwnas, fashion: dict[str, str]) -> None:
    wild = hwnas.folder / "wild.toml"
    wild.write_text(TINY_RECIPE.replace('optimizer = "adamw"\nlr = 2e-3', 'optimizer = "sgd"\nlr = 1e30', 1))
    done = hwnas("search", "--macs", "60%", "--recipe", wild, "--out", "run", env=fashion)
    assert done.code == 1
    assert re.search(r"at step [23] \(supernet steps, lr 1e\+30\)", done.error)
    assert "lower its learning rates in the recipe" in done.error
    assert not list(Path(hwnas.folder / "run" / "checkpoints").glob("*"))
