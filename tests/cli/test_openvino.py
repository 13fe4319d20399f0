"""OpenVINO from the command line: beside ONNX Runtime, never mixed with it, and absent with one clear line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from command import Hwnas
from quick import tiny_network

from hwnas.measure.onnx_models import network_to_onnx

INSTALL = "pip install 'hwnas[openvino]'"

installed = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason=f"openvino is not installed here: {INSTALL}"
)

QUICK = """
format = 1
name = "quick-openvino"
runtime = "{runtime}"
device = "cpu"

[timing]
min_passes = 2
max_passes = 2
runs = 2
min_run_ms = 0.01
"""


@pytest.fixture
def without(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine on which OpenVINO is not installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "openvino.py").write_text('raise ModuleNotFoundError("No module named \'openvino\'", name="openvino")\n')
    return {"PYTHONPATH": str(folder)}


def test_devices_says_what_installs_it(hwnas: Hwnas, without: dict[str, str]) -> None:
    found = {entry["name"]: entry for entry in hwnas("devices", "--json", env=without).document}
    assert found["openvino"]["available"] is False
    assert "No module named 'openvino'" in found["openvino"]["reason"]
    assert found["openvino"]["fix"] == INSTALL
    assert found["cpu"]["available"] is True
    assert INSTALL in " ".join(hwnas("devices", env=without).stdout.split())


@pytest.mark.parametrize("how", [["--device", "openvino"], ["--device", "cpu", "--runtime", "openvino"]])
def test_without_it_profile_is_one_line(hwnas: Hwnas, without: dict[str, str], how: list[str]) -> None:
    done = hwnas("profile", *how, "--space", "proxyless-tiny", env=without)
    assert done.code == 1
    assert "openvino" in done.error
    assert INSTALL in done.error
    assert not list(hwnas.folder.glob("tables/*"))


@installed
def test_devices_shows_both(hwnas: Hwnas) -> None:
    found = {entry["name"]: entry for entry in hwnas("devices", "--json").document}
    for name, runtime in (("cpu", "onnxruntime"), ("openvino", "openvino")):
        assert (found[name]["runtime"], found[name]["available"], found[name]["fix"]) == (runtime, True, "")
        assert found[name]["reason"].startswith(f"{runtime} ")
    assert hwnas("devices", "--self-test", "openvino", "--json").document[0]["reference_ms"] > 0


@installed
def test_profile_and_predict(hwnas: Hwnas) -> None:
    (hwnas.folder / "p.toml").write_text(QUICK.format(runtime="openvino"))
    (hwnas.folder / "net.onnx").write_bytes(network_to_onnx(tiny_network(size=32)))
    made = hwnas("profile", "--device", "p.toml", "--model", "net.onnx", "--space", "none", "--json").document
    assert made["runtime"].startswith("openvino 20")
    assert (made["measured"], made["failed"]) == (3, 0)
    assert hwnas("predict", "net.onnx", "--device", "p.toml", "--json").document["latency_ms"] > 0


@installed
def test_tables_of_two_runtimes_are_never_mixed(hwnas: Hwnas) -> None:
    for runtime in ("openvino", "onnxruntime"):
        (hwnas.folder / f"{runtime}.toml").write_text(QUICK.format(runtime=runtime))
    (hwnas.folder / "net.onnx").write_bytes(network_to_onnx(tiny_network()))
    profiled = hwnas("profile", "--device", "openvino.toml", "--model", "net.onnx", "--space", "none", "--lut", "o.lut")
    assert profiled.code == 0, profiled.stderr
    for command in ("profile --model net.onnx --space none", "verify net.onnx", "predict net.onnx"):
        refused = hwnas(*command.split(), "--device", "onnxruntime.toml", "--lut", "o.lut")
        assert refused.code == 1
        assert "openvino" in refused.error
        assert "onnxruntime" in refused.error
    # without being named it is no table of that profile, although the profiles bear one name
    (hwnas.folder / "tables").mkdir()
    (hwnas.folder / "o.lut").rename(hwnas.folder / "tables/o.lut")
    none = hwnas("predict", "net.onnx", "--device", "onnxruntime.toml", "--json")
    assert none.document["latency_ms"] is None
    assert "hwnas profile --device onnxruntime.toml" in none.stderr


@installed
def test_the_runtime_option_and_verify(hwnas: Hwnas) -> None:
    (hwnas.folder / "p.toml").write_text(QUICK.format(runtime="onnxruntime"))
    (hwnas.folder / "net.onnx").write_bytes(network_to_onnx(tiny_network()))
    alone = ("--model", "net.onnx", "--space", "none")
    done = hwnas("profile", "--device", "p.toml", "--runtime", "openvino", *alone, "--json")
    assert done.document["lut"] == "tables/quick-openvino-openvino-fp32-b1-t1.lut"
    # a budget that is clear at once keeps the measuring short
    verifying = ["verify", "net.onnx", "--device", "p.toml", "--runtime", "openvino", "--latency", "1s", "--json"]
    verified = hwnas(*verifying).document
    assert verified["lut"] == done.document["lut"]
    assert verified["runtime"] == "openvino"
    assert verified["results"][0]["measured_ms"] > 0
    assert verified["results"][0]["within_budget"] is True
