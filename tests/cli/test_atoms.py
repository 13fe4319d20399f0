"""Spaces of atoms through the installed command."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Hwnas
from tiny_fashion import TINY_RECIPE, write_fashion_mnist


def test_predict_says_how_large_a_space_of_atoms_is(hwnas: Hwnas) -> None:
    document = hwnas("predict", "space:atomnas-c", "--json").document
    assert document["macs"] == 1_521_035_776 - 62_720
    assert document["log10_architectures"] == pytest.approx(162.54, abs=0.01)
    assert (document["atoms"][0], document["atoms"][-1], len(document["atoms"])) == (288, 3456, 21)
    human = hwnas("predict", "space:atomnas-c").stdout
    assert "10^162.5" in human
    assert "1,520,973,056" in human


def test_a_search_by_macs_is_trained_within_them_and_exported(hwnas: Hwnas) -> None:
    env = {"HWNAS_FASHION_MNIST": str(write_fashion_mnist(hwnas.folder / "fashion"))}
    (hwnas.folder / "tiny.toml").write_text(TINY_RECIPE)
    args = ("search", "--method", "atomnas", "--macs", "50%", "--recipe", "tiny.toml", "--out", "run")
    done = hwnas(*args, "--json", env=env)
    assert done.code == 0, done.stderr
    (result,) = done.document["results"]
    assert "using --space atomnas-tiny (for images of 28 pixels)" in done.stderr
    assert result["macs"] <= result["budgets"][0]["limit"]
    assert result["reduction"]["controller"] + result["reduction"]["projection"] == pytest.approx(1)
    assert all(count % 8 == 0 for row in result["arch"]["widths"] for count in row)  # as devices compute them
    net = Path("run") / "nets" / result["net"]
    assert {path.name for path in (hwnas.folder / net).iterdir()} >= {"arch.json", "weights.safetensors", "model.onnx"}
    assert hwnas("predict", net, "--json").document["macs"] == result["macs"]
    assert "macs-50pct" in hwnas(*args, env=env).stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--method", "atomnas", "--space", "proxyless-tiny", "--macs", "50%"), "has no atoms: this method searches"),
        (("--space", "atomnas-tiny", "--macs", "50%"), "it is for --method atomnas"),
        (("--method", "width"), "give a budget"),
        (("--method", "atomnas", "--latency", "50%", "--space", "atomnas-tiny"), "--space atomnas-tiny"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(hwnas: Hwnas, args: tuple[str, ...], message: str) -> None:
    env = {"HWNAS_FASHION_MNIST": str(write_fashion_mnist(hwnas.folder / "fashion"))}
    done = hwnas("search", *args, env=env)
    assert done.code in (1, 2)
    assert message in done.error
