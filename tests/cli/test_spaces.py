"""Every space from its table to a verified net. `proxyless-tiny` has the tests of the commands themselves."""

from __future__ import annotations

import json
from typing import Any

import onnx
import pytest
from command import Hwnas
from tiny_fashion import TINY_RECIPE, write_fashion_mnist

from hwnas.latency.plan import CALIBRATION_NETWORKS

FOUND = {
    "fbnet-tiny": ("70%", {"Conv", "Relu", "Gemm"}),
    "spos-shufflenet-tiny": ("70%", {"Split", "Concat", "Transpose", "Reshape"}),
}
"""A budget, generous since so quick a table is unsure, and what the exported file has whatever was found."""


@pytest.mark.slow
@pytest.mark.parametrize("space", FOUND)
def test_a_space_is_profiled_searched_and_verified(hwnas: Hwnas, measured: Any, space: str) -> None:
    budget, kinds = FOUND[space]
    profiled = hwnas("profile", "--device", measured.profile, "--space", space, "--lut", "x.lut", "--json").document
    assert (profiled["failed"], profiled["unknown"], profiled["unmeasured_networks"]) == (0, [], [])
    assert profiled["calibration"]["networks"] == CALIBRATION_NETWORKS
    (hwnas.folder / "tiny.toml").write_text(TINY_RECIPE)
    env = {"HWNAS_FASHION_MNIST": str(write_fashion_mnist(hwnas.folder / "fashion"))}
    args = ("--space", space, "--latency", budget, "--recipe", "tiny.toml", "--lut", "x.lut", "--out", "run")
    done = hwnas("search", *args, "--json", env=env)
    assert done.code == 0, done.stderr
    (result,) = done.document["results"]
    assert result["arch"]["space"] == space
    assert result["high_ms"] <= result["budgets"][0]["limit"]
    folder = hwnas.folder / "run" / "nets" / result["net"]
    assert json.loads((folder / "arch.json").read_text()) == result["arch"]
    assert {node.op_type for node in onnx.load(folder / "model.onnx").graph.node} >= kinds
    verified = hwnas("verify", "run", "--json", env=env)
    assert verified.code in (0, 3), verified.stderr  # so short a measurement may miss its budget
    (net,) = verified.document["results"]
    assert net["measured_ms"] > 0
    assert net["output_max_abs_diff"] < 1e-3
