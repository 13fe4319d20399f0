"""`devices`, `profile`, `lut` and `predict` on a real, quickly measured table."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import Finished, Hwnas
from quick import tiny_network

from hwnas.devices import find_profile
from hwnas.export import export_onnx
from hwnas.latency.groups import MIN_GROUP
from hwnas.measure.hardware import cpu_name
from hwnas.measure.onnx_models import network_to_onnx
from hwnas.measure.runtimes.cuda import driver_is_here
from hwnas.spaces import get_space

CPU_MODEL = {"device", "runtime", "precision", "batch_size", "threads"}

DEVICES = {"name", "runtime", "available", "reason", "fix"}
PROFILE = {"lut", "entries", "measured", "reused", "failed", "seconds", "calibration"} | CPU_MODEL
CALIBRATION = {"networks", "mape", "within_5", "within_10", "kendall_tau", "interval_coverage"}
PREDICT = {
    "model", "latency_ms", "low_ms", "high_ms", "macs", "params", "conv_fc_params", "bitops", "coverage", "missing",
    "ops",
}  # fmt: skip
PREDICT_OP = {"op", "latency_ms", "macs"}
ROW = {"key", "latency_ms", "low_ms", "high_ms", "macs", "params", "size_bytes", "gmacs_per_s"}
"""Keys that scripts rely on; more may be there."""

MOBILENET_V2 = {"macs": 300_774_272, "params": 3_504_872}


def spoilt(source: Path, target: Path, *statements: str) -> Path:
    """A copy of a table after some SQL."""
    shutil.copy(source, target)
    with sqlite3.connect(target) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return target


def test_devices(hwnas: Hwnas) -> None:
    found = hwnas("devices", "--json").document
    assert all(set(entry) >= DEVICES for entry in found)
    cpu = next(entry for entry in found if entry["name"] == "cpu")
    assert cpu["available"] is True
    assert "cpu" in hwnas("devices").stdout


def test_devices_self_test(hwnas: Hwnas) -> None:
    done = hwnas("devices", "--self-test", "cpu", "--json")
    (entry,) = done.document
    assert set(entry) >= DEVICES
    assert entry["reference_ms"] > 0
    assert entry["output_rel_diff"] < 1e-3
    assert (entry["entries"] > 50, entry["failed"]) == (True, 0)
    assert entry["low_ms"] < entry["predicted_ms"] < entry["high_ms"]
    assert entry["passed"] == (done.code == 0) == (not entry["problems"])  # a busy machine may be predicted badly
    if not driver_is_here():
        without = hwnas("devices", "--self-test", "rtx")
        assert (without.code, "no NVIDIA driver" in without.error, "--device cpu" in without.error) == (1, True, True)
    assert hwnas("devices", "--self-test", "toaster").code == 2


def test_profile_measures_what_the_space_needs(measured: Any) -> None:
    document = measured.done.document
    assert set(document) >= PROFILE
    assert set(document["calibration"]) >= CALIBRATION
    assert document["entries"] == document["measured"] > 30
    assert document["failed"] == 0
    assert document["calibration"]["networks"] >= 15
    for share in ("mape", "within_5", "within_10", "interval_coverage"):
        assert 0 <= document["calibration"][share] <= 1


def test_profile_again_measures_nothing(hwnas: Hwnas, measured: Any) -> None:
    args = ("profile", "--device", measured.profile, "--space", "proxyless-tiny", "--lut", measured.lut)
    document = hwnas(*args, "--json").document
    assert document["measured"] == 0
    assert document["reused"] == document["entries"]
    human = hwnas(*args)
    assert human.code == 0
    assert "calibration" in human.stdout


def test_defaults_are_said_on_stderr(hwnas: Hwnas, measured: Any) -> None:
    done = hwnas("predict", "zoo:mobilenet-v2")
    assert "using --device cpu (default)" in done.stderr
    (hwnas.folder / "tables").mkdir()
    shutil.copy(measured.lut, hwnas.folder / "tables" / "quick.lut")
    assert "using --lut tables/quick.lut (the newest that fits)" in hwnas("lut", "show").stderr


def test_lut_list_and_show(hwnas: Hwnas, measured: Any) -> None:
    every = hwnas("lut", "list", "--root", measured.folder, "--json").document
    listed = [entry for entry in every if not entry["shipped"]]
    assert [Path(entry["lut"]).name for entry in listed] == ["quick.lut"]
    assert set(listed[0]) >= CPU_MODEL | {"entries"}
    shown = hwnas("lut", "show", measured.lut, "--json").document
    assert shown["entries"] == len(shown["rows"]) == listed[0]["entries"]
    for row in shown["rows"]:
        assert set(row) >= ROW
        assert row["low_ms"] <= row["latency_ms"] <= row["high_ms"]
    times = [row["latency_ms"] for row in shown["rows"]]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(("sort", "key"), [("macs", "macs"), ("params", "params"), ("bytes", "size_bytes")])
def test_lut_show_sorts_and_limits(hwnas: Hwnas, measured: Any, sort: str, key: str) -> None:
    rows = hwnas("lut", "show", "--lut", measured.lut, "--sort", sort, "--limit", "7", "--json").document["rows"]
    values = [row[key] for row in rows]
    assert len(values) == 7
    assert values == sorted(values, reverse=True)
    human = hwnas("lut", "show", measured.lut, "--sort", sort, "--limit", "7").stdout
    assert rows[0]["key"] in human
    assert "7 of " in human


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("absent", "no table"),
        ("foreign", "not an hwnas table"),
        ("truncated", "damaged"),
        ("other database", "not an hwnas table"),
        ("future", "format 99"),
        ("folder", "no table"),
    ],
)
def test_tables_that_are_none_exit_1_and_are_left_alone(hwnas: Hwnas, measured: Any, kind: str, says: str) -> None:
    path = hwnas.folder / "t.lut"
    if kind == "foreign":
        path.write_bytes(b"no table at all" * 100)
    elif kind == "truncated":
        path.write_bytes(measured.lut.read_bytes()[:6000])
    elif kind == "other database":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE cats (name TEXT)")
        connection.close()
    elif kind == "future":
        spoilt(measured.lut, path, "PRAGMA user_version = 99")
    elif kind == "folder":
        path.mkdir()
    before = path.read_bytes() if path.is_file() else None
    for args in (("lut", "show", path), ("predict", "zoo:mobilenet-v2", "--lut", path)):
        done = hwnas(*args)
        assert done.code == 1
        assert says in done.error
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize(
    ("key", "value", "flags"),
    [
        ("device", '"Another CPU"', []),
        ("runtime_version", '"0.1"', []),
        ("batch_size", "1", ["--batch", "2"]),
        ("threads", "1", ["--threads", "2"]),
    ],
)
def test_a_table_of_another_set_up_is_not_added_to(
    hwnas: Hwnas, measured: Any, key: str, value: str, flags: list[str]
) -> None:
    path = spoilt(measured.lut, hwnas.folder / "t.lut", f"UPDATE header SET value = '{value}' WHERE key = '{key}'")
    done = hwnas("profile", "--device", measured.profile, "--space", "proxyless-tiny", "--lut", path, *flags)
    assert done.code == 1
    assert key in done.error
    assert visits(path) == visits(measured.lut)


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ('runtme = "onnxruntime"', 1, "did you mean 'runtime'?"),
        ('batch_size = "one"', 1, "batch_size"),
        ('device = "toaster"', 1, "device"),
        ("[timing", 1, "not valid TOML"),
    ],
)
def test_bad_profiles(hwnas: Hwnas, change: str, code: int, says: str) -> None:
    path = hwnas.folder / "p.toml"
    path.write_text(
        f'name = "p"\nruntime = "onnxruntime"\n{change}\n' + ("" if "device" in change else 'device = "cpu"\n')
    )
    done = hwnas("profile", "--device", path, "--space", "proxyless-tiny")
    assert done.code == code
    assert says in done.error


def test_a_table_of_another_device_is_used_only_knowingly(hwnas: Hwnas, measured: Any) -> None:
    path = spoilt(measured.lut, hwnas.folder / "t.lut", "UPDATE header SET value = '\"Abacus 3\"' WHERE key = 'device'")
    for args in (("predict", "zoo:mobilenet-v2"), ("search", "--macs", "1M")):
        refused = hwnas(*args, "--lut", path, "--device", "cpu")
        assert refused.code == 1
        assert "Abacus 3" in refused.error
    said = hwnas("predict", "zoo:mobilenet-v2", "--lut", path)
    assert said.code == 0
    assert "latencies are those of Abacus 3" in said.stderr
    assert "latencies are those" not in hwnas("predict", "zoo:mobilenet-v2", "--lut", measured.lut).stderr


def test_a_table_with_a_profile_of_another_hwnas_is_one_line(hwnas: Hwnas, measured: Any) -> None:
    change = """UPDATE header SET value = '{"name": "quick", "device": "abacus"}' WHERE key = 'profile'"""
    path = spoilt(measured.lut, hwnas.folder / "t.lut", change)
    done = hwnas("predict", "zoo:mobilenet-v2", "--lut", path, "--measure")
    assert done.code == 1
    assert "profile anew" in done.error


def test_one_calibration_network_is_enough_for_people(hwnas: Hwnas, measured: Any) -> None:
    alone = ("--model", "zoo:mobilenet-v2", "--space", "none")
    done = hwnas("profile", "--device", measured.profile, *alone, "--lut", "one.lut")
    assert done.code == 0, done.stderr
    assert "1 network, each predicted without itself" in done.stdout
    assert "Kendall" not in done.stdout


def test_a_model_alone_is_measured_with_networks_to_calibrate_on(hwnas: Hwnas, measured: Any) -> None:
    (hwnas.folder / "net.onnx").write_bytes(network_to_onnx(tiny_network(size=32)))
    profile = ("profile", "--device", measured.profile, "--model", "net.onnx", "--lut", "t.lut", "--json")
    done = hwnas(*profile)
    assert "proxyless-tiny at 32 pixels, to calibrate on" in done.stderr
    assert done.document["calibration"]["networks"] > MIN_GROUP
    again = hwnas(*profile)
    assert "to calibrate on" not in again.stderr
    assert again.document["measured"] == 0
    assert hwnas("predict", "net.onnx", "--lut", "t.lut", "--json").document["coverage"] == 1
    assert hwnas("profile", "--device", measured.profile, "--space", "none").code == 2
    sized = hwnas("profile", "--device", measured.profile, "--model", "net.onnx", "--image-size", "64")
    assert (sized.code, "name a --space" in sized.error) == (2, True)


def test_networks_that_failed_are_named(hwnas: Hwnas, measured: Any) -> None:
    change = "UPDATE entries SET failure = 'too large' WHERE role = 'network' AND name LIKE 'proxyless-tiny #3 %'"
    path = spoilt(measured.lut, hwnas.folder / "t.lut", change)
    done = hwnas("profile", "--device", measured.profile, "--space", "proxyless-tiny", "--lut", path)
    assert "without a measurement (failed or interrupted): proxyless-tiny #3" in done.stdout


def test_zero_threads_fit_a_table_of_all_cores() -> None:
    from hwnas.cli.choices import _fits

    profile, cores = find_profile("cpu"), len(os.sched_getaffinity(0))
    header = {"profile": {"name": "cpu"}, "runtime": "onnxruntime", "device": cpu_name(), "threads": cores}
    assert _fits(header, profile, {"threads": 0})
    assert not _fits({**header, "runtime": "openvino"}, profile, {"threads": 0})
    assert not _fits({**header, "threads": cores + 1}, profile, {"threads": 0})


def test_a_table_of_this_gpu_fits_and_any_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from hwnas.cli.choices import _fits

    cuda = find_profile("cuda")
    header = {"profile": {"name": "cuda"}, "runtime": "tensorrt", "device": "GPU A", "threads": 1, "precision": "fp32"}
    for here, fits in {"GPU A": True, "GPU B": False, None: True}.items():
        monkeypatch.setattr("hwnas.measure.hardware.gpu_name", lambda number, here=here: here)
        assert _fits(header, cuda, {}) == fits
        assert not _fits({**header, "profile": {"name": "cuda-fp16"}}, cuda, {})
        assert not _fits(header, cuda, {"precision": "fp16"})
        assert not _fits(header, find_profile("cpu"), {})
    asked: list[int] = []
    monkeypatch.setattr("hwnas.measure.hardware.gpu_name", asked.append)
    _fits(header, find_profile("cuda:1"), {})
    assert asked == [1]


def test_a_table_of_a_gpu_is_found_by_its_profile(hwnas: Hwnas) -> None:
    from hwnas.latency.writer import TableWriter
    from hwnas.measure.hardware import gpu_name

    name = gpu_name() or "An elsewhere GPU"
    describe = {"runtime": "tensorrt", "runtime_version": "10.9", "device": name, "cores": 9, "threads": 1}
    path = hwnas.folder / "tables/mine.lut"
    path.parent.mkdir()
    TableWriter.create(path, find_profile("cuda"), describe).close()
    done = hwnas("predict", "zoo:mobilenet-v2", "--device", "cuda")
    assert "using --lut tables/mine.lut (the newest that fits)" in done.stderr
    assert ("latencies are those of An elsewhere GPU" in done.stderr) == (gpu_name() is None)
    assert "mine.lut" not in hwnas("predict", "zoo:mobilenet-v2", "--device", "cuda-fp16").stderr
    assert "mine.lut" not in hwnas("predict", "zoo:mobilenet-v2").stderr
    named = hwnas("predict", "zoo:mobilenet-v2", "--lut", "tables/mine.lut")
    assert ("this machine has no such device" in named.stderr) == (gpu_name() is None)


def test_unknown_devices_spaces_and_models_exit_2_or_1(hwnas: Hwnas) -> None:
    done = hwnas("profile", "--device", "cpuu")
    assert (done.code, "did you mean 'cpu'" in done.error) == (2, True)
    done = hwnas("profile", "--space", "proxyles")
    assert (done.code, "did you mean 'proxyless'" in done.error) == (2, True)
    done = hwnas("profile", "--precision", "fp17")
    assert (done.code, "fp32" in done.error) == (2, True)
    done = hwnas("predict", "zoo:mobilnet-v2")
    assert (done.code, "did you mean 'mobilenet-v2'" in done.error) == (2, True)
    done = hwnas("predict", "space:proxyles")
    assert done.code == 2


def test_predict_without_a_table_is_arithmetic(hwnas: Hwnas) -> None:
    done = hwnas("predict", "zoo:mobilenet-v2", "--json")
    assert set(done.document) >= PREDICT
    assert {key: done.document[key] for key in MOBILENET_V2} == MOBILENET_V2
    assert done.document["latency_ms"] is None
    assert "hwnas profile" in done.stderr
    assert "300,774,272" in hwnas("predict", "zoo:mobilenet-v2").stdout


def test_predict_of_a_space_counts_its_supernet(hwnas: Hwnas) -> None:
    space = hwnas("predict", "space:proxyless-tiny", "--json").document
    assert space["latency_ms"] is None
    assert space["macs"] > hwnas("predict", "space:proxyless-tiny", "--json").document["params"] > 0


def test_predict_names_what_is_missing_and_how_to_measure_it(hwnas: Hwnas, measured: Any) -> None:
    document = hwnas("predict", "zoo:mobilenet-v2", "--lut", measured.lut, "--json").document
    assert document["latency_ms"] is None
    assert document["missing"]
    assert 0 <= document["coverage"] < 1
    human = hwnas("predict", "zoo:mobilenet-v2", "--lut", measured.lut).stdout
    assert document["missing"][0] in human
    assert "--measure" in human


def test_predict_measures_what_is_missing(hwnas: Hwnas, measured: Any) -> None:
    path = hwnas.folder / "t.lut"
    shutil.copy(measured.lut, path)
    document = hwnas("predict", "zoo:mobilenet-v2", "--lut", path, "--measure", "--json").document
    assert set(document) >= PREDICT
    assert all(set(entry) >= PREDICT_OP for entry in document["ops"])
    assert document["coverage"] == 1
    assert document["missing"] == []
    assert document["low_ms"] <= document["latency_ms"] <= document["high_ms"]
    times = [entry["latency_ms"] for entry in document["ops"]]
    assert times == sorted(times, reverse=True)
    # known from now on, without --measure
    assert hwnas("predict", "zoo:mobilenet-v2", "--lut", path, "--json").document["latency_ms"] is not None


@pytest.mark.parametrize("name", ["fbnet-tiny", "spos-shufflenet-tiny"])
def test_an_exported_net_of_another_space_is_measured_and_predicted(name: str, hwnas: Hwnas, measured: Any) -> None:
    """What is read back from the file are the module's operators; what the table lacks of them is measured into it."""
    shutil.copy(measured.lut, hwnas.folder / "t.lut")
    space = get_space(name, image_size=32)
    arch = space.sample(np.random.default_rng(3))
    export_onnx(space.build(arch).eval(), space.input_shape, hwnas.folder / "net.onnx")
    before = hwnas("predict", "net.onnx", "--lut", "t.lut", "--json").document
    assert before["unknown"] == []
    assert before["coverage"] < 1
    ops = space.network(arch).ops
    assert (before["macs"], before["params"]) == (sum(op.macs for op in ops), sum(op.deployed_params for op in ops))
    document = hwnas("predict", "net.onnx", "--lut", "t.lut", "--measure", "--json").document
    assert (document["coverage"], document["guessed"], document["missing"]) == (1, None, [])
    assert 0 < document["low_ms"] <= document["latency_ms"] <= document["high_ms"]
    assert {entry["how"] for entry in document["ops"]} == {"measured"}
    again = hwnas("predict", "net.onnx", "--lut", "t.lut", "--measure", "--json")
    assert again.document["latency_ms"] == document["latency_ms"]
    assert "nothing to measure" in again.stderr


