"""ONNX Runtime on the CPU: threads explicit, spinning off, inputs and outputs bound once.

An operator is timed as it runs inside a network (`operator_graph`): what ONNX Runtime's own optimiser makes of it
there, without the layout conversions at the borders that a network does not pay.
"""

from __future__ import annotations

import math
import os

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from hwnas.measure.hardware import cpu_name
from hwnas.measure.onnx_models import op_to_onnx
from hwnas.measure.runtimes.base import KernelClock, Runtime, Session
from hwnas.measure.runtimes.onnx_kernels import OrtKernelClock
from hwnas.measure.runtimes.operator_graph import anchored, core_of
from hwnas.measure.runtimes.scratch import scratch_folder
from hwnas.measure.runtimes.timed import undisturbed_ms
from hwnas.ops import Op

MAX_REPEATS = 64
_PROVIDERS = ["CPUExecutionProvider"]
_TYPES = {"tensor(float)": np.float32}


class OnnxRuntime(Runtime):
    """The CPU through ONNX Runtime's default provider."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        ort.set_default_logger_severity(4)
        ort.disable_telemetry_events()

    def describe(self) -> dict[str, str | int]:
        return {
            "runtime": "onnxruntime",
            "runtime_version": ort.__version__,
            "device": cpu_name(),
            "cores": os.cpu_count() or 1,
            "threads": self.threads,
            "channel_block": self._channel_block(),
            "kernels": 1,
        }

    def _channel_block(self) -> int:
        """Channels in a block of the layout that its kernels prefer on this CPU; 0 where they have none."""
        for channels in (8, 16):  # a convolution of fewer channels than a block reads the plain layout
            model = op_to_onnx(Op.conv((channels, 4, 4), 16, kernel=1), blocked=())
            if any(node.op_type == "ReorderInput" for node in self._optimised(onnx.load_from_string(model)).graph.node):
                return channels
        return 0

    def load_network(self, model: bytes) -> Session:
        return OrtSession(ort.InferenceSession(model, self._options(optimise=True), providers=_PROVIDERS))

    def load_kernels(self, model: bytes) -> KernelClock:
        optimised = self._optimised(onnx.load_from_string(model)).SerializeToString()
        return OrtKernelClock(
            optimised, lambda: self._options(optimise=False), lambda session: OrtSession(session).run_once
        )

    def load_operator(self, model: bytes, min_run_ms: float) -> Session:
        proto, ends = anchored(model)
        core = core_of(self._optimised(proto), ends, self._shapes)
        single = self._open_core(core.model(1), 1)
        repeats = min(MAX_REPEATS, max(1, math.ceil(min_run_ms / max(1e-4, min(single.time_ms(5))))))
        return single if repeats == 1 else self._open_core(core.model(repeats), repeats)

    def _open_core(self, model: onnx.ModelProto, repeats: int) -> OrtSession:
        session = ort.InferenceSession(model.SerializeToString(), self._options(optimise=False), providers=_PROVIDERS)
        return OrtSession(session, repeats)

    def _options(self, *, optimise: bool) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # idle sessions whose threads spin would steal the cores from the one that is timed
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        return options

    def _optimised(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The graph that ONNX Runtime makes of `model`."""
        with scratch_folder() as folder:
            path = folder / "optimised.onnx"
            options = self._options(optimise=True)
            options.optimized_model_filepath = str(path)
            ort.InferenceSession(model.SerializeToString(), options, providers=_PROVIDERS)
            return onnx.load(path)

    def _shapes(self, model: onnx.ModelProto) -> list[tuple[int, ...]]:
        """Shapes of the outputs of an already optimised model, found by running it."""
        session = ort.InferenceSession(model.SerializeToString(), self._options(optimise=False), providers=_PROVIDERS)
        feeds = {node.name: np.zeros(node.shape, np.float32) for node in session.get_inputs()}
        return [value.shape for value in session.run(None, feeds)]


class OrtSession(Session):
    """A session with its tensors bound, so that a run allocates and copies nothing."""

    def __init__(self, session: ort.InferenceSession, repeats: int = 1) -> None:
        self.repeats = repeats
        self._session = session
        self._binding = session.io_binding()
        rng = np.random.default_rng(0)
        self._tensors = []
        for node in session.get_inputs():
            if node.type not in _TYPES:
                raise ValueError(f"input {node.name} is {node.type}: only float32 models can be measured")
            values = rng.standard_normal([_static(size) for size in node.shape]).astype(np.float32)
            tensor = ort.OrtValue.ortvalue_from_numpy(values)
            self._tensors.append(tensor)
            self._binding.bind_ortvalue_input(node.name, tensor)
        for node in session.get_outputs():
            self._binding.bind_output(node.name)
        session.run_with_iobinding(self._binding)
        # the first run found the shapes: from now on the outputs stay where they are
        for node, value in zip(session.get_outputs(), self._binding.get_outputs(), strict=True):
            self._tensors.append(value)
            self._binding.bind_ortvalue_output(node.name, value)

    def run_once(self) -> None:
        """One run of what is bound."""
        self._session.run_with_iobinding(self._binding)

    def time_ms(self, runs: int) -> list[float]:
        return undisturbed_ms(self.run_once, runs)

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        name = self._session.get_inputs()[0].name
        return np.asarray(self._session.run(None, {name: image})[0], dtype=np.float32)


def _static(size: int | str | None) -> int:
    """A dynamic dimension (a batch left open) is run as 1."""
    return size if isinstance(size, int) else 1
