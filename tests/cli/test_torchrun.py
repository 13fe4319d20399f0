"""`search` by two processes of torchrun: as by one, and an error of one is said once."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import Finished, Hwnas
from tiny_fashion import TINY_RECIPE, write_fashion_mnist


def torchrun(hwnas: Hwnas, *args: str, second: str = "") -> Finished:
    """Two processes; `second` is shell code that only the second one runs before it."""
    script = hwnas.folder / "start.sh"
    before = f'if [ "$RANK" = 1 ]; then {second}; fi\n' if second else ""
    script.write_text(f'#!/bin/sh\n{before}exec {shlex.quote(hwnas.argv()[0])} "$@"\n')
    script.chmod(0o755)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    env = hwnas.environment({"HWNAS_FASHION_MNIST": str(hwnas.folder / "fashion"), "OMP_NUM_THREADS": "1"})
    done = subprocess.run(
        [*start, str(script), *args], cwd=hwnas.folder, env=env, capture_output=True, text=True, timeout=300
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Hwnas:
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "tiny.toml").write_text(TINY_RECIPE)
    write_fashion_mnist(folder / "fashion")
    return Hwnas(folder)


SEARCH = ("search", "--macs", "60%", "--population", "2", "--generations", "1", "--recipe", "tiny.toml", "--json")


@pytest.mark.slow
def test_two_processes_search_and_say_it_once(ready: Hwnas) -> None:
    done = torchrun(ready, *SEARCH, "--out", "run")
    assert done.code == 0, done.stderr
    results = done.document["results"]
    assert [result["net"] for result in results] == ["macs-60pct"]
    assert all(result["macs"] <= result["budgets"][0]["limit"] for result in results)
    assert done.stderr.count("expected duration") == 1
    assert not list((ready.folder / "run" / "checkpoints").glob("finetune*"))
    trained = torchrun(ready, "train", "run/nets/macs-60pct", "--json")
    assert trained.code == 0, trained.stderr
    (net,) = trained.document["results"]
    assert (net["net"], net["steps"], net["processes"]) == ("macs-60pct", 4, 2)


def one_net(folder: Path, done: Finished) -> dict[str, Any]:
    """The result of a search that ended with one net and left nothing else behind."""
    assert done.code == 0, done.stderr
    (result,) = done.document["results"]
    (budget,) = result["budgets"]
    assert result[budget["cost"]] <= budget["limit"]
    assert done.stderr.count("expected duration") == 1
    (net,) = (folder / "nets").iterdir()
    assert {path.name for path in net.iterdir()} >= {"arch.json", "weights.safetensors", "model.onnx", "result.json"}
    assert not list((folder / "checkpoints").glob("*"))
    found: dict[str, Any] = result
    return found


@pytest.mark.slow
def test_two_processes_search_among_atoms_and_one_that_is_killed_ends_both(ready: Hwnas) -> None:
    (ready.folder / "longer.toml").write_text(TINY_RECIPE.replace("steps = 4", "steps = 30", 1))
    search = ("search", "--method", "atomnas", "--macs", "50%", "--recipe", "longer.toml", "--out", "atoms", "--json")
    run = ready.folder / "atoms"
    begun = run / "nets" / "macs-50pct" / "metrics.csv"
    killed = torchrun(
        ready, *search, second=f"(while [ ! -s {shlex.quote(str(begun))} ]; do sleep 0.05; done; kill -9 $$) &"
    )
    assert killed.code != 0
    assert not (run / "results.json").exists()
    assert "Traceback" not in "".join(line for line in killed.stderr.splitlines() if "hwnas" in line)
    result = one_net(run, torchrun(ready, *search))
    assert sum(result["reduction"].values()) == pytest.approx(1)
    rows = [json.loads(line) for line in (run / "nets" / "macs-50pct" / "atoms.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})


@pytest.mark.slow
def test_two_processes_search_by_gates_and_retrain(ready: Hwnas) -> None:
    search = ("search", "--method", "figs", "--params", "50%", "--recipe", "tiny.toml", "--out", "gates", "--json")
    run = ready.folder / "gates"
    result = one_net(run, torchrun(ready, *search))
    assert sum(result["reduction"].values()) == pytest.approx(1)
    steps = [(run / "nets" / result["net"] / name).read_text().split()[-1] for name in ("metrics.csv", "retrain.csv")]
    assert [line.split(",")[0] for line in steps] == ["4", "2"]


@pytest.mark.slow
def test_an_error_of_the_second_process_is_one_line_of_the_first(ready: Hwnas) -> None:
    done = torchrun(ready, *SEARCH, "--out", "broken", second="export HWNAS_FASHION_MNIST=/nowhere")
    assert done.code != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("hwnas: error: ")]
    assert len(lines) == 1, done.stderr
    assert "rank 1: /nowhere has no" in lines[0]


def test_other_commands_are_not_for_several_processes(hwnas: Hwnas) -> None:
    several = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}
    done = hwnas("devices", env=several)
    assert done.code == 2
    assert "without torchrun" in done.error
    assert hwnas("devices", env={**several, "RANK": "1"}).stderr == ""
