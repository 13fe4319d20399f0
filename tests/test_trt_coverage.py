"""The coverage of TensorRT: all is asked for, what is not built is told, and the script runs as users start it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from command import ROOT
from quick import tiny_network

from hwnas.measure.runtimes import INSTALL
from hwnas.network import Network
from hwnas.ops import KINDS
from hwnas.spaces import ATOM_SPACES, GATE_SPACES, SPACES, get_space
from hwnas.zoo import ZOO, zoo_network


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trt_coverage", ROOT / "benchmarks/trt_coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["trt_coverage"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tensorrt() -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip(f"tensorrt_rtx is not installed here: {INSTALL['tensorrt_rtx']}")


def test_every_kind_choice_and_net_is_asked_for(coverage: ModuleType) -> None:
    operators = list(coverage.operator_targets())
    assert list(dict.fromkeys(map(coverage._row, operators))) == [f"op {kind}" for kind in KINDS]
    assert {one.model.kind for one in operators if isinstance(one, coverage.Target)} == set(coverage.OPERATORS)
    assert set(coverage.space_names()) >= set(SPACES)
    for name in SPACES:
        space = get_space(name)
        taken = [set(genes) for genes in zip(*(arch.genes for arch in coverage.archs_of(space)), strict=True)]
        assert taken == [set(range(len(choices))) for choices in space.slots]
    nets = list(coverage.zoo_targets())
    assert [one.row for one in nets] == [f"zoo {name}" for name in ZOO]
    built = [one for one in nets if isinstance(one, coverage.Target)]
    assert sum("int8" in one.precisions for one in built) == 1
    spaces = list(coverage.space_targets())
    assert list(dict.fromkeys(one.row for one in spaces)) == [
        f"space {name}" for name in (*SPACES, *ATOM_SPACES, *GATE_SPACES)
    ]
    skipped = {one.row for one in (*nets, *spaces) if isinstance(one, coverage.Skipped)}
    few_bits = {f"zoo {name}" for name in ZOO if zoo_network(name).quantised}
    assert skipped == few_bits | {f"space {name}" for name in SPACES if name.startswith("resnet")}


def test_a_kind_that_was_forgotten_is_not_built(coverage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "OPERATORS", {"add": coverage.OPERATORS["add"]})
    told = [one for one in coverage.operator_targets() if isinstance(one, coverage.Outcome)]
    assert [one.target.row for one in told] == [f"op {kind}" for kind in KINDS
                                               if kind != "add" and kind not in coverage.NOT_OF_TENSORRT]  # fmt: skip
    assert all(one.why_not for one in told)


def test_what_is_not_built_is_named_with_its_reason(
    coverage: ModuleType, tensorrt: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = coverage.Target("zoo good", "good", tiny_network())
    odd = coverage.Target("zoo odd", "odd", Network((3, 8, 8), (), (0, 0), unknown=("FancyOp",)))
    monkeypatch.setattr(coverage, "CAPABILITIES", ("SM89", "SM1"))
    outcomes = [*coverage.build(good, ("fp16",), 1), *coverage.build(odd, ("fp32",), 1)]
    assert [bool(one.why_not) for one in outcomes] == [False, True, True, True]
    assert coverage.report(outcomes, [coverage.Skipped("op x", "not needed")], ["zoo good", "zoo odd"], 1.0) == 3
    said = capsys.readouterr().out
    assert "not tried: op x: not needed" in said
    assert "NOT built: zoo good: good (SM1 fp16): tensorrt_rtx cannot build for SM1" in said
    assert "NOT built: zoo odd: odd (SM89 fp32, SM1 fp32): " in said
    assert "FancyOp" in said
    assert said.endswith("4 of model, precision and GPU in 1 s: 3 NOT built\n")


def test_what_one_gpu_refuses_is_still_told_of_the_other(
    coverage: ModuleType, tensorrt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One engine for both is refused as a whole; TensorRT itself has no float32 products for Turing."""
    monkeypatch.setattr(coverage, "CAPABILITIES", ("SM75", "SM89"))
    (linear, *_) = coverage.OPERATORS["linear"]
    outcomes = coverage.build(coverage.Target("op linear", linear.key, linear), ("fp32", "fp16"), 2)
    assert [(one.precision, one.capability) for one in outcomes if one.why_not] == [("fp32", "SM75")]
    assert "SM75" in outcomes[0].why_not


class Exits:
    """Ends the process that it is sent to."""

    nodes = ()

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (3,)


def test_a_model_that_takes_the_builder_down_is_told_from_those_beside_it(
    tensorrt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    coverage = importlib.import_module("benchmarks.trt_coverage")  # by a name that the other processes know it by
    good: Any = coverage.Target("zoo good", "good", tiny_network(), ("fp32",))
    bad = coverage.Target("zoo bad", "bad", Exits(), ("fp32", "fp16"))
    found = {(one.target.row, one.precision, one.why_not) for one in coverage.build_all([bad, good], 1, 1)}
    down = "the builder took its process down"
    assert found == {("zoo bad", "fp32", down), ("zoo bad", "fp16", down), ("zoo good", "fp32", "")}


def test_it_runs_as_users_start_it(tensorrt: None) -> None:
    command = [sys.executable, "-m", "benchmarks.trt_coverage", "--batch", "2", "--jobs", "1", "--only", "op concat"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[2].split() == ["op", "concat", *["built", "built", "-", "built", "built", "-"]]
    assert "4 of model, precision and GPU in " in done.stdout
    assert done.stdout.endswith("all built\n")
    wrong = subprocess.run([*command, "--only", "op nonsense"], capture_output=True, text=True, cwd=ROOT)
    assert (wrong.returncode, "no row 'op nonsense': op conv" in wrong.stderr) == (2, True)
