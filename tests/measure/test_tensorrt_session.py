"""Loaded engines give back what they took, and rotate their inputs: the bookkeeping, with a device of host memory.

No GPU and no TensorRT stands behind these tests: `HostCuda` keeps the contract of `hwnas.measure.runtimes.cuda.Cuda` in
host memory and counts what is held, `Engine` that of an engine. What they cannot tell is whether a GPU does the same:
`pytest -m gpu` does.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hwnas.measure.runtimes import gpu_state, tensorrt_library
from hwnas.measure.runtimes.base import BUILDS_MS, DISTURBED, WHOLE, KernelClock, Runtime, Session
from hwnas.measure.runtimes.cuda import Cuda, Gpu, Replay
from hwnas.measure.runtimes.gpu_state import SETTLED, GpuState, GpuWatch
from hwnas.measure.runtimes.tensorrt import TensorRt
from hwnas.measure.runtimes.tensorrt_build import BuildError
from hwnas.measure.runtimes.tensorrt_session import EngineClock, EngineSession, Loaded
from hwnas.measure.worker import Worker, serve

SHAPE = (2, 3)
INPUT_BYTES = 4 * 2 * 3


class HostCuda(Cuda):
    """Memory, events and graphs in host memory. `held` is what was not given back; `clock` moves with each inference.

    Args:
        copies: of the inputs, which the size of the cache asks for.
        captures: whether graphs can be made.
        fails_at: number of the allocation that fails.
    """

    def __init__(self, copies: int = 3, *, captures: bool = True, fails_at: int = -1) -> None:
        self.gpu = Gpu("Host", "SM89", 1, (copies - 1) * INPUT_BYTES, 1 << 20, "0000:00:00.0")
        self.held: dict[object, Any] = {}
        self.log: list[str] = []
        self.clock = 0.0
        self._captures, self._allocations, self._fails_at = captures, 0, fails_at

    @property
    def stream(self) -> int:
        return 7

    def allocate(self, size_bytes: int) -> int:
        self._allocations += 1
        if self._allocations == self._fails_at:
            raise RuntimeError("out of memory")
        address = 1000 * self._allocations
        self.held[address] = np.zeros(size_bytes, np.uint8)
        return address

    def free(self, address: int) -> None:
        self.log.append("free")
        del self.held[address]  # freeing twice is an error

    def free_bytes(self) -> int:
        return (1 << 20) - sum(held.size for held in self.held.values() if isinstance(held, np.ndarray))

    def upload(self, address: int, values: NDArray[Any]) -> None:
        self.held[address][:] = values.reshape(-1).view(np.uint8)

    def download(self, values: NDArray[Any], address: int) -> None:
        values.reshape(-1).view(np.uint8)[:] = self.held[address]

    def synchronise(self) -> None:
        self.log.append("synchronise")

    def new_event(self) -> Any:
        event = SimpleNamespace(at=0.0)
        self.held[id(event)] = event
        return event

    def free_event(self, event: Any) -> None:
        del self.held[id(event)]

    def record(self, event: Any) -> None:
        event.at = self.clock

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(end.at - start.at)

    def capture(self, enqueue: Callable[[], object]) -> Replay | None:
        return HostReplay(self, enqueue) if self._captures else None

    def close(self) -> None:
        self.log.append("close")


class HostReplay(Replay):
    """Runs on the memory that was bound when it was captured."""

    def __init__(self, cuda: HostCuda, enqueue: Any) -> None:
        self._cuda, self._enqueue = cuda, enqueue
        self._bound = dict(enqueue.__self__.context._at)
        cuda.held[self] = self
        enqueue()

    def __call__(self) -> None:
        assert self in self._cuda.held
        self._enqueue.__self__.context._at.update(self._bound)
        self._enqueue()

    def close(self) -> None:
        self._cuda.log.append("close graph")
        del self._cuda.held[self]
        self._enqueue = None


class Engine:
    """An engine that doubles its input, 0.5 ms each; alive until it is let go, as its context is."""

    num_io_tensors = 2
    alive = 0

    def __init__(self, cuda: HostCuda) -> None:
        self.cuda = cuda
        Engine.alive += 1

    def __del__(self) -> None:
        Engine.alive -= 1

    def create_execution_context(self) -> Context:
        return Context(self)

    def create_engine_inspector(self) -> Any:
        layer = {"Name": "l", "LayerType": "x", "Metadata": "[ONNX Layer: n0.Mul_0]", "Inputs": [], "Outputs": []}
        return SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": [layer]}))

    def get_tensor_name(self, index: int) -> str:
        return ("input", "output")[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return SHAPE

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="FLOAT")

    def get_tensor_mode(self, name: str) -> str:
        return name


class Context:
    def __init__(self, engine: Engine) -> None:
        self._cuda, self._engine = engine.cuda, engine
        self._at: dict[str, int] = {}
        self.read: list[int] = []
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return SHAPE

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._at[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        values = np.empty(SHAPE, np.float32)
        self._cuda.download(values, self._at["input"])
        self._cuda.upload(self._at["output"], 2 * values)
        self._cuda.clock += 0.5
        self.read.append(self._at["input"])
        if self.profiler is not None:
            self.profiler.report_layer_time("l", 0.3)
        return True


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., HostCuda]]:
    """Makes devices, on which engines load that are called anything but ``b"bad"``."""

    def make(**options: Any) -> HostCuda:
        cuda = HostCuda(**options)

        def load(engine: bytes, log: Any) -> Engine | None:
            if engine == b"bad":
                return log.log(0, "made by another\nversion")  # type: ignore[no-any-return]
            return Engine(cuda)

        library = SimpleNamespace(
            ILogger=type("ILogger", (), {"Severity": SimpleNamespace(ERROR=0, INTERNAL_ERROR=1)}),
            Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=lambda engine: load(engine, log)),
            TensorIOMode=SimpleNamespace(INPUT="input"),
            IProfiler=object,
            LayerInformationFormat=SimpleNamespace(JSON=0),
        )
        monkeypatch.setattr(tensorrt_library._chosen, "module", library)
        return cuda

    before = Engine.alive
    yield make
    assert Engine.alive == before, "an engine was not let go"


def watch() -> GpuWatch:
    return GpuWatch("0000:00:00.0")


@pytest.mark.parametrize("captures", [True, False])
def test_a_session_gives_everything_back_when_closed(cuda: Callable[..., HostCuda], captures: bool) -> None:
    device = cuda(copies=3, captures=captures)
    builds = [Loaded(b"a", device), Loaded(b"b", device)]
    session = EngineSession(builds, device, watch())
    # two builds of three inputs and an output, two events, and a graph for each input
    assert len(device.held) == 2 * 4 + 2 + (6 if captures else 0)
    assert session.time_ms(4) == pytest.approx([0.5] * 4)
    assert session.spread == 0
    assert session.state[BUILDS_MS] == pytest.approx([0.5, 0.5])
    assert session.state[DISTURBED] == ""
    image = np.arange(6, dtype=np.float32).reshape(SHAPE)
    np.testing.assert_array_equal(session.run(image), 2 * image)
    device.log.clear()
    session.close()
    assert not device.held
    assert device.log[0] == "synchronise"
    if captures:  # graphs go before the memory that they point to
        assert device.log.index("free") > max(i for i, word in enumerate(device.log) if word == "close graph")


@pytest.mark.parametrize("captures", [True, False])
def test_inputs_take_turns(cuda: Callable[..., HostCuda], captures: bool) -> None:
    device = cuda(copies=3, captures=captures)
    loaded = Loaded(b"a", device)
    context: Any = loaded.context
    session = EngineSession([loaded], device, watch(), min_run_ms=1.9)
    assert session.repeats == 4
    context.read.clear()
    assert session.times(0, 3) == pytest.approx([2.0] * 3)
    assert session.times(0, 2) == pytest.approx([2.0] * 2)
    assert len(context.read) == 20
    rounds = [context.read[start : start + 3] for start in range(18)]  # also from one stretch to the next
    assert all(len(set(addresses)) == 3 for addresses in rounds)
    session.close()
    assert not device.held


@pytest.mark.parametrize("fails_at", range(1, 5))
def test_what_fails_half_way_gives_back_what_it_took(cuda: Callable[..., HostCuda], fails_at: int) -> None:
    device = cuda(copies=3, fails_at=fails_at)
    with pytest.raises(RuntimeError, match="out of memory"):
        Loaded(b"a", device)
    assert not device.held


def test_an_engine_that_does_not_load_or_run_leaves_nothing(
    cuda: Callable[..., HostCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = cuda()
    with pytest.raises(BuildError, match="does not load: made by another version"):
        EngineClock(b"bad", device, watch())
    assert not device.held
    loaded = Loaded(b"a", device)
    monkeypatch.setattr(Context, "execute_async_v3", lambda *_: False)
    with pytest.raises(RuntimeError, match="did not run"):
        EngineSession([loaded], device, watch())
    assert not device.held
    del loaded


def test_a_clock_of_layers_gives_everything_back(cuda: Callable[..., HostCuda]) -> None:
    device = cuda()
    clock = EngineClock(b"a", device, watch())
    times = {time.node or time.kind: time.samples_ms for time in clock.time_kernels(3)}
    assert times["n0.Mul_0"] == pytest.approx([0.3] * 3)
    assert times[WHOLE] == pytest.approx([0.5] * 3)
    assert clock.state[DISTURBED] == ""
    assert "sm_mhz" in clock.state
    clock.close()
    assert not device.held


def test_a_clock_of_layers_repeats_what_was_disturbed(
    cuda: Callable[..., HostCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that drifts between the whole and the layers would be taken for launches."""
    device, seen = cuda(), watch()
    clock = EngineClock(b"a", device, seen)
    monkeypatch.setattr(gpu_state.time, "sleep", lambda _: None)
    mhz = iter([1500] * SETTLED + [1500, 1200] + [1200, 1200])
    monkeypatch.setattr(seen, "read", lambda: GpuState(next(mhz), None, 70, 200.0, 0x4))
    before = device.clock
    times = {time.node or time.kind: time.samples_ms for time in clock.time_kernels(3)}
    assert len(times["n0.Mul_0"]) == len(times[WHOLE]) == 3
    assert device.clock - before == 0.5 * (SETTLED + 2 * (3 + 3 + 1))
    assert clock.state == {"sm_mhz": 1200, "memory_mhz": None, "temperature_c": 70, "power_w": 200.0, "throttle": 4,
                           DISTURBED: ""}  # fmt: skip
    clock.close()


