"""Spaces of gates through the installed command."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Hwnas
from tiny_fashion import TINY_RECIPE, write_fashion_mnist

from hwnas.export import preparation_of

OWN_NET = """
from torch import nn


def make(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(24, num_classes),
    )
"""


def test_predict_says_how_large_a_space_of_gates_is(hwnas: Hwnas) -> None:
    document = hwnas("predict", "space:figs-resnet50", "--json").document
    assert (document["macs"], document["params"]) == (4_089_184_256, 25_557_032)
    assert sum(document["atoms"]) == 11_456
    assert "channels of groups" in hwnas("predict", "space:torchvision:resnet18").stdout


def test_a_search_by_params_is_trained_within_them_exported_and_verified(hwnas: Hwnas) -> None:
    env = {"HWNAS_FASHION_MNIST": str(write_fashion_mnist(hwnas.folder / "fashion"))}
    (hwnas.folder / "tiny.toml").write_text(TINY_RECIPE)
    args = ("search", "--method", "figs", "--params", "50%", "--recipe", "tiny.toml", "--out", "run")
    done = hwnas(*args, "--json", env=env)
    assert done.code == 0, done.stderr
    (result,) = done.document["results"]
    assert "using --space figs-fbnet-tiny (for images of 28 pixels)" in done.stderr
    assert result["params"] <= result["budgets"][0]["limit"]
    assert result["reduction"]["controller"] + result["reduction"]["projection"] == pytest.approx(1)
    assert all(count % 8 == 0 for row in result["arch"]["widths"] for count in row)  # as devices compute them
    net = Path("run") / "nets" / result["net"]
    assert {path.name for path in (hwnas.folder / net).iterdir()} >= {"arch.json", "weights.safetensors", "model.onnx"}
    assert hwnas("predict", net, "--json").document["params"] == result["params"]
    assert hwnas("export", net, "--out", "net.onnx").code == 0
    assert preparation_of(hwnas.folder / "net.onnx")["hwnas.mean"].startswith("[")
    record = hwnas.folder / net / "result.json"
    record.write_text(record.read_text().replace(f'"limit": {result["budgets"][0]["limit"]}', '"limit": 9.0'))
    over = hwnas("verify", "run", env=env)
    assert over.code == 3
    assert f"{result['params']:,} of 9" in over.stdout
    assert f"params {result['params']:,}, over its budget of 9" in over.error


def test_a_net_of_ones_own_is_searched_found_again_and_exported(hwnas: Hwnas) -> None:
    env = {
        "HWNAS_FASHION_MNIST": str(write_fashion_mnist(hwnas.folder / "fashion")),
        "XDG_STATE_HOME": str(hwnas.folder / "state"),
    }
    (hwnas.folder / "tiny.toml").write_text(TINY_RECIPE)
    source = hwnas.folder / "nets.py"
    source.write_text(OWN_NET)
    args = ("search", "--method", "figs", "--space", "nets.py:make", "--params", "60%", "--recipe", "tiny.toml")
    done = hwnas(*args, "--json", env=env)
    assert done.code == 0, done.stderr
    (result,) = done.document["results"]
    run = Path(done.document["run"])
    assert run.parts[:1] == ("runs",)
    assert run.name.startswith("figs-nets-make-")
    assert (hwnas.folder / run / "source" / "nets.py").read_text() == OWN_NET
    assert done.document["space"].startswith("nets.py:make@")
    assert hwnas("predict", run, "--json", env=env).document["params"] == result["params"]
    assert hwnas("export", run, "--out", "net.onnx", env=env).code == 0
    verified = hwnas("verify", run, "--json", env=env)
    assert verified.code == 0, verified.stderr
    source.write_text(OWN_NET + "\n# changed\n")
    assert "nets.py, which has changed since: restore it" in hwnas("export", run, "--out", "x.onnx", env=env).error
    # the copy of the run does as well, once it was named
    assert hwnas("predict", f"space:{run}/source/nets.py:make", env=env).code == 0
    assert hwnas("export", run, "--out", "x.onnx", env=env).code == 0
    assert "did you mean space:nets.py:make?" in hwnas("predict", "nets.py:make", env=env).error
    assert "write FILE.py:NAME" in hwnas("predict", "space:nets.py", env=env).error
    assert hwnas("predict", "space:nets.py:made", env=env).error.endswith("'made': did you mean 'make'?")
    refused = hwnas("search", "--space", "nets.py:make", "--params", "60%", env=env)
    assert "is a space of gates: it is for --method figs" in refused.error


def test_recipes_that_do_not_fit_are_refused_in_a_line(hwnas: Hwnas) -> None:
    env = {"HWNAS_FASHION_MNIST": str(write_fashion_mnist(hwnas.folder / "fashion"))}
    args = ("search", "--method", "figs", "--params", "50%", "--out", "run", "--recipe")
    assert "has no [gates]: take figs or figs-paper" in hwnas(*args, "quickstart", env=env).error
    for old, new, message in (
        ("[gates]", "[gates]\npenaltyy = 1", "unknown key gates.penaltyy; did you mean penalty?"),
        ("[gates]", "[gate]", "unknown key gate; did you mean gates?"),
        ("steps = 4", "steps = 0", "has no steps in [supernet]"),
    ):
        (hwnas.folder / "own.toml").write_text(TINY_RECIPE.replace(old, new, 1))
        assert message in hwnas(*args, "own.toml", env=env).error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--method", "figs", "--space", "proxyless-tiny", "--macs", "50%"), "has no gates: this method searches"),
        (("--space", "figs-fbnet-tiny", "--macs", "50%"), "it is for --method figs, morphnet, width and random"),
        (("--method", "figs", "--space", "torchvision:vit_b_16", "--macs", "50%"), "VisionTransformer"),
        (("--bytes", "50%"), "--bytes is for figs, morphnet, and width and random on spaces of gates"),
        (("--method", "figs", "--bitops", "50%"), "--bitops is for quantised spaces"),
        (("--method", "figs", "--latency", "50%", "--space", "figs-fbnet-tiny"), "--space figs-fbnet-tiny"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(hwnas: Hwnas, args: tuple[str, ...], message: str) -> None:
    env = {"HWNAS_FASHION_MNIST": str(write_fashion_mnist(hwnas.folder / "fashion"))}
    done = hwnas("search", *args, env=env)
    assert done.code in (1, 2)
    assert message in done.error
