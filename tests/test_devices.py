"""Device profiles: what ships is valid, what is wrong is named."""

from __future__ import annotations

import importlib.resources
import os
import tomllib
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hwnas.devices import (
    ENGINE_RUNTIMES,
    DeviceProfile,
    Timing,
    available_runtimes,
    find_profile,
    list_profiles,
    with_runtime,
)
from hwnas.errors import HwnasError, RuntimeMissing, UsageError
from hwnas.measure.process import MeasuringProcess
from hwnas.measure.runtimes import RUNTIMES
from hwnas.measure.runtimes.cuda import driver_is_here
from hwnas.measure.runtimes.tensorrt_build import BuildOptions

GOOD = """
format = 1
name = "mine"
runtime = "onnxruntime"
device = "cpu"
batch_size = 4
threads = 2

[timing]
min_passes = 3
timeout_s = 5
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def refused(folder: Path, text: str) -> str:
    """The one line that refuses a profile of `text`, less the file's name."""
    path = written(folder, text)
    with pytest.raises(HwnasError) as caught:
        find_profile(path)
    assert caught.value.exit_code == 1
    message = str(caught.value)
    assert path in message
    assert len(message.splitlines()) == 1
    return message.replace(path, "")


def test_profiles_that_ship() -> None:
    profiles = list_profiles()
    assert "cpu" in [profile.name for profile in profiles]
    for profile in profiles:
        assert find_profile(profile.name) == profile
        assert profile.runtime in RUNTIMES
        assert profile.description
        assert profile.thread_count >= 1


def test_every_file_that_ships_is_named_as_it_is_called_and_hides_nothing() -> None:
    """Defaults of the code and what the file says must not drift apart: each field is written down."""
    for entry in importlib.resources.files("hwnas._data.profiles").iterdir():
        if entry.name.endswith(".toml"):
            data = tomllib.loads(entry.read_text(encoding="utf-8"))
            assert data["name"] + ".toml" == entry.name
            special = {"retired", "note", "host", "python"}  # where the user's device is, and what only some have
            special |= set() if data["runtime"] in ENGINE_RUNTIMES else {"builder"}
            assert set(DeviceProfile.model_fields) - special <= set(data) <= set(DeviceProfile.model_fields)
            assert not {"host", "python"} & set(data)
            assert set(data["timing"]) == set(Timing.model_fields)
    assert find_profile("cpu").timing.visits_per_load > 0


def test_a_profile_from_a_file(tmp_path: Path) -> None:
    profile = find_profile(written(tmp_path, GOOD))
    assert (profile.name, profile.batch_size, profile.threads) == ("mine", 4, 2)
    assert (profile.timing.min_passes, profile.timing.timeout_s) == (3, 5.0)
    assert profile.timing.max_passes == Timing().max_passes
    assert DeviceProfile.model_validate(profile.model_dump()) == profile
    with pytest.raises(ValidationError):
        profile.threads = 7  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("batch_size", "batchsize", "unknown key 'batchsize'; did you mean 'batch_size'?"),
        ("min_passes", "min_pases", "unknown key 'timing.min_pases'; did you mean 'min_passes'?"),
        ('name = "mine"', 'name = "mine"\nzzz = 1', "unknown key 'zzz'; known: "),
        ("[timing]", "[timings]", "unknown key 'timings'; did you mean 'timing'?"),
        ('name = "mine"', "", "the key 'name' is missing"),
        ('runtime = "onnxruntime"', "", "the key 'runtime' is missing"),
        ("batch_size = 4", 'batch_size = "4"', "batch_size: "),
        ("batch_size = 4", "batch_size = 4.0", "batch_size: "),
        ("batch_size = 4", "batch_size = true", "batch_size: "),
        ("batch_size = 4", "batch_size = 0", "batch_size: "),
        ("threads = 2", "threads = -1", "threads: "),
        ("threads = 2", "threads = [2]", "threads: "),
        ('"mine"', '"../mine"', "name: "),
        ('"mine"', '""', "name: "),
        ('"mine"', "7", "name: "),
        ('"onnxruntime"', '"tensorflow"', "runtime: "),
        ('"cpu"', '"toaster"', "device: "),
        ('"onnxruntime"', '"onnxruntime-cuda"', "the runtime onnxruntime-cuda needs an NVIDIA GPU"),
        ('"cpu"', '"cuda:1"', "the runtime onnxruntime runs on the cpu, not on cuda:1"),
        ("format = 1", "format = 2", "format: "),
        ("min_passes = 3", "min_passes = 1", "timing.min_passes: "),
        ("min_passes = 3", "min_passes = 41", "timing.min_passes is above timing.max_passes"),
        ("timeout_s = 5", "timeout_s = nan", "timing.timeout_s: "),
        ("timeout_s = 5", "timeout_s = inf", "timing.timeout_s: "),
        ("timeout_s = 5", "timeout_s = 0", "timing.timeout_s: "),
        ("timeout_s = 5", "target_error = 1.0", "timing.target_error: "),
        ("[timing]\nmin_passes = 3\ntimeout_s = 5", "timing = 3", "timing: "),
        ("format = 1", "format = ", "is not valid TOML"),
        ("[timing]", "[timing", "is not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    assert says in refused(tmp_path, GOOD.replace(old, new))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.toml")
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (absent, str(folder), str(binary), str(tmp_path) + os.sep):
        with pytest.raises(HwnasError, match="cannot read the profile") as caught:
            find_profile(path)
        assert path in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["cpuu", "CPU", "toaster", "", "cuda:x"])
