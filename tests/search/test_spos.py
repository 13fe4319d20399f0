"""The whole search on coloured squares: results, promises kept, kills survived."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_images import write_dataset

from hwnas.budget import Budget
from hwnas.costs import Cost, Prices, macs_cost, params_cost
from hwnas.errors import ClaimError, HwnasError
from hwnas.export import parity
from hwnas.progress import NullProgress
from hwnas.runs import RunFolder
from hwnas.search.spos import SearchRequest, search
from hwnas.spaces import arch_from_json, get_space
from hwnas.train.recipe import Recipe

SPACE = get_space("proxyless-tiny", num_classes=3)
RECIPE = Recipe.model_validate(
    {
        "supernet": {"steps": 12, "batch_size": 8, "optimizer": "adamw", "lr": 2e-3},
        "scoring": {"recalibrate_images": 16, "val_images": 6, "batch_size": 8},
        "evolution": {"population": 4, "generations": 2, "topk": 2},
        "finetune": {"steps": 3, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3},
    }
)


def latency() -> Cost:
    """A made-up device: a nanosecond for 10 MACs, give or take 5%."""
    macs = macs_cost(SPACE).prices
    prices = Prices(macs.fixed * 1e-7, macs.choices * 1e-7)
    return Cost("latency", prices, Prices(prices.fixed * 1.05, prices.choices * 1.05))


def budget_ms(share: float) -> Budget:
    prices = latency().upper
    low, high = (prices.total_of(genes) for genes in (prices.cheapest(), prices.dearest()))
    return Budget("latency", low + share * (high - low), f"{share:.0%}")


def request(data: Path, out: Path, budgets: list[list[Budget]] | None = None) -> SearchRequest:
    costs = {"latency": latency(), "macs": macs_cost(SPACE), "params": params_cost(SPACE)}
    return SearchRequest(SPACE, f"folder:{data}", budgets or [[budget_ms(0.4)]], costs, RECIPE, out)


class Watcher(NullProgress):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("squares"), train=12, test=3)


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run under two budgets."""
    out = tmp_path_factory.mktemp("runs") / "done"
    search(request(data, out, [[budget_ms(0.4)], [budget_ms(0.7), Budget("macs", 4e6, "4M")]]), NullProgress())
    return out


def test_results_keep_their_budgets_and_have_the_promised_keys(done: Path) -> None:
    results = RunFolder.open(done).results()
    assert [result["net"] for result in results] == ["latency-40pct", "latency-70pct-macs-4M"]
    promised = {
        "net",
        "arch",
        "predicted_ms",
        "high_ms",
        "macs",
        "params",
        "bitops",
        "accuracy",
        "budgets",
        "budget_used",
        "feasible_fraction",
        "acceptance",
    }
    for result in results:
        for net in (result, result["baseline"]):
            assert promised <= net.keys()
            space, arch = arch_from_json(net["arch"])
            assert net["high_ms"] == pytest.approx(latency().upper.total_of(arch.genes))
            assert net["macs"] == space.network(arch).macs
            assert net["params"] == space.network(arch).params
            assert 0 < net["budget_used"] <= 1
            assert net["binding"] is True
            assert net["accuracy_split"] == "test"
            assert net["evaluations"] == 12
        assert result["evaluated"] == 24
        assert result["baseline"]["net"] == f"{result['net']}-random"


def test_files_of_a_net_are_one_net(done: Path) -> None:
    run = RunFolder.open(done)
    assert len(run.nets()) == 4
    for folder in run.nets():
        space, arch = arch_from_json(json.loads(folder.arch.read_text()))
        module = space.build(arch)
        module.load_state_dict(load_file(folder.weights))
        images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0)).numpy()
        assert parity(module.eval(), folder.onnx, images).max_abs_diff < 1e-4
    assert not list((done / "checkpoints").glob("finetune*"))


def test_the_same_command_returns_at_once(done: Path, data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (done / "nets").rglob("*")}
    watcher = Watcher()
    again = search(request(data, done, [[budget_ms(0.4)], [budget_ms(0.7), Budget("macs", 4e6, "4M")]]), watcher)
    assert again.seconds < 5
    assert again.to_json()["results"] == RunFolder.open(done).results()
    assert {path: path.stat().st_mtime_ns for path in (done / "nets").rglob("*")} == before
    assert watcher.notes == [f"{done} holds the results already"]


def test_another_budget_reuses_the_supernet(done: Path, data: Path) -> None:
    metrics = (done / "metrics.csv").read_bytes()
    watcher = Watcher()
    unlimited = Budget("latency", 1e9, "1000000s")
    outcome = search(replace(request(data, done, [[unlimited]]), baseline=False), watcher)
    assert (done / "metrics.csv").read_bytes() == metrics
    assert outcome.results[0]["binding"] is False
    assert any("does not bind" in note for note in watcher.notes)
    (expected,) = (note for note in watcher.notes if "expected duration" in note)
    assert re.search(r"fine-tuning 1 nets \S.*, testing them on \d+ images ", expected)


