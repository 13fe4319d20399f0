"""CUDA by its bindings: every call is one that the real package has, and what cannot be captured is not replayed.

No driver is here: the real `cuda.bindings` answers each call with an error code, and a wrong one with a TypeError. How
a capture ends is tested with a stand-in that keeps to what CUDA documents.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hwnas.measure.runtimes.cuda import BindingsCuda, NoGpu, driver_is_here

VALUES = np.zeros(4, np.float32)

CALLS: dict[str, Callable[[BindingsCuda, Any], object]] = {
    "allocate": lambda cuda, _: cuda.allocate(16),
    "free": lambda cuda, _: cuda.free(0),
    "free_bytes": lambda cuda, _: cuda.free_bytes(),
    "upload": lambda cuda, _: cuda.upload(4096, VALUES),
    "download": lambda cuda, _: cuda.download(VALUES, 4096),
    "synchronise": lambda cuda, _: cuda.synchronise(),
    "new_event": lambda cuda, _: cuda.new_event(),
    "free_event": lambda cuda, rt: cuda.free_event(rt.cudaEvent_t(0)),
    "record": lambda cuda, rt: cuda.record(rt.cudaEvent_t(0)),
    "elapsed_ms": lambda cuda, rt: cuda.elapsed_ms(rt.cudaEvent_t(0), rt.cudaEvent_t(0)),
    "capture": lambda cuda, _: cuda.capture(lambda: None),
    "close": lambda cuda, _: cuda.close(),
}


@pytest.fixture
def runtime() -> Any:
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("cuda.bindings is not installed here: pip install cuda-bindings")
    if driver_is_here():
        pytest.skip("a driver is here: the calls would be made; 'pytest -m gpu' makes them")
    return importlib.import_module("cuda.bindings.runtime")


def without_gpu(runtime: Any, stream: Any) -> BindingsCuda:
    cuda = BindingsCuda.__new__(BindingsCuda)
    cuda._rt, cuda._stream = runtime, stream
    return cuda


@pytest.mark.parametrize("name", CALLS)
def test_the_bindings_have_every_call(runtime: Any, name: str) -> None:
    cuda = without_gpu(runtime, runtime.cudaStream_t(0))
    assert cuda.stream == 0
    with pytest.raises(RuntimeError, match=r"^cuda[A-Za-z]+: cudaErrorInsufficientDriver$"):
        CALLS[name](cuda, runtime)


def test_the_bindings_have_what_is_asked_before_and_after_a_capture(runtime: Any) -> None:
    cuda = without_gpu(runtime, runtime.cudaStream_t(0))
    kinds = runtime.cudaDeviceAttr
    for call, *arguments in (
        ("cudaSetDevice", 0),
        ("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMajor, 0),
        ("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMinor, 0),
        ("cudaDeviceGetAttribute", kinds.cudaDevAttrMultiProcessorCount, 0),
        ("cudaDeviceGetAttribute", kinds.cudaDevAttrL2CacheSize, 0),
        ("cudaGetDeviceProperties", 0),
        ("cudaMemGetInfo",),
        ("cudaDeviceGetPCIBusId", 16, 0),
        ("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking),
        ("cudaStreamEndCapture", cuda._stream),
        ("cudaGraphInstantiate", runtime.cudaGraph_t(0), 0),
        ("cudaGraphLaunch", runtime.cudaGraphExec_t(0), cuda._stream),
        ("cudaGraphExecDestroy", runtime.cudaGraphExec_t(0)),
        ("cudaGraphDestroy", runtime.cudaGraph_t(0)),
        ("cudaGetLastError",),
    ):
        with pytest.raises(RuntimeError, match=f"{call}: cudaErrorInsufficientDriver"):
            cuda._call(call, *arguments)
    with pytest.raises(NoGpu, match="too old"):
        BindingsCuda(0)


class Code(IntEnum):
    GOOD = 0
    INVALIDATED = 901


class Capturing:
    """Streams and graphs of numbers; `log` is what was asked for."""

    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, *, ends: Code = Code.GOOD, instantiates: Code = Code.GOOD) -> None:
        self.log: list[str] = []
        self._ends, self._instantiates = ends, instantiates

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: object) -> tuple[Any, ...]:
            self.log.append(name)
            if name == "cudaStreamEndCapture":
                return self._ends, 5 if self._ends is Code.GOOD else None
            if name == "cudaGraphInstantiate":
                return self._instantiates, 6
            return (Code.GOOD,)

        return call


def test_what_is_captured_is_replayed() -> None:
    library = Capturing()
    replay = without_gpu(library, 1).capture(lambda: library.log.append("work"))
    assert replay is not None
    replay()
    replay.close()
    replay.close()
    assert library.log == [
        "cudaStreamBeginCapture", "work", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy",
        "cudaGetLastError", "cudaGraphLaunch", "cudaGraphExecDestroy",
    ]  # fmt: skip


def refuses() -> None:
    raise RuntimeError("TensorRT did not run the engine")


@pytest.mark.parametrize(
    ("library", "enqueue", "graphs"),
    [
        (Capturing(ends=Code.INVALIDATED), refuses, 0),
        (Capturing(), refuses, 1),
        (Capturing(ends=Code.INVALIDATED), lambda: None, 0),
        (Capturing(instantiates=Code.INVALIDATED), lambda: None, 1),
    ],
    ids=["refused and invalid", "refused", "invalid", "too much for a graph"],
)
def test_what_cannot_be_captured_is_enqueued(library: Capturing, enqueue: Callable[[], None], graphs: int) -> None:
    assert without_gpu(library, 1).capture(enqueue) is None
    assert "cudaStreamEndCapture" in library.log  # else nothing could be done with the stream any more
    assert library.log.count("cudaGraphDestroy") == graphs
    assert library.log[-1] == "cudaGetLastError"


def test_what_breaks_off_ends_the_capture() -> None:
    library = Capturing()
    with pytest.raises(KeyboardInterrupt):
        without_gpu(library, 1).capture(lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert library.log[-1] == "cudaStreamEndCapture"
