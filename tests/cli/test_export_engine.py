"""`hwnas export --format engine`: engines built here, for GPUs that are not here, by the real `tensorrt_rtx`."""

from __future__ import annotations

import ctypes
import importlib.util
import json
from pathlib import Path

import onnx
import pytest
from command import Hwnas
from quick import tiny_network

from hwnas.measure.onnx_models import network_to_onnx
from hwnas.measure.precision import to_int8
from hwnas.measure.runtimes import INSTALL

HERE = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not HERE, reason=f"tensorrt_rtx is not installed here: {INSTALL['tensorrt_rtx']}")


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def tiny_file(path: Path, *, batch: int = 2, left_open: bool = False) -> Path:
    """The tiny network as an ONNX file, whose batch may be left open."""
    model = onnx.load_from_string(network_to_onnx(tiny_network(), batch_size=batch))
    if left_open:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    path.write_bytes(model.SerializeToString())
    return path


@needs_rtx
def test_a_net_of_the_zoo_becomes_an_engine_file(hwnas: Hwnas) -> None:
    args = ("--capability", "SM86", "--precision", "fp16", "--batch", "1")
    done = hwnas("export", "zoo:mobilenet-v2", "--format", "engine", *args, "--out", "new/m.engine", "--json")
    assert done.code == 0, done.stderr
    said = json.loads(done.stdout)
    file = hwnas.folder / "new/m.engine"
    assert said["size_bytes"] == file.stat().st_size
    assert 3.5e6 * 2 <= file.stat().st_size < 3.5e6 * 4  # its 3.5 million weights take two bytes each
    assert (said["library"], said["capability"], said["precision"], said["batch_size"]) == (
        "tensorrt_rtx", "SM86", "fp16", 1,
    )  # fmt: skip
    assert said["max_rel_diff"] < 1e-4
    assert said["layers"] >= 52  # its convolutions; none can run inside another one
    if not has_driver():  # the library reads it up to where it asks the GPU
        assert said["not_loaded"] == "no NVIDIA driver"
    assert [path.name for path in file.parent.iterdir()] == ["m.engine"]
    assert "using --device rtx (default)" in done.stderr


@needs_rtx
def test_an_onnx_file_becomes_an_engine_with_defaults_that_are_said(hwnas: Hwnas) -> None:
    net = tiny_file(hwnas.folder / "net.onnx", left_open=True)
    done = hwnas("export", net, "--out", "net.engine", "--json")
    assert done.code == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["format"], said["batch_size"], said["input_shape"]) == ("engine", 32, [3, 8, 8])
    assert said["precision"] == "fp32"
    assert said["max_rel_diff"] is None
    for option in ("--device rtx", "--precision fp32", "--batch 32", "--capability"):
        assert f"using {option}" in done.stderr
    if not has_driver():
        assert said["capability"] == "SM89"


@needs_rtx
def test_a_quantised_file_stays_as_it_is(hwnas: Hwnas) -> None:
    net = tiny_file(hwnas.folder / "net.onnx")
    (hwnas.folder / "int8.onnx").write_bytes(to_int8(net.read_bytes()))
    done = hwnas("export", "int8.onnx", "--out", "net.engine", "--precision", "int8", "--capability", "SM89")
    assert done.code == 0, done.stderr
    assert "random images" not in done.stderr
    again = hwnas("export", net, "--out", "net2.engine", "--precision", "int8", "--capability", "SM89")
    assert again.code == 0, again.stderr
    assert "random images" in again.stderr


@needs_rtx
@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["net.onnx", "--batch", "3"], 2, "is for batches of 2, not 3"),
        (["net.onnx", "--capability", "SM1"], 2, "cannot build for SM1: one of SM"),
        (["net.onnx", "--precision", "fp8"], 2, "'fp8'"),
        (["net.onnx", "--device", "cpu"], 2, "has no engines: give --device rtx or cuda"),
        (["net.onnx", "--device", "titan-xp"], 1, "TensorRT"),
        (["broken.onnx"], 1, "broken.onnx"),
        (["space:proxyless"], 2, "is a whole space"),
        (["zoo:mobilenet-v2", "--format", "onnx", "--precision", "fp16"], 2, "--precision is for --format engine"),
    ],
)
def test_what_cannot_be_built_is_one_line_and_no_file(hwnas: Hwnas, args: list[str], code: int, says: str) -> None:
    tiny_file(hwnas.folder / "net.onnx")
    (hwnas.folder / "broken.onnx").write_bytes(b"garbage")
    done = hwnas("export", *args, "--out", "net.engine")
    assert (done.code, says in done.error) == (code, True), done.stderr
    assert done.error.count("\n") <= 1
    assert not (hwnas.folder / "net.engine").exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed here")
def test_that_tensorrt_is_not_installed_is_said_with_the_command_that_mends_it(hwnas: Hwnas) -> None:
    net = tiny_file(hwnas.folder / "net.onnx")
    done = hwnas("export", net, "--device", "cuda", "--out", "net.engine")
    assert done.code == 1
    assert done.error.count("\n") <= 1
    assert "tensorrt cannot be imported here" in done.error
    assert INSTALL["tensorrt"] in done.error
