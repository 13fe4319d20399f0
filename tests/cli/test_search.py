"""`search` and what is done with its run, with a recipe that goes through every step and learns nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Finished, Hwnas
from tiny_fashion import TINY_RECIPE, write_fashion_mnist
from tiny_images import write_dataset

SEARCH = {"run", "method", "space", "seconds", "evaluated", "results"}
SEARCH_RESULT = {
    "net", "arch", "predicted_ms", "high_ms", "macs", "params", "bitops", "accuracy", "budgets", "budget_used",
    "baseline",
}  # fmt: skip
VERIFY = {"device", "results"}
VERIFY_RESULT = {
    "net", "predicted_ms", "measured_ms", "measured_low_ms", "measured_high_ms", "budget_ms", "within_budget",
    "relative_error", "output_max_abs_diff",
}  # fmt: skip
"""Keys that scripts rely on; more may be there."""

NET_FILES = {"arch.json", "weights.safetensors", "model.onnx"}


@dataclass(frozen=True)
class Run:
    """A finished search for two budgets and what it printed."""

    folder: Path
    args: tuple[str, ...]
    env: dict[str, str]
    done: Finished

    @property
    def path(self) -> Path:
        return self.folder / "run"


@pytest.fixture(scope="session")
def run(measured: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("search")
    (folder / "tiny.toml").write_text(TINY_RECIPE)
    env = {"HWNAS_FASHION_MNIST": str(write_fashion_mnist(folder / "fashion"))}
    args = ("search", "--latency", "60%,90%", "--recipe", "tiny.toml", "--lut", str(measured.lut), "--out", "run")
    done = Hwnas(folder)(*args, "--json", env=env)
    assert done.code == 0, done.stderr
    return Run(folder, args, env, done)


def test_search_answers_with_nets_within_their_budgets(run: Run) -> None:
    document = run.done.document
    assert set(document) >= SEARCH
    assert (document["method"], document["space"]) == ("spos", "proxyless-tiny")
    assert [result["net"] for result in document["results"]] == ["latency-60pct", "latency-90pct"]
    for result in document["results"]:
        assert set(result) >= SEARCH_RESULT
        assert result["predicted_ms"] <= result["high_ms"] <= result["budgets"][0]["limit"]
        assert 0 < result["budget_used"] <= 1
        assert 0 <= result["accuracy"] <= 1
        assert result["baseline"]["high_ms"] <= result["budgets"][0]["limit"]
        assert {path.name for path in (run.path / "nets" / result["net"]).iterdir()} >= NET_FILES
        assert json.loads((run.path / "nets" / result["net"] / "arch.json").read_text()) == result["arch"]
    assert {"run.toml", "metrics.csv"} <= {path.name for path in run.path.iterdir()}


def test_defaults_and_the_expected_duration_are_on_stderr(run: Run) -> None:
    assert "using --data fashion-mnist (default)" in run.done.stderr
    assert "using --space proxyless-tiny (for images of 28 pixels)" in run.done.stderr
    assert "expected duration" in run.done.stderr


def test_the_same_search_again_has_its_results_already(run: Run) -> None:
    began = time.perf_counter()
    again = Hwnas(run.folder)(*run.args, "--json", env=run.env)
    assert time.perf_counter() - began < 20
    assert again.document["results"] == run.done.document["results"]
    human = Hwnas(run.folder)(*run.args, env=run.env)
    assert "latency-60pct" in human.stdout
    assert "hwnas verify run" in human.stdout


def test_verify_of_the_run_uses_its_table_and_budgets(run: Run, measured: Any) -> None:
    done = Hwnas(run.folder)("verify", "run", "--json", env=run.env)
    assert set(done.document) >= VERIFY
    assert Path(done.document["lut"]) == measured.lut
    found = {result["net"]: result for result in run.done.document["results"]}
    for result in done.document["results"]:
        assert set(result) >= VERIFY_RESULT
        searched = found[result["net"]]
        assert result["predicted_ms"] == pytest.approx(searched["predicted_ms"])
        assert result["budget_ms"] == searched["budgets"][0]["limit"]
        assert result["within_budget"] == (result["measured_high_ms"] <= result["budget_ms"])
        assert result["output_max_rel_diff"] < 1e-3
        kept = json.loads((run.path / "nets" / result["net"] / "verify.json").read_text())
        assert kept["measured_ms"] == result["measured_ms"]
    held = all(result["within_budget"] for result in done.document["results"])
    assert done.code == (0 if held else 3)  # a busy machine and a quick table may miss; the exit code must say so


def test_verify_without_the_runs_table_measures_as_that_was_measured(run: Run, measured: Any) -> None:
    copy = run.folder / "copy"
    shutil.copytree(run.path, copy)
    text = (copy / "run.toml").read_text()
    assert str(measured.lut) in text
    assert "batch_size = 1\nthreads = 1\n" in text
    text = text.replace(str(measured.lut), "gone.lut").replace("batch_size = 1\nthreads", "batch_size = 2\nthreads")
    (copy / "run.toml").write_text(text)
    args = ("verify", "copy/nets/latency-60pct", "--latency", "10s", "--device", measured.profile)
    done = Hwnas(run.folder)(*args, "--json", env=run.env)
    assert (done.document["lut"], done.document["batch_size"], done.document["threads"]) == (None, 2, 1)
    assert "using --batch 2 (the run's)" in done.stderr
    assert Hwnas(run.folder)(*args, "--batch", "1", "--json", env=run.env).document["batch_size"] == 1


def test_verify_without_the_runs_table_uses_its_runtime(run: Run) -> None:
    pytest.importorskip("openvino")
    copy = run.folder / "other-runtime"
    shutil.copytree(run.path, copy)
    text = (copy / "run.toml").read_text()
    assert text.count('runtime = "onnxruntime"') == 1
    (copy / "run.toml").write_text(text.replace('runtime = "onnxruntime"', 'runtime = "openvino"').replace(".lut", ""))
    done = Hwnas(run.folder)("verify", "other-runtime/nets/latency-60pct", "--latency", "10s", "--json", env=run.env)
    assert done.document["runtime"] == "openvino", done.stderr
    assert "the run's" in done.stderr


def test_verify_of_one_net_and_of_another_budget(run: Run) -> None:
    hwnas = Hwnas(run.folder)
    net = "run/nets/latency-60pct"
    done = hwnas("verify", net, "--latency", "10s", env=run.env)
    assert done.code == 0, done.stderr
    for title in ("budget", "predicted", "measured", "by the clock now", "median", "accuracy", "MACs", "files"):
        assert title in done.stdout
    assert net in done.stdout
    assert hwnas("verify", net, "--latency", "0.1us", env=run.env).code == 3


def test_a_found_net_is_predicted_and_exported(run: Run, measured: Any) -> None:
    hwnas = Hwnas(run.folder)
    net = "run/nets/latency-60pct"
    result = run.done.document["results"][0]
    predicted = hwnas("predict", net, "--lut", measured.lut, "--json").document
    assert predicted["latency_ms"] == pytest.approx(result["predicted_ms"])
    assert (predicted["macs"], predicted["params"]) == (result["macs"], result["params"])
    exported = hwnas("export", net, "--out", "net.onnx", "--json").document
    assert exported["max_rel_diff"] < 1e-4
    several = hwnas("predict", "run", "--lut", measured.lut)
    assert several.code == 2
    assert "run/nets/latency-60pct" in several.error


def test_a_trained_net_is_verified_as_a_found_one(run: Run, measured: Any) -> None:
    hwnas = Hwnas(run.folder)
    shutil.copytree(run.path, run.folder / "trained")
    net = "trained/nets/latency-60pct"
    done = hwnas("train", net, "--json", env=run.env)
    assert set(done.document) >= {"run", "data", "from", "steps", "seconds", "results"}
    (result,) = done.document["results"]
    found = run.done.document["results"][0]
    assert (result["net"], result["steps"]) == ("latency-60pct", 4)
    assert result["accuracy_before"] == found["accuracy"]
    for said in ("using --from scratch (default)", "using --data fashion-mnist (the run's)", "using --recipe"):
        assert said in done.stderr
    verified = hwnas("verify", net, "--device", measured.profile, "--latency", "10s", "--json", env=run.env)
    (report,) = verified.document["results"]
    assert report["same_outputs"] is True
    assert report["accuracy"] == result["accuracy"]
    assert report["baseline_accuracy"] is None  # it was not trained alike
    again = hwnas("train", net, "--from", "scratch", env=run.env)
    assert "trained already" in again.stderr
    assert "hwnas verify trained" in again.stdout


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["nothing"], 1, "run.toml"),
        (["run", "--from", "memory"], 2, "scratch nor inherited"),
        (["run", "--recipe", "nothing"], 2, "quickstart"),
        (["run", "--recipe", "old.toml"], 2, "[train]"),
        (["run", "--data", "folder:images"], 1, "has 3 classes, the nets of run have 10"),
        (["run", "--train-device", "cuda"], 1, "--train-device"),
    ],
)
def test_trainings_that_cannot_be(run: Run, args: list[str], code: int, says: str) -> None:
    (run.folder / "old.toml").write_text(TINY_RECIPE.partition("[train]")[0])
    if not (run.folder / "images").exists():
        write_dataset(run.folder / "images", train=2)
    if "cuda" in args and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = Hwnas(run.folder)("train", *args, env=run.env)
    assert done.code == code
    assert says in done.error


def test_a_budget_that_nothing_meets_is_refused_at_once(run: Run, measured: Any) -> None:
    args = ("search", "--latency", "1us", "--lut", measured.lut, "--out", "impossible")
    done = Hwnas(run.folder)(*args, env=run.env)
    assert done.code == 3
    assert "cheapest" in done.error
    assert not (run.folder / "impossible").exists()


def test_a_budget_that_does_not_bind_is_said_to_be_so(run: Run) -> None:
    args = ["search", "--latency", "17ms", "--method", "random", *run.args[3:]]
    args[args.index("--out") + 1] = "random"
    done = Hwnas(run.folder)(*args, "--json", env=run.env)
    assert done.document["method"] == "random"
    assert "does not bind" in done.stderr


def test_another_search_does_not_take_a_run_over(run: Run) -> None:
    before = (run.path / "run.toml").read_bytes()
    done = Hwnas(run.folder)(*run.args, "--seed", "1", env=run.env)
    assert done.code == 1
    assert "--out" in done.error
    assert (run.path / "run.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ([], 2, "--latency 17ms"),
        (["--latency", "17"], 2, "17ms"),
        (["--latency", "17parsecs"], 2, "17ms"),
        (["--latency", "1ms,2ms", "--macs", "1M,2M,3M"], 2, "equally long"),
        (["--latency", "17ms", "--method", "fig"], 2, "figs"),
        (["--latency", "17ms", "--method", "spso"], 2, "did you mean 'spos'?"),
        (["--latency", "17ms", "--space", "proxyles-tiny"], 2, "did you mean 'proxyless-tiny'"),
        (["--latency", "17ms", "--space", "proxyless"], 2, "pixels"),
        (["--latency", "17ms", "--data", "fashion"], 2, "fashion-mnist"),
        (["--latency", "17ms", "--recipe", "nothing"], 2, "quickstart"),
        (["--latency", "17ms"], 1, "hwnas profile --device cpu --space proxyless-tiny"),
        (["--latency", "17ms", "--lut", "absent.lut"], 1, "absent.lut"),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(hwnas: Hwnas, args: list[str], code: int, says: str) -> None:
    fashion = write_fashion_mnist(hwnas.folder / "fashion")
    done = hwnas("search", *args, env={"HWNAS_FASHION_MNIST": str(fashion)})
    assert done.code == code
    assert says in done.error
    assert {path.name for path in hwnas.folder.iterdir()} == {"fashion"}


@pytest.mark.parametrize("kind", ["absent", "no classes", "one class"])
def test_bad_data_folders(hwnas: Hwnas, kind: str) -> None:
    root = hwnas.folder / "images"
    if kind != "absent":
        (root / "train").mkdir(parents=True)
    if kind == "one class":
        (root / "train" / "cats").mkdir()
    done = hwnas("search", "--macs", "3M", "--data", f"folder:{root}")
    assert done.code == 1
    assert "train" in done.error


def test_unreadable_images_are_named_and_refused_beyond_one_percent(hwnas: Hwnas) -> None:
    root = write_dataset(hwnas.folder / "images", train=12)
    (hwnas.folder / "tiny.toml").write_text(TINY_RECIPE)
    broken = root / "train" / "red" / "000.png"
    broken.write_bytes(b"not a picture")
    done = hwnas("search", "--macs", "60%", "--data", f"folder:{root}", "--recipe", "tiny.toml", "--out", "run")
    assert done.code == 1
    assert "000.png" in done.stderr


def test_a_folder_that_is_not_a_run(hwnas: Hwnas) -> None:
    fashion = {"HWNAS_FASHION_MNIST": str(write_fashion_mnist(hwnas.folder / "fashion"))}
    (hwnas.folder / "notes").mkdir()
    (hwnas.folder / "notes" / "diary.txt").write_text("dear diary")
    done = hwnas("search", "--macs", "60%", "--out", "notes", env=fashion)
    assert done.code == 1
    assert "--out" in done.error
    assert (hwnas.folder / "notes" / "diary.txt").read_text() == "dear diary"


def test_an_interrupted_search_says_how_to_go_on(run: Run, measured: Any) -> None:
    hwnas = Hwnas(run.folder)
    args = ("search", "--latency", "70%", "--lut", str(measured.lut), "--out", "long")
    command, env = hwnas.argv(*args), hwnas.environment(run.env)
    with subprocess.Popen(command, cwd=run.folder, env=env, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        seen = []
        for line in child.stderr:
            seen.append(line)
            if line.startswith("Supernet"):
                break
        os.kill(child.pid, signal.SIGTERM)
        rest = child.stderr.read()
        assert child.wait(timeout=60) == 130, "".join(seen) + rest
    last = rest.splitlines()[-1]
    assert last.startswith("hwnas: error: interrupted")
    assert "hwnas search --latency 70%" in last
    assert "long" in last
