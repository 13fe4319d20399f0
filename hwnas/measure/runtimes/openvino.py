"""OpenVINO on the CPU: threads and precision explicit, one stream, no pinning, inputs bound once.

An operator is timed as it runs inside a network (`operator_fan`): many copies between neighbours, less what the same
graph takes without them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from hwnas.measure.hardware import cpu_name
from hwnas.measure.runtimes.base import Runtime, Session
from hwnas.measure.runtimes.operator_fan import fan
from hwnas.measure.runtimes.timed import DifferenceSession, visit_ms


@contextmanager
def _no_telemetry() -> Iterator[None]:
    """OpenVINO's telemetry writes to the home folder when it is imported, except where continuous integration runs."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


with _no_telemetry():
    import openvino as ov

MAX_REPEATS = 32
"""Building a graph takes the longer the more copies it has; so many outweigh the clock by far."""


class OpenVino(Runtime):
    """The CPU through OpenVINO's plugin.

    Raises:
        ValueError: OpenVINO does not use so many threads here.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._core = ov.Core()
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            # else it computes in bfloat16 where the CPU can
            "INFERENCE_PRECISION_HINT": "f32",
            # a pinned thread could not leave a core that other work has taken
            "ENABLE_CPU_PINNING": False,
        }
        value = ov.opset13.parameter([1], np.float32)
        nothing = ov.Model([ov.opset13.relu(value)], [value], "nothing")
        used = self._core.compile_model(nothing, "CPU", self._settings).get_property("INFERENCE_NUM_THREADS")
        if used != threads:
            raise ValueError(
                f"OpenVINO runs at most {used} threads here, not {threads}: ask for fewer, or 0 for all cores"
            )

    def describe(self) -> dict[str, str | int]:
        return {
            "runtime": "openvino",
            "runtime_version": ov.__version__.split("-")[0],
            "device": cpu_name(),
            "cores": os.cpu_count() or 1,
            "threads": self.threads,
        }

    def load_network(self, model: bytes) -> Session:
        return NetworkSession(self._compiled(model))

    def load_operator(self, model: bytes, min_run_ms: float) -> Session:
        single = self._open_fan(model, 1)
        repeats = min(MAX_REPEATS, max(1, math.ceil(min_run_ms / max(1e-4, min(single.time_ms(5))))))
        return single if repeats == 1 else self._open_fan(model, repeats)

    def _open_fan(self, model: bytes, copies: int) -> DifferenceSession:
        whole, rest = (self._compiled(fan(model, copies, operator=present)) for present in (True, False))
        return DifferenceSession(Bound(whole), Bound(rest), copies)

    def _compiled(self, model: bytes) -> ov.CompiledModel:
        read = self._core.read_model(model)
        for node in read.inputs:
            if node.element_type != ov.Type.f32:
                kind = node.element_type.get_type_name()
                raise ValueError(f"input {node.any_name} is {kind}: only float32 models can be measured")
        if read.is_dynamic():  # a dynamic dimension (a batch left open) is run as 1
            sizes = [
                [size.get_length() if size.is_static else 1 for size in node.partial_shape] for node in read.inputs
            ]
            read.reshape(dict(zip(read.inputs, map(ov.PartialShape, sizes), strict=True)))
        return self._core.compile_model(read, "CPU", self._settings)


class Bound:
    """A compiled model with its inputs bound: a run allocates and copies nothing."""

    def __init__(self, model: ov.CompiledModel) -> None:
        self._request = model.create_infer_request()
        rng = np.random.default_rng(0)
        self._inputs = [rng.standard_normal(node.shape).astype(np.float32) for node in model.inputs]
        for index, values in enumerate(self._inputs):
            self._request.set_input_tensor(index, ov.Tensor(values, shared_memory=True))

    def __call__(self) -> None:
        self._request.infer(share_outputs=True)


class NetworkSession(Session):
    """A whole network."""

    def __init__(self, model: ov.CompiledModel) -> None:
        self._model = model
        self._run = Bound(model)

    def time_ms(self, runs: int) -> list[float]:
        return visit_ms(self._run, runs)

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        # by a request of its own: what is bound for timing stays bound
        outputs = self._model.create_infer_request().infer([np.ascontiguousarray(image, np.float32)])
        return np.array(outputs[0], dtype=np.float32)
