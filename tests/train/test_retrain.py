"""`hwnas train`: found nets trained from scratch and on, and a kill at any moment."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_images import write_dataset

from hwnas.budget import Budget
from hwnas.costs import macs_cost
from hwnas.errors import HwnasError
from hwnas.export import parity
from hwnas.progress import NullProgress
from hwnas.runs import RunFolder
from hwnas.search.data import read_splits
from hwnas.search.spos import SearchRequest, search
from hwnas.spaces import AtomArch, AtomSpace, arch_from_json, find_space, get_space
from hwnas.train.finish import write_net
from hwnas.train.metrics import MetricsLog
from hwnas.train.recipe import Phase, Recipe
from hwnas.train.retrain import TrainRequest, train_nets

SPACE = get_space("proxyless-tiny", num_classes=3)
RECIPE = Recipe.model_validate(
    {
        "supernet": {"steps": 2, "batch_size": 8, "optimizer": "adamw", "lr": 2e-3},
        "scoring": {"recalibrate_images": 8, "val_images": 3, "batch_size": 8},
        "evolution": {"population": 2, "generations": 1, "topk": 2},
        "finetune": {"steps": 1, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3},
    }
)
PHASE = Phase(steps=30, batch_size=8, optimizer="adamw", lr=3e-3, warmup_steps=3)
NETS = ("macs-30pct", "macs-30pct-random")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("squares"), train=12, test=3)


@pytest.fixture(scope="module")
def searched(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "searched"
    costs = {"macs": macs_cost(SPACE)}
    budget = Budget("macs", 0.3 * costs["macs"].prices.total_of(costs["macs"].prices.dearest()), "30%")
    search(SearchRequest(SPACE, f"folder:{data}", [[budget]], costs, RECIPE, out), NullProgress())
    return out


def request(data: Path, run: Path) -> TrainRequest:
    return TrainRequest(run, NETS, f"folder:{data}", PHASE, threads=1)


@pytest.fixture(scope="module")
def trained(data: Path, searched: Path) -> Path:
    run = searched.parent / "trained"
    shutil.copytree(searched, run)
    document = train_nets(request(data, run), NullProgress())
    assert [result["net"] for result in document["results"]] == list(NETS)
    return run


def test_files_of_a_trained_net_are_one_net_and_its_figures(searched: Path, trained: Path) -> None:
    for name in NETS:
        net, before = RunFolder.open(trained).net(name), RunFolder.open(searched).net(name)
        space, arch = arch_from_json(json.loads(net.arch.read_text()))
        module = space.build(arch)
        module.load_state_dict(load_file(net.weights))
        images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0)).numpy()
        assert parity(module.eval(), net.onnx, images).max_abs_diff < 1e-4
        assert (net.path / "found.safetensors").read_bytes() == before.weights.read_bytes() != net.weights.read_bytes()
        result, found = net.result(), before.result()
        assert result["accuracy"] == result["trained"]["accuracy"]
        assert result["found"]["accuracy"] == found["accuracy"] == result["trained"]["accuracy_before"]
        assert result["accuracy_split"] == "test"
        assert (net.path / "metrics.csv").read_text().splitlines()[-1].startswith("30,")
    assert not list((trained / "checkpoints").glob("train-*"))
    winner = RunFolder.open(trained).net(NETS[0]).result()
    assert winner["baseline"]["trained"] == RunFolder.open(trained).net(NETS[1]).result()["trained"]


def test_coloured_squares_are_learned(trained: Path) -> None:
    losses = [float(row[1]) for row in MetricsLog(trained / "nets" / NETS[0] / "metrics.csv").rows()]
    assert losses[-1] < 0.7 * math.log(3)  # chance


def test_the_same_training_again_changes_nothing_and_the_search_is_still_done(data: Path, trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (trained / "nets").rglob("*")}
    again = train_nets(request(data, trained), NullProgress())
    assert again["seconds"] < 5
    assert {path: path.stat().st_mtime_ns for path in (trained / "nets").rglob("*")} == before
    assert again["results"][0]["accuracy"] == RunFolder.open(trained).net(NETS[0]).result()["accuracy"]


def test_inherited_weights_are_those_that_the_search_left(data: Path, trained: Path, searched: Path) -> None:
    """Also when the net was trained since: a training without steps gives them back."""
    run = trained.parent / "inherited"
    shutil.copytree(trained, run)
    none = replace(request(data, run), start="inherited", phase=PHASE.model_copy(update={"steps": 0}), nets=NETS[:1])
    train_nets(none, NullProgress())
    expected, found = (load_file(RunFolder.open(path).net(NETS[0]).weights) for path in (searched, run))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_other_classes_and_changed_images_are_refused(searched: Path, tmp_path: Path, data: Path) -> None:
    two = write_dataset(tmp_path / "two", train=4, test=0)
    shutil.rmtree(two / "train" / "red")
    with pytest.raises(HwnasError, match=r"has 2 classes, the nets of .* have 3"):
        train_nets(request(two, searched), NullProgress())
    run = tmp_path / "run"
    shutil.copytree(searched, run)
    (run / "data.json").write_text(json.dumps({"data": f"folder:{data}", "fingerprint": "other"}))
    with pytest.raises(HwnasError, match="changed since"):
        train_nets(request(data, run), NullProgress())
    (run / "nets" / NETS[0] / "weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(HwnasError, match="search it again"):
        train_nets(replace(request(data, searched), start="inherited", run=run, data=f"folder:{data}/"), NullProgress())


def test_a_net_of_atoms_is_trained_too(data: Path, tmp_path: Path) -> None:
    space = find_space("atomnas-tiny", num_classes=3)
    assert isinstance(space, AtomSpace)
    arch = AtomArch(space.name, tuple(tuple(atoms // 4 for atoms in row) for row in space.full))
    run = RunFolder.create(tmp_path / "run", identity={"data": f"folder:{data}"}, config={})
    with run:
        net = run.net("macs-50pct")
        net.path.mkdir(parents=True)
        splits = read_splits(
            f"folder:{data}",
            size=space.input_shape[1],
            classes=space.num_classes,
            unfit="",
            seed=0,
            progress=NullProgress(),
        )
        write_net(net, space, arch, space.build(arch, generator=torch.Generator().manual_seed(0)), splits)
        net.write_json("result.json", {"net": net.name, "accuracy": 0.25, "accuracy_split": "test", "baseline": None})
    before = net.weights.read_bytes()
    phase = PHASE.model_copy(update={"steps": 4})
    for start in ("scratch", "inherited"):
        wanted = TrainRequest(tmp_path / "run", ["macs-50pct"], f"folder:{data}", phase, start)
        (result,) = train_nets(wanted, NullProgress())["results"]
        assert (result["from"], result["accuracy_before"]) == (start, 0.25)
        assert (net.path / "found.safetensors").read_bytes() == before != net.weights.read_bytes()
    assert load_file(net.weights).keys() == load_file(net.path / "found.safetensors").keys()


SCRIPT = """
import sys
from pathlib import Path
from hwnas.progress import NullProgress
from hwnas.train import loop
loop.CHECKPOINT_INTERVAL_S = 0.0
from test_retrain import request, train_nets
train_nets(request(Path(sys.argv[1]), Path(sys.argv[2])), NullProgress())
"""


def start(data: Path, run: Path) -> subprocess.Popen[bytes]:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(here), str(here.parent)))}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(data), str(run)], env=environment)


@pytest.mark.slow
def test_a_killed_training_ends_in_the_same_nets(data: Path, searched: Path, trained: Path) -> None:
    run = searched.parent / "killed"
    shutil.copytree(searched, run)
    process = start(data, run)
    while not list((run / "checkpoints").glob("train-*.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    (left,) = {path.stem.rpartition("-")[0] for path in (run / "checkpoints").glob("train-*.safetensors")}
    assert left.startswith("train-")
    train_nets(request(data, run), NullProgress())
    for name in NETS:
        expected, found = (RunFolder.open(path).net(name) for path in (trained, run))
        assert expected.weights.read_bytes() == found.weights.read_bytes()
        assert expected.result()["accuracy"] == found.result()["accuracy"]
