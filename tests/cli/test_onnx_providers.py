"""ONNX Runtime's GPU providers from the command line, where they are not installed."""

from __future__ import annotations

import onnxruntime
import pytest
from command import Hwnas

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)

NAMES = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}


@pytest.mark.parametrize("name", NAMES)
def test_profile_is_one_line_that_says_what_to_install(hwnas: Hwnas, name: str) -> None:
    for how in (["--runtime", name], ["--device", name]):
        done = hwnas("profile", *how, "--space", "proxyless-tiny")
        assert done.code == 1
        assert f"{name} cannot be used here (the installed ONNX Runtime {onnxruntime.__version__} has no" in done.error
        assert NAMES[name] in done.error
        assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in done.error
        assert not list(hwnas.folder.glob("tables/*"))


def test_a_cpu_is_not_measured_with_it(hwnas: Hwnas) -> None:
    done = hwnas("profile", "--device", "cpu", "--runtime", "onnxruntime-cuda", "--space", "proxyless-tiny")
    assert done.code == 2
    assert "onnxruntime-cuda needs an NVIDIA GPU" in done.error


def test_devices_lists_them(hwnas: Hwnas) -> None:
    found = {entry["name"]: entry for entry in hwnas("devices", "--json").document}
    for name, provider in NAMES.items():
        assert (found[name]["runtime"], found[name]["available"]) == (name, False)
        assert provider in found[name]["reason"]
        assert "onnxruntime-gpu" in found[name]["fix"]
    assert found["cpu"]["available"]
