"""ONNX Runtime's providers: never a CPU's figures under a GPU's name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from quick import tiny_network

from hwnas.measure.onnx_models import network_to_onnx, op_to_onnx
from hwnas.measure.runtimes import INSTALL, RUNTIMES
from hwnas.measure.runtimes.onnx_providers import CPU, PROVIDERS
from hwnas.measure.runtimes.onnx_runtime import OnnxRuntime
from hwnas.ops import Op

CUDA, TENSORRT = PROVIDERS["onnxruntime-cuda"], PROVIDERS["onnxruntime-tensorrt"]

no_cuda = pytest.mark.skipif(CUDA.name in ort.get_available_providers(), reason="this ONNX Runtime has CUDA")


def test_each_is_opened_with_what_is_beneath_it() -> None:
    assert PROVIDERS["onnxruntime"].chain(3) == [(CPU, {})]
    cuda = ("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "3"})
    assert CUDA.chain(3) == [cuda, (CPU, {})]
    assert TENSORRT.chain(3) == [("TensorrtExecutionProvider", {"device_id": "3"}), cuda, (CPU, {})]
    for name, provider in PROVIDERS.items():
        assert provider.runtime == name
        assert provider.name in ort.get_all_providers()
        assert provider.name in provider.library or provider.library or provider.memory == "cpu"


@no_cuda
@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_an_onnx_runtime_without_it_is_an_import_that_fails(name: str) -> None:
    with pytest.raises(ImportError, match=f"the installed ONNX Runtime .* has no {PROVIDERS[name].name}"):
        RUNTIMES[name]({"threads": 1, "gpu": 0})
    assert "onnxruntime-gpu" in INSTALL[name]


def test_a_session_that_fell_back_is_refused() -> None:
    """What ONNX Runtime makes of a GPU's provider that it cannot load: a session on the CPU."""
    session = ort.InferenceSession(network_to_onnx(tiny_network()), providers=[CPU])
    assert PROVIDERS["onnxruntime"].check(session) is session
    with pytest.raises(RuntimeError, match="CUDAExecutionProvider does not run it, CPUExecutionProvider would"):
        CUDA.check(session)


@no_cuda
def test_why_a_library_is_not_loaded() -> None:
    assert CUDA.library in CUDA.why_not()
    assert "No such file" in CUDA.why_not()


def test_an_unread_graph_and_a_read_one_agree() -> None:
    """The same operators both ways, on the CPU, in the plain layout: a provider's `graph` changes how, not what."""
    cpu = PROVIDERS["onnxruntime"]
    read, unread = OnnxRuntime(1, cpu), OnnxRuntime(1, replace(cpu, graph=False, kernels=False))
    assert unread.describe() == {**read.describe(), "kernels": 0}
    for op in (Op.conv((32, 28, 28), 32, kernel=3, norm=True), Op.conv((64, 28, 28), 64, kernel=1, norm=True)):
        found = []
        for runtime in (read, unread):
            session = runtime.load_operator(op_to_onnx(op), 0.5)
            found.append(min(session.time_ms(10)) / session.repeats)
        assert 1 / 3 < found[0] / found[1] < 3  # a busy machine; a copy too many or too few would be 2 at least
    with pytest.raises(ValueError, match="cannot time kernels"):
        unread.load_kernels(network_to_onnx(tiny_network()))
    image = np.ones((1, 3, 8, 8), np.float32)
    model = network_to_onnx(tiny_network())
    np.testing.assert_array_equal(read.load_network(model).run(image), unread.load_network(model).run(image))