@pytest.mark.parametrize(("net", "file"), [("", "weights.safetensors"), ("-random", "model.onnx")])
def test_a_lost_file_of_a_net_is_made_again(done: Path, data: Path, tmp_path: Path, net: str, file: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(done, run)
    lost = run / "nets" / f"latency-40pct{net}" / file
    before, kept = lost.read_bytes(), (lost.parent / "weights.safetensors").read_bytes()
    lost.unlink()
    again = search(request(data, run), NullProgress())
    assert len(lost.read_bytes()) == len(before)
    assert (lost.parent / "weights.safetensors").read_bytes() == kept
    assert again.results == [RunFolder.open(done).net("latency-40pct").result()]


def test_every_budget_that_does_not_bind_is_announced(done: Path, data: Path) -> None:
    loose = Budget("macs", 1e12, "1T")
    watcher = Watcher()
    with pytest.raises(HwnasError, match="another search"):  # said before the folder is looked at
        search(replace(request(data, done, [[budget_ms(0.4), loose]]), seed=1), watcher)
    assert watcher.notes == [f"{loose} does not bind: every architecture of proxyless-tiny meets it"]


def test_another_seed_needs_another_folder(done: Path, data: Path) -> None:
    with pytest.raises(HwnasError, match=r"seed \(0 there, 1 now\) differ"):
        search(replace(request(data, done), seed=1), NullProgress())


def test_an_impossible_budget_is_said_before_anything_is_made(tmp_path: Path) -> None:
    impossible = Budget("latency", 1e-6, "1ns")
    with pytest.raises(ClaimError, match="the cheapest predicted is"):
        search(request(tmp_path / "no data", tmp_path / "run", [[impossible]]), NullProgress())
    assert not (tmp_path / "run").exists()


def test_random_search_alone_has_no_baseline(data: Path, tmp_path: Path) -> None:
    outcome = search(replace(request(data, tmp_path / "run"), method="random"), NullProgress())
    assert outcome.results[0]["baseline"] is None
    assert outcome.results[0]["net"] == "latency-40pct"
    assert outcome.evaluated == 12


def test_changed_images_are_noticed(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", train=12)
    search(replace(request(data, tmp_path / "run"), baseline=False), NullProgress())
    for image in (data / "train" / "red").iterdir():
        image.write_bytes((data / "train" / "blue" / image.name).read_bytes())
    with pytest.raises(HwnasError, match=r"the images of .* changed since"):
        search(request(data, tmp_path / "run", [[budget_ms(0.5)]]), NullProgress())


def test_without_a_test_split_the_accuracy_is_named_validation(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", train=12, test=0)
    outcome = search(replace(request(data, tmp_path / "run"), baseline=False), NullProgress())
    assert outcome.results[0]["accuracy_split"] == "val"
    assert outcome.results[0]["baseline"] is None


def test_no_test_image_is_read_before_all_choices_are_made(data: Path, tmp_path: Path) -> None:
    """The test images are rubbish: the search notices only after the last evaluation."""
    mine = write_dataset(tmp_path / "data", train=12)
    for image in (mine / "test").rglob("*.png"):
        image.write_bytes(b"rubbish")
    with pytest.raises(HwnasError, match=r"images in .*test cannot be read"):
        search(request(mine, tmp_path / "run", [[budget_ms(0.4)], [budget_ms(0.6)]]), NullProgress())
    scored = (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()
    assert len(scored) > 24


SCRIPT = """
import sys
from pathlib import Path
import torch
from hwnas.progress import NullProgress
from hwnas.train import loop
loop.CHECKPOINT_INTERVAL_S = 0.0
from test_spos import request, search
search(request(Path(sys.argv[1]), Path(sys.argv[2])), NullProgress())
"""


def start(data: Path, out: Path) -> subprocess.Popen[bytes]:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(here), str(here.parent)))}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(data), str(out)], env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["evolution", "fine-tuning"])
def test_a_killed_search_finds_the_same_nets(done: Path, data: Path, tmp_path: Path, moment: str) -> None:
    out = tmp_path / "run"
    process = start(data, out)
    evaluations = out / "evaluations.jsonl"

    def reached() -> bool:
        if moment == "evolution":
            return evaluations.is_file() and len(evaluations.read_text().splitlines()) >= 3
        return any((out / "nets").glob("*/weights.safetensors")) if (out / "nets").is_dir() else False

    while not reached():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not (out / "results.json").exists()
    assert start(data, out).wait(300) == 0
    for name in ("latency-40pct", "latency-40pct-random"):
        for file in ("arch.json", "weights.safetensors"):
            expected, found = (run / "nets" / name / file for run in (done, out))
            assert expected.read_bytes() == found.read_bytes()
    lines = [json.loads(line) for line in evaluations.read_text().splitlines()]
    assert len({tuple(line["genes"]) for line in lines}) == len(lines)
    scores = {tuple(line["genes"]): line["accuracy"] for line in lines}
    for text in (done / "evaluations.jsonl").read_text().splitlines():
        row = json.loads(text)
        assert scores.get(tuple(row["genes"]), row["accuracy"]) == row["accuracy"]
    assert np.isfinite(list(scores.values())).all()
