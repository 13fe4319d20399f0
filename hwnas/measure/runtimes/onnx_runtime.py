"""ONNX Runtime: threads explicit, spinning off, inputs and outputs bound once, on the CPU or with another provider.

An operator is timed as it runs inside a network (`operator_graph`): what ONNX Runtime's own optimiser makes of it
there, without the layout conversions at the borders that a network does not pay. Of a provider that keeps its graph to
itself it is the difference of two graphs (`operator_fan`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from hwnas.measure.onnx_models import op_to_onnx
from hwnas.measure.outlines import is_outline, weights_of
from hwnas.measure.runtimes.base import KernelClock, Runtime, Session
from hwnas.measure.runtimes.onnx_kernels import OrtKernelClock
from hwnas.measure.runtimes.onnx_providers import PROVIDERS, Provider, options_of
from hwnas.measure.runtimes.operator_fan import fan
from hwnas.measure.runtimes.operator_graph import anchored, core_of
from hwnas.measure.runtimes.scratch import scratch_folder
from hwnas.measure.runtimes.timed import DifferenceSession, long_visit_ms, undisturbed_ms, visit_ms
from hwnas.ops import Op

MAX_REPEATS = 64
_TYPES = {"tensor(float)": np.float32}


class OnnxRuntime(Runtime):
    """A device through one of ONNX Runtime's providers.

    Args:
        threads: of the CPU, inside an operator.
        provider: which.
        gpu: the number of the GPU, where the provider has one.

    Raises:
        ImportError: the provider is not installed, or does not work here; the message says why.
    """

    def __init__(self, threads: int, provider: Provider = PROVIDERS["onnxruntime"], gpu: int = 0) -> None:
        self.threads = threads
        self._provider = provider
        self._gpu = gpu
        self.takes_outlines = provider.memory == "cpu"
        ort.set_default_logger_severity(4)
        ort.disable_telemetry_events()
        self._device = provider.find(gpu)
        if provider.memory != "cpu":
            try:
                self.load_network(op_to_onnx(Op.conv((8, 8, 8), 8, kernel=3), blocked=())).time_ms(1)
            except Exception as error:  # of many types; each means that it does not work here
                why = provider.why_not() or " ".join(str(error).split())[:200]
                raise ImportError(f"{provider.name} does not start: {why}") from None

    def describe(self) -> dict[str, str | int]:
        return {
            "runtime": self._provider.runtime,
            "runtime_version": ort.__version__,
            "device": self._device,
            "cores": os.cpu_count() or 1,
            "threads": self.threads,
            "channel_block": self._channel_block(),
            "kernels": int(self._provider.kernels),
        }

    def _channel_block(self) -> int:
        """Channels in a block of the layout that its kernels prefer on this CPU; 0 where they have none."""
        if self._provider.memory != "cpu":
            return 0
        for channels in (8, 16):  # a convolution of fewer channels than a block reads the plain layout
            model = op_to_onnx(Op.conv((channels, 4, 4), 16, kernel=1), blocked=())
            if any(node.op_type == "ReorderInput" for node in self._optimised(onnx.load_from_string(model)).graph.node):
                return channels
        return 0

    def load_network(self, model: bytes) -> OrtSession:
        """A whole network; an outline's weights never become a file's bytes."""
        options = self._options(optimise=True)
        weights = _weights(model)
        options.add_external_initializers(list(weights), list(weights.values()))
        session = self._session(model, options)  # copies what it keeps of the weights; until then they have to live
        return OrtSession(session, memory=self._provider.memory, gpu=self._gpu, whole=True)

    def load_kernels(self, model: bytes) -> KernelClock:
        if not self._provider.kernels:
            return super().load_kernels(model)
        optimised = self._optimised(onnx.load_from_string(model)).SerializeToString()
        return OrtKernelClock(
            optimised, lambda: self._options(optimise=False), lambda session: self._bound(session).run_once
        )

    def load_operator(self, model: bytes, min_run_ms: float) -> Session:
        open_ = self._core_opener(model) if self._provider.graph else self._fan_opener(model)
        single = open_(1)
        repeats = min(MAX_REPEATS, max(1, math.ceil(min_run_ms / max(1e-4, min(single.time_ms(5))))))
        return single if repeats == 1 else open_(repeats)

    def _core_opener(self, model: bytes) -> Callable[[int], Session]:
        """What opens so many copies of what the optimiser made of the operator."""
        proto, ends = anchored(model)
        core = core_of(self._optimised(proto), ends, self._shapes)

        def opened(repeats: int) -> Session:
            built = core.model(repeats).SerializeToString()
            return self._bound(self._session(built, self._options(optimise=False)), repeats)

        return opened

    def _fan_opener(self, model: bytes) -> Callable[[int], Session]:
        """What opens so many copies of the operator between neighbours, and the neighbours alone."""

        def opened(repeats: int) -> Session:
            whole, rest = (self.load_network(fan(model, repeats, operator=present)) for present in (True, False))
            return DifferenceSession(whole.run_once, rest.run_once, repeats)

        return opened

    def _session(self, model: bytes, options: ort.SessionOptions) -> ort.InferenceSession:
        session = ort.InferenceSession(model, options, **options_of(self._provider, self._gpu))
        session._model_bytes = None  # else a second copy of the weights stays, for an open anew that nobody asks for
        return self._provider.check(session)

    def _bound(self, session: ort.InferenceSession, repeats: int = 1) -> OrtSession:
        return OrtSession(session, repeats, self._provider.memory, self._gpu)

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
            self._session(model.SerializeToString(), options)
            return onnx.load(path)

    def _shapes(self, model: onnx.ModelProto) -> list[tuple[int, ...]]:
        """Shapes of the outputs of an already optimised model, found by running it."""
        session = self._session(model.SerializeToString(), self._options(optimise=False))
        feeds = {node.name: np.zeros(node.shape, np.float32) for node in session.get_inputs()}
        return [value.shape for value in session.run(None, feeds)]


def _weights(model: bytes) -> dict[str, ort.OrtValue]:
    """What an outline describes, by the name of the initialiser."""
    if not is_outline(model):
        return {}
    made = weights_of(onnx.load_from_string(model))
    return {tensor.name: ort.OrtValue.ortvalue_from_numpy(values) for tensor, values in made}


class OrtSession(Session):
    """A session with its tensors bound where the device has its memory, so that a run allocates and copies nothing.

    A run of a session waits for the device, a GPU too. A `whole` network is warm before it is timed.
    """

    def __init__(
        self, session: ort.InferenceSession, repeats: int = 1, memory: str = "cpu", gpu: int = 0, *, whole: bool = False
    ) -> None:
        self.repeats = repeats
        self._time_ms = undisturbed_ms if not whole else visit_ms if memory == "cpu" else long_visit_ms
        self._session = session
        self._binding = session.io_binding()
        rng = np.random.default_rng(0)
        self._tensors = []
        for node in session.get_inputs():
            if node.type not in _TYPES:
                raise ValueError(f"input {node.name} is {node.type}: only float32 models can be measured")
            values = rng.standard_normal([_static(size) for size in node.shape]).astype(np.float32)
            tensor = ort.OrtValue.ortvalue_from_numpy(values, memory, gpu)
            self._tensors.append(tensor)
            self._binding.bind_ortvalue_input(node.name, tensor)
        for node in session.get_outputs():
            self._binding.bind_output(node.name, memory, gpu)
        session.run_with_iobinding(self._binding)
        # the first run found the shapes: from now on the outputs stay where they are
        for node, value in zip(session.get_outputs(), self._binding.get_outputs(), strict=True):
            self._tensors.append(value)
            self._binding.bind_ortvalue_output(node.name, value)

    def run_once(self) -> None:
        """One run of what is bound."""
        self._session.run_with_iobinding(self._binding)

    def time_ms(self, runs: int) -> list[float]:
        return self._time_ms(self.run_once, runs)

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        name = self._session.get_inputs()[0].name
        return np.asarray(self._session.run(None, {name: image})[0], dtype=np.float32)


def _static(size: int | str | None) -> int:
    """A dynamic dimension (a batch left open) is run as 1."""
    return size if isinstance(size, int) else 1