def test_predict_of_a_corrupt_onnx_file(hwnas: Hwnas) -> None:
    path = hwnas.folder / "net.onnx"
    path.write_bytes(b"\x08\x07 not a network")
    done = hwnas("predict", path)
    assert done.code == 1
    assert "net.onnx" in done.error
    assert hwnas("predict", "absent.onnx").code in (1, 2)


def interrupted(hwnas: Hwnas, number: int, *args: str | Path) -> Finished:
    """A profile that gets the signal once measurements are in its table."""
    child = subprocess.Popen(
        hwnas.argv("profile", *args, "--lut", "t.lut"),
        cwd=hwnas.folder, env=hwnas.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while visits(hwnas.folder / "t.lut") < 20:
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(child.pid, number)  # Ctrl-C reaches every process of the terminal, the measuring one too
    else:
        os.kill(child.pid, number)
    stdout, stderr = child.communicate(timeout=60)
    return Finished(child.returncode, stdout, stderr)


def visits(path: Path) -> int:
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return int(connection.execute("SELECT count(*) FROM visits").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.Error:
        return 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_profile_keeps_what_was_measured_and_goes_on(
    hwnas: Hwnas, measured: Any, number: signal.Signals
) -> None:
    args = ("--device", measured.profile, "--space", "proxyless-tiny")
    done = interrupted(hwnas, number, *args)
    kept = visits(hwnas.folder / "t.lut")
    assert kept >= 20
    if number != signal.SIGKILL:
        assert done.code == 130
        assert f"hwnas profile --device {measured.profile}" in done.error
        assert "t.lut" in done.error
    resumed = hwnas("profile", *args, "--lut", "t.lut", "--json").document
    assert resumed["entries"] == measured.done.document["entries"]
    with sqlite3.connect(hwnas.folder / "t.lut") as connection:
        counts = connection.execute(
            "SELECT role, entries.name, count(*) FROM visits JOIN entries ON entry = entries.id "
            "WHERE role IN ('cover', 'network') GROUP BY entries.id"
        ).fetchall()
    connection.close()
    assert {role for role, _, _ in counts} == {"cover", "network"}
    assert {count for _, _, count in counts} == {2}, counts  # each twice, visits from before the signal included


def test_a_reader_that_goes_away_is_no_error(hwnas: Hwnas, measured: Any) -> None:
    command = f"{hwnas.argv()[0]} lut show {measured.lut} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=hwnas.environment())
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


def test_a_full_disk_is_one_line(hwnas: Hwnas) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            hwnas.argv("devices", "--json"), stdout=full, stderr=subprocess.PIPE, text=True, env=hwnas.environment()
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [line for line in done.stderr.splitlines() if line.startswith("hwnas: error: ")]
    assert "disk is full" in done.stderr


def test_a_place_that_cannot_be_written(hwnas: Hwnas, measured: Any) -> None:
    blocked = hwnas.folder / "file"
    blocked.write_text("")
    done = hwnas("profile", "--device", measured.profile, "--space", "proxyless-tiny", "--lut", blocked / "t.lut")
    assert done.code == 1
    assert "file" in done.error


def test_debug_shows_the_traceback(hwnas: Hwnas) -> None:
    done = hwnas("lut", "show", "absent.lut", "--debug")
    assert done.code == 1
    assert "Traceback" in done.stderr


def test_json_is_all_of_stdout(measured: Any) -> None:
    json.loads(measured.done.stdout)


# -- files that are not to be trusted, and a second process ----------------------------------------------------------


def test_a_table_of_the_future_is_neither_added_to_nor_read(hwnas: Hwnas, measured: Any) -> None:
    path = spoilt(measured.lut, hwnas.folder / "t.lut", "PRAGMA user_version = 99")
    before = path.read_bytes()
    for args in (
        ("profile", "--device", measured.profile, "--space", "proxyless-tiny"),
        ("predict", "zoo:mobilenet-v2", "--measure"),
        ("search", "--latency", "1ms"),
    ):
        done = hwnas(*args, "--lut", path)
        assert done.code == 1
        assert "upgrade hwnas" in done.error
    assert path.read_bytes() == before


def test_an_absurd_network_is_a_failure_in_little_memory(hwnas: Hwnas, measured: Any) -> None:
    """An ONNX file of 200 bytes whose one operator would take 8 PB, in a process that may have 16 GB."""
    image = [1, 1_000_000, 1_000_000, 1_000]
    value, other = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, image) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "absurd", [value], [other])
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.save(model, hwnas.folder / "absurd.onnx")
    alone = ("--model", "absurd.onnx", "--space", "none")
    args = hwnas.argv("profile", "--device", measured.profile, *alone, "--lut", "t.lut", "--json")
    done = subprocess.run(
        ["bash", "-c", 'ulimit -v 16000000; exec "$@"', "-", *args],
        cwd=hwnas.folder, env=hwnas.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["measured"], document["failed"]) == (0, 1)
    assert "more memory than there is" in document["failures"][0]["reason"]


def test_a_second_process_waits_for_the_device_and_says_so(hwnas: Hwnas, measured: Any) -> None:
    lock = hwnas.folder / "lock"
    lock.mkdir()
    env = {"TMPDIR": str(lock)}
    holder = subprocess.Popen(
        [sys.executable, "-c", "from hwnas.measure.lock import device_lock\nfrom hwnas.progress import NullProgress\n"
         "with device_lock('cpu', NullProgress()): print('held', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=hwnas.environment(env),
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    args = hwnas.argv("profile", "--device", measured.profile, "--space", "proxyless-tiny", "--lut", "t.lut", "--quiet")
    second = subprocess.Popen(
        args, cwd=hwnas.folder, env=hwnas.environment(env), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert second.stderr is not None
    assert "another hwnas process is measuring on cpu: waiting" in second.stderr.readline()
    assert not (hwnas.folder / "t.lut").exists()
    holder.communicate("go\n")
    assert second.wait(120) == 0
    assert (hwnas.folder / "t.lut").exists()
    second.communicate()