def test_an_engine_that_is_captured_ran_on_each_copy_before(cuda: Callable[..., HostCuda]) -> None:
    device = cuda(copies=3)
    loaded = Loaded(b"a", device)
    context: Any = loaded.context
    session = EngineSession([loaded], device, watch())
    first, last = context.read[:6], context.read[6:]
    assert len(set(first[::2])) == 3
    assert first[::2] == first[1::2] == last  # run, then captured, and each graph launched once before it is timed
    session.close()


def test_a_gpu_that_answers_no_more_is_told_from_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, device = TensorRt.__new__(TensorRt), HostCuda()
    runtime.cuda = device
    assert runtime.broken() == ""

    def fails() -> None:
        raise RuntimeError("cudaStreamSynchronize: cudaErrorIllegalAddress")

    monkeypatch.setattr(device, "synchronise", fails)
    assert "cannot be used any more: cudaStreamSynchronize: cudaErrorIllegalAddress" in runtime.broken()


def test_what_is_held_is_told(cuda: Callable[..., HostCuda], monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = TensorRt.__new__(TensorRt)
    runtime.cuda, runtime.watch = cuda(copies=3), watch()
    monkeypatch.setattr(runtime, "_built", lambda model, build: SimpleNamespace(engine=model))
    network, operator, clock = runtime.load_network(b"a"), runtime.load_operator(b"a", 1), runtime.load_kernels(b"a")
    each = 4 * INPUT_BYTES  # three copies of the input and the output, which is as large
    assert [one.memory_bytes for one in (network, operator, clock)] == [2 * each, each, 2 * each]
    for one in (network, operator, clock):
        one.close()


class Counted(Session, KernelClock):
    def __init__(self, held: list[Counted]) -> None:
        self._held = held
        held.append(self)

    memory_bytes = 7

    def time_ms(self, runs: int) -> list[float]:
        self.state = {DISTURBED: "hot"}
        return [1.0] * runs

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        return image

    def time_kernels(self, runs: int) -> list[Any]:
        self.state = {DISTURBED: "hotter"}
        return []

    def close(self) -> None:
        self._held.remove(self)


class CountedRuntime(Runtime):
    def __init__(self) -> None:
        self.held: list[Counted] = []
        self.closed = False

    def describe(self) -> dict[str, str | int]:
        return {}

    def load_network(self, model: bytes) -> Session:
        return Counted(self.held)

    def load_operator(self, model: bytes, min_run_ms: float) -> Session:
        return Counted(self.held)

    def load_kernels(self, model: bytes) -> KernelClock:
        return Counted(self.held)

    def close(self) -> None:
        assert not self.held
        self.closed = True


def test_the_measuring_process_closes_what_is_unloaded_and_all_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, loads = CountedRuntime(), {}
    worker = Worker()
    worker.runtime = runtime
    for role in ("network", "operator", "kernels"):
        loads[role] = {"do": "load", "name": role, "role": role, "min_run_ms": 1, "payload": b""}
        assert worker.answer(loads[role]) == {"ok": True, "repeats": 1, "memory_bytes": 7}
    assert len(runtime.held) == 3
    answer = worker.answer({"do": "time", "name": "network", "runs": 2})
    assert answer == {"ok": True, "samples_ms": [1.0, 1.0], "state": {DISTURBED: "hot"}}
    answer = worker.answer({"do": "kernels", "name": "kernels", "runs": 2})
    assert answer == {"ok": True, "kernels": [], "state": {DISTURBED: "hotter"}}
    assert worker.answer(loads["network"])["ok"]  # again, under the same name
    assert len(runtime.held) == 3
    assert worker.answer({"do": "unload", "name": "kernels"}) == {"ok": True}
    assert worker.answer({"do": "unload", "name": "nothing"}) == {"ok": True}
    assert len(runtime.held) == 2
    worker.close()
    assert runtime.closed
    again = CountedRuntime()
    monkeypatch.setattr("hwnas.measure.worker.RUNTIMES", {"counted": lambda _: again})
    requests = [{"do": "open", "runtime": "counted", "options": {"threads": 1}}, {**loads["network"], "payload": 0}]
    serve(io.BytesIO(b"".join(json.dumps(one).encode() + b"\n" for one in requests)), io.StringIO())
    assert again.closed
