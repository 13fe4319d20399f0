"""Quantised spaces and nets on the command line: BitOps where they have them, one line where they have no latency."""

from __future__ import annotations

import json

import pytest
from command import Hwnas
from tiny_fashion import TINY_RECIPE, write_fashion_mnist

TINY = "resnet18-quant-tiny"


def test_a_quantised_space_is_searched_under_bitops(hwnas: Hwnas) -> None:
    (hwnas.folder / "tiny.toml").write_text(TINY_RECIPE)
    env = {"HWNAS_FASHION_MNIST": str(write_fashion_mnist(hwnas.folder / "fashion"))}
    args = ("--space", TINY, "--data", "fashion-mnist", "--bitops", "50%", "--recipe", "tiny.toml", "--out", "run")
    done = hwnas("search", *args, "--json", env=env)
    assert done.code == 0, done.stderr
    (result,) = done.document["results"]
    (budget,) = result["budgets"]
    assert (budget["cost"], budget["text"]) == ("bitops", "50%")
    assert 0.9 * budget["limit"] <= result["bitops"] <= budget["limit"]
    assert result["predicted_ms"] is None
    folder = hwnas.folder / "run" / "nets" / result["net"]
    assert json.loads((folder / "arch.json").read_text()) == result["arch"]
    predicted = hwnas("predict", str(folder), "--json").document
    assert (predicted["bitops"], predicted["macs"], predicted["latency_ms"]) == (result["bitops"], result["macs"], None)
    verified = hwnas("verify", "run", env=env)
    assert verified.code == 2
    assert "cannot be verified: no runtime here runs convolutions of 1 to 4 bits" in verified.error


def test_predict_prints_bitops(hwnas: Hwnas) -> None:
    done = hwnas("predict", "zoo:resnet18-2w2a")
    assert done.code == 0
    assert "6,782,189,568 (6.32G, G is 2^30)" in done.stdout
    assert "no latency: no runtime here runs convolutions of 1 to 4 bits" in done.stderr
    assert hwnas("predict", f"space:{TINY}", "--json").document["bitops"] is None


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("search", "--space", TINY, "--latency", "1ms"), f"{TINY} has no latency: no runtime here"),
        (("search", "--space", "proxyless-tiny", "--bitops", "1G"), "proxyless-tiny has no BitOps"),
        (("profile", "--space", TINY), f"{TINY}: no latency to measure"),
        (("profile", "--model", "zoo:resnet18-2w2a"), "zoo:resnet18-2w2a: no latency to measure"),
        (("predict", "zoo:resnet18-2w2a", "--measure"), "zoo:resnet18-2w2a has no latency"),
        (("verify", "zoo:resnet18-2w2a"), "zoo:resnet18-2w2a cannot be verified"),
    ],
)
def test_what_has_no_latency_says_so_in_one_line(hwnas: Hwnas, args: tuple[str, ...], says: str) -> None:
    env = {"HWNAS_FASHION_MNIST": str(write_fashion_mnist(hwnas.folder / "fashion"))}
    done = hwnas(*args, env=env)
    assert done.code == 2, done.stderr
    assert says in done.error
    assert done.stdout == ""