def test_no_such_profile(text: str) -> None:
    with pytest.raises(UsageError, match=r"known: .*cpu") as caught:
        find_profile(text)
    assert caught.value.exit_code == 2
    assert ("did you mean 'cpu'" in str(caught.value)) == (text == "cpuu")


def test_overrides() -> None:
    cpu = find_profile("cpu")
    assert cpu.override() == cpu.override(batch_size=None, threads=None) == cpu
    changed = cpu.override(batch_size=8, threads=0, target_error=0.05)
    assert (changed.batch_size, changed.threads, changed.timing.target_error) == (8, 0, 0.05)
    assert changed.thread_count == len(os.sched_getaffinity(0))
    assert changed.timing.min_passes == cpu.timing.min_passes
    assert cpu.timing.target_error != 0.05  # itself it stays as it was


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 5000}, "batch_size"),
        ({"threads": -1}, "threads"),
        ({"precision": "fp16"}, "precision"),
        ({"runtime": "tensorrt"}, "runtime"),
        ({"target_error": 2.0}, "target_error"),
        ({"bath_size": 2}, "did you mean 'batch_size'"),
    ],
)
def test_impossible_overrides(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        find_profile("cpu").override(**change)
    assert "profile cpu" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_cpu_can_be_measured_here() -> None:
    import onnxruntime

    found = {status.name: status for status in available_runtimes()}
    assert found["cpu"].available
    assert onnxruntime.__version__ in found["cpu"].reason
    assert (found["cpu"].runtime, found["cpu"].fix) == ("onnxruntime", "")


def test_another_runtime_is_the_profile_that_ships_for_it() -> None:
    cpu, openvino = find_profile("cpu"), find_profile("openvino")
    assert with_runtime(cpu, "openvino") == openvino
    assert with_runtime(openvino, "onnxruntime") == cpu
    assert with_runtime(cpu, "onnxruntime") is cpu


def test_another_runtime_for_a_profile_of_your_own_keeps_what_it_says(tmp_path: Path) -> None:
    mine = find_profile(written(tmp_path, GOOD))
    changed = with_runtime(mine, "openvino")
    assert (changed.runtime, changed.name) == ("openvino", "mine-openvino")
    assert changed.model_copy(update={"runtime": mine.runtime, "name": mine.name}) == mine
    assert with_runtime(mine, mine.runtime) is mine
    with pytest.raises(UsageError, match=r"'onnxruntime', .* or 'tensorrt_rtx', not 'abacus'"):
        with_runtime(mine, "abacus")


def test_what_cannot_be_measured_is_named_and_mended_by_an_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of that name which cannot be imported: what the measuring process meets where it is not installed."""
    (tmp_path / "openvino.py").write_text("raise ImportError('libopenvino.so: no such file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = {status.name: status for status in available_runtimes()}
    assert not found["openvino"].available
    assert "libopenvino.so: no such file" in found["openvino"].reason
    assert found["openvino"].fix == "pip install 'hwnas[openvino]'"
    assert found["cpu"].available


GPU_PROFILES = ("cuda", "cuda-fp16", "cuda-int8", "rtx", "jetson-orin", "titan-xp")


def test_gpu_profiles_are_of_32_images_and_say_what_the_runtime_needs() -> None:
    for name in GPU_PROFILES:
        profile = find_profile(name)
        assert profile.batch_size == 32
        options = profile.override(device="cuda:1").runtime_options()
        assert (options["gpu"], options["precision"]) == (1, profile.precision)
        assert BuildOptions(**options["builder"]).workspace_mib == 2048
    assert find_profile("cuda:1") == find_profile("cuda").override(device="cuda:1")
    assert "builder" not in find_profile("cpu").runtime_options()


@pytest.mark.parametrize("name", GPU_PROFILES)
def test_without_a_gpu_each_says_why_not(name: str) -> None:
    if driver_is_here() and name != "titan-xp":
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeMissing) as caught, MeasuringProcess(find_profile(name)):
        pass
    assert "\n" not in str(caught.value)
    if name == "titan-xp":
        assert "no supported TensorRT runs on a Titan Xp" in caught.value.reason
    else:
        assert "no NVIDIA driver" in caught.value.reason
        assert "--device cpu" in caught.value.reason
        assert caught.value.fix.startswith("apt-get install nvidia-driver")
        # what is installed already is not to be installed again
        missing = PathFinder.find_spec(find_profile(name).runtime) is None  # importing tensorrt_rtx leaves a tensorrt
        assert ("pip install 'hwnas[tensorrt" in caught.value.fix) == missing
