"""Run folders: reopened by the same search, refused by another, whole after a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hwnas.errors import HwnasError
from hwnas.runs import RunFolder, default_name

IDENTITY = {"space": "proxyless-tiny", "seed": 0, "supernet": {"lr": 0.1, "steps": 5}, "nothing": None}


def make(path: Path, **changes: object) -> RunFolder:
    return RunFolder.create(path, identity={**IDENTITY, **changes}, config={"threads": 2, "notes": {"lut": "cpu.lut"}})


def test_what_it_is_of_is_written_and_read_back(tmp_path: Path) -> None:
    with make(tmp_path / "a"):
        pass
    config = RunFolder.open(tmp_path / "a").config
    assert config["identity"]["supernet"] == {"lr": 0.1, "steps": 5}
    assert config["notes"] == {"lut": "cpu.lut"}
    assert set(config["versions"]) == {"hwnas", "torch", "onnxruntime", "numpy"}
    with make(tmp_path / "a") as again:
        assert again.config == config


def test_another_search_is_refused_with_what_differs(tmp_path: Path) -> None:
    with make(tmp_path):
        pass
    with pytest.raises(HwnasError, match=r"supernet\.lr \(0\.1 there, 0\.2 now\) differ\. Choose another --out"):
        make(tmp_path, supernet={"lr": 0.2, "steps": 5})


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(HwnasError, match="is not a run and not empty"):
        make(tmp_path)
    with pytest.raises(HwnasError, match=r"it has no run\.toml"):
        RunFolder.open(tmp_path)
    (tmp_path / "run.toml").write_text("format = 99")
    with pytest.raises(HwnasError, match="has format 99"):
        RunFolder.open(tmp_path)
    (tmp_path / "run.toml").write_text("format =")
    with pytest.raises(HwnasError, match="cannot be read"):
        RunFolder.open(tmp_path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with make(tmp_path), pytest.raises(HwnasError, match="another process works"), make(tmp_path):
        pass
    with make(tmp_path):
        pass


def test_newest_is_the_one_worked_on_last(tmp_path: Path) -> None:
    with pytest.raises(HwnasError, match="there is no run under"):
        RunFolder.newest(tmp_path)
    for age, name in enumerate(("old", "new", "older")):
        with make(tmp_path / name):
            pass
        os.utime(tmp_path / name / "run.toml", (1000 + (age == 1), 1000 + (age == 1)))
    assert RunFolder.newest(tmp_path).path.name == "new"
    assert default_name("spos", "proxyless-tiny", "fashion-mnist") == "spos-proxyless-tiny-fashion-mnist"


def test_evaluations_survive_a_torn_line_and_know_their_supernet(tmp_path: Path) -> None:
    run = make(tmp_path)
    with run:
        log = run.evaluations("aa")
        log.add((1, 2), 0.5)
        log.add((3, 4), 0.25)
    file = tmp_path / "evaluations.jsonl"
    file.write_bytes(file.read_bytes() + b'{"genes": [5, 6], "accu')
    again = run.evaluations("aa")
    assert again.scores == {(1, 2): 0.5, (3, 4): 0.25}
    again.add((7, 8), 1.0)
    assert run.evaluations("aa").scores == {(1, 2): 0.5, (3, 4): 0.25, (7, 8): 1.0}
    assert run.evaluations("bb").scores == {}


def test_a_net_is_complete_when_its_result_is_there(tmp_path: Path) -> None:
    run = make(tmp_path)
    with run:
        net = run.net("latency-17ms")
        net.write_json("arch.json", {"genes": [1]})
        assert run.nets() == []
        net.write_json("result.json", {"accuracy": 0.9})
        assert [found.name for found in run.nets()] == ["latency-17ms"]
        assert net.result() == {"accuracy": 0.9}
        assert run.results() == []  # a baseline, not an answer
        net.write_json("result.json", {"accuracy": 0.9, "baseline": None})
        assert run.results() == [{"accuracy": 0.9, "baseline": None}]
    assert json.loads((tmp_path / "nets/latency-17ms/arch.json").read_text()) == {"genes": [1]}
    assert not list(tmp_path.rglob("*.part"))
