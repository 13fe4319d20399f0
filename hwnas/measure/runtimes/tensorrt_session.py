"""Loaded engines: bound, run and timed by CUDA events. Nothing in this file has run on a GPU yet.

A run is the enqueue of one inference, or the replay of a CUDA graph of it where the engine can be captured. No copy
between host and device is inside. Several copies of the inputs, together larger than the second level cache, take
turns: in deployment a new batch is not in the cache either.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from hwnas.measure.runtimes.base import BUILDS_MS, DISTURBED, KernelClock, KernelTime, Session
from hwnas.measure.runtimes.cuda import Cuda, Replay, numpy_type, rotation
from hwnas.measure.runtimes.gpu_state import GpuWatch, settle, undisturbed
from hwnas.measure.runtimes.tensorrt_build import BuildError
from hwnas.measure.runtimes.tensorrt_layers import kernel_times, layers_of_inspector
from hwnas.measure.runtimes.tensorrt_library import trt
from hwnas.measure.runtimes.tensorrt_log import last_complaint, listen, logger

MAX_REPEATS = 64


class Loaded:
    """An engine on the GPU with its tensors bound.

    Raises:
        BuildError: the library does not load it: another version's, or another GPU's.
    """

    def __init__(self, engine: bytes, cuda: Cuda) -> None:
        self._cuda = cuda
        said = listen()
        self._runtime = trt.Runtime(logger())
        loaded = self._runtime.deserialize_cuda_engine(engine)
        if loaded is None:
            raise BuildError(f"the engine does not load: {said.reason}")
        self.engine: trt.ICudaEngine = loaded
        context = self.engine.create_execution_context()
        if context is None:
            raise BuildError(f"the engine has no room to run: {said.reason}")
        self.context: trt.IExecutionContext = context
        self.inputs: dict[str, NDArray[Any]] = {}
        self.outputs: dict[str, NDArray[Any]] = {}
        self._bound: dict[str, int] = {}
        self._copies: list[dict[str, int]] = []
        self._turn = 0
        try:
            self._bind()
        except BaseException:
            self.release()
            raise

    def _bind(self) -> None:
        rng = np.random.default_rng(0)
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        given = [name for name in names if self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        for name in given:
            sizes: Any = self.engine.get_tensor_shape(name)
            shape: Any = tuple(1 if size < 0 else int(size) for size in sizes)
            if not self.context.set_input_shape(name, shape):
                raise BuildError(f"the engine does not take {name} as {shape}{last_complaint()}")
            self.inputs[name] = rng.standard_normal(shape).astype(self._type(name))
        for name in names:
            if name not in given:  # its shape follows from those of the inputs, which have to be known first
                sizes = self.context.get_tensor_shape(name)
                self.outputs[name] = np.zeros(tuple(map(int, sizes)), self._type(name))
        copies = rotation(sum(values.nbytes for values in self.inputs.values()), self._cuda.gpu.l2_bytes)
        for _ in range(copies):
            addresses: dict[str, int] = {}
            self._copies.append(addresses)  # before it is filled: what fails half way is given back too
            for name, values in self.inputs.items():
                addresses[name] = self._cuda.allocate(values.nbytes)
                self._cuda.upload(addresses[name], values)
        for name, values in self.outputs.items():
            self._bound[name] = self._cuda.allocate(values.nbytes)
            self._set_address(name, self._bound[name])
        self.take(0)

    def _type(self, name: str) -> np.dtype[Any]:
        return numpy_type(self.engine.get_tensor_dtype(name).name)

    def _set_address(self, name: str, address: int) -> None:
        if not self.context.set_tensor_address(name, address):
            raise RuntimeError(f"TensorRT does not take the memory of {name}{last_complaint()}")

    def take(self, copy: int) -> None:
        """Binds the copy number `copy` of the inputs."""
        for name, address in self._copies[copy % len(self._copies)].items():
            self._set_address(name, address)

    def next_copy(self) -> None:
        """Binds the next copy of the inputs."""
        self._turn += 1
        self.take(self._turn)

    @property
    def copies(self) -> int:
        """How many copies of the inputs take turns."""
        return len(self._copies)

    def enqueue(self) -> None:
        """Puts one inference into the stream.

        Raises:
            RuntimeError: TensorRT refuses.
        """
        if not self.context.execute_async_v3(self._cuda.stream):
            raise RuntimeError(f"TensorRT did not run the engine{last_complaint()}")

    def enqueue_next(self) -> None:
        """The same, on the next copy of the inputs."""
        self.next_copy()
        self.enqueue()

    def compute(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output for a batch of images."""
        self.take(0)
        name, values = next(iter(self.inputs.items()))
        given = np.ascontiguousarray(image.reshape(values.shape), values.dtype)
        self._cuda.upload(self._copies[0][name], given)
        self.enqueue()
        output, result = next(iter(self.outputs.items()))
        found = np.empty_like(result)
        self._cuda.download(found, self._bound[output])
        return found.astype(np.float32)

    def layers_json(self) -> str:
        """What the engine inspector says of its layers."""
        inspector = self.engine.create_engine_inspector()
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def release(self) -> None:
        """Gives the memory back, of tensors and of the engine: its context goes first, which points into it."""
        self._cuda.synchronise()  # nothing may still run in what is given back
        for address in (*self._bound.values(), *(address for copy in self._copies for address in copy.values())):
            self._cuda.free(address)
        self._bound, self._copies = {}, []
        for name in ("context", "engine", "_runtime"):
            if hasattr(self, name):
                delattr(self, name)


class EngineSession(Session):
    """One or more builds of a model. A sample is the mean over the builds of one run each.

    Attributes:
        spread: relative half distance between the fastest and the slowest build, of their medians, when last timed.
        state: of the GPU after it was last timed, with the spread: what is stored beside the samples.
    """

    def __init__(self, builds: Sequence[Loaded], cuda: Cuda, watch: GpuWatch, *, min_run_ms: float = 0.0) -> None:
        self._builds, self._cuda, self._watch = builds, cuda, watch
        self._events: list[Any] = []
        self._graphs: list[Replay] = []
        self._turn = 0
        self.spread = 0.0
        self.state: Mapping[str, Any] = {}
        self.repeats = 1
        try:
            for _ in range(2):
                self._events.append(cuda.new_event())
            self._replays = [self._captured(build) for build in builds]
            if min_run_ms > 0:
                single = min(self.times(0, 5))
                self.repeats = min(MAX_REPEATS, max(1, math.ceil(min_run_ms / max(1e-4, single))))
        except BaseException:
            self.close()
            raise

    def _captured(self, build: Loaded) -> Sequence[Callable[[], object]]:
        """For each copy of the inputs what runs one inference on it: the replay of a graph, else the enqueue."""
        replays: list[Replay] = []
        for copy in range(build.copies):
            build.take(copy)
            build.enqueue()  # TensorRT puts off what a new shape or address asks for until then: not into a graph
            self._cuda.synchronise()
            capturable = build.context.is_stream_capturable(self._cuda.stream) if _says_capturable(build) else True
            replay = self._cuda.capture(build.enqueue) if capturable else None
            if replay is None:  # the engine cannot be captured: no copy can
                return [build.enqueue_next]
            self._graphs.append(replay)
            replays.append(replay)
        for replay in replays:  # the first launch of a graph also brings it to the GPU
            replay()
        self._cuda.synchronise()
        return replays

    def times(self, build: int, runs: int) -> list[float]:
        """Durations of `runs` runs of one build in ms, whatever the GPU does meanwhile."""
        replays = self._replays[build]
        start, end = self._events
        samples = []
        for _ in range(runs):
            self._cuda.record(start)
            for _ in range(self.repeats):
                # goes on where it stopped: begun anew each time, the first copies would be in the cache
                self._turn = (self._turn + 1) % len(replays)
                replays[self._turn]()
            self._cuda.record(end)
            samples.append(self._cuda.elapsed_ms(start, end))
        return samples

    def time_ms(self, runs: int) -> list[float]:
        times, reasons = [], []
        for build in range(len(self._builds)):
            settle(lambda build=build: self.times(build, 1), self._watch.read)  # type: ignore[misc]
            samples, state, why = undisturbed(lambda build=build: self.times(build, runs), self._watch.read)  # type: ignore[misc]
            times.append(samples)
            reasons += [why] if why else []
        medians = [float(np.median(samples)) for samples in times]
        self.spread = (max(medians) - min(medians)) / (max(medians) + min(medians))
        self.state = {**state.to_json(), BUILDS_MS: medians, DISTURBED: ", ".join(dict.fromkeys(reasons))}
        return [float(sample) for sample in np.mean(times, axis=0)]

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._builds[0].compute(image)

    def close(self) -> None:
        self._cuda.synchronise()
        for graph in self._graphs:  # before the memory that they point to
            graph.close()
        for build in self._builds:
            build.release()
        for event in self._events:
            self._cuda.free_event(event)
        self._builds, self._replays, self._graphs, self._events = (), [], [], []


def _says_capturable(build: Loaded) -> bool:
    """`tensorrt_rtx` can say whether a context can be captured; `tensorrt` has no such question."""
    return hasattr(build.context, "is_stream_capturable")


class EngineClock(KernelClock):
    """A network whose layers are timed by TensorRT's profiler, in runs apart from those of the whole.

    The engine is loaded twice: one that a profiler was given to is never timed without it again.

    Attributes:
        state: of the GPU after they were last timed.
    """

    def __init__(self, engine: bytes, cuda: Cuda, watch: GpuWatch) -> None:
        self._cuda, self._watch = cuda, watch
        self.state: Mapping[str, Any] = {}
        self._whole = EngineSession([Loaded(engine, cuda)], cuda, watch)
        self._times: dict[str, list[float]] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(self._whole.close)
            self._build = Loaded(engine, cuda)
            undo.callback(self._build.release)
            self._layers = layers_of_inspector(self._build.layers_json())
            self._profiler = _new_profiler(self._times)  # TensorRT keeps no reference
            self._build.context.profiler = self._profiler
            undo.pop_all()

    def time_kernels(self, runs: int) -> list[KernelTime]:
        settle(lambda: self._whole.times(0, 1), self._watch.read)
        # one stretch of both: what they differ by is a term, and the clock must not be in it
        whole, state, why = undisturbed(lambda: self._both(runs), self._watch.read)
        self.state = {**state.to_json(), DISTURBED: why}
        times = {name: samples[-runs:] for name, samples in self._times.items() if len(samples) >= runs}
        return kernel_times(self._layers, times, whole)

    def _both(self, runs: int) -> list[float]:
        """Durations of the whole without the profiler; those of layers are in `_times` afterwards."""
        whole = self._whole.times(0, runs)
        self._times.clear()
        for _ in range(runs + runs // 3):
            self._build.enqueue_next()
            self._cuda.synchronise()
        return whole

    def close(self) -> None:
        self._whole.close()
        self._build.release()


def _new_profiler(times: dict[str, list[float]]) -> trt.IProfiler:
    """A profiler of the chosen library, which adds what it is told, in ms, to `times` by layer name."""

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            super().__init__()

        def report_layer_time(self, layer_name: str, ms: SupportsFloat) -> None:
            times.setdefault(layer_name, []).append(float(ms))

    return Profiler()
