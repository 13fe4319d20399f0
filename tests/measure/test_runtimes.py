"""The contract that every runtime keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from quick import tiny_network

from hwnas.devices import GPU_RUNTIMES
from hwnas.measure.onnx_models import network_to_onnx, op_to_onnx
from hwnas.measure.runtimes import INSTALL, RUNTIMES
from hwnas.measure.runtimes.base import Runtime
from hwnas.measure.runtimes.onnx_providers import PROVIDERS
from hwnas.measure.runtimes.onnx_runtime import OnnxRuntime
from hwnas.measure.runtimes.timed import WARM_RUNS, long_visit_ms, visit_ms, warm_up
from hwnas.network import Network
from hwnas.ops import Op
from hwnas.spaces import get_space
from hwnas.zoo import zoo_network

BOUND = {"runtime": str, "runtime_version": str, "device": str, "cores": int, "threads": int}
"""What a table is bound to."""

OPS = [
    Op.conv((16, 14, 14), 16, kernel=3, norm=True, act="relu6"),
    Op.conv((16, 14, 14), 16, kernel=5, groups=16, norm=True),
    Op.conv((3, 28, 28), 16, kernel=3, stride=2, norm=True),
    Op.conv((16, 7, 7), 16, kernel=1, norm=True, residual=True, act="relu"),
    Op.global_avg_pool((16, 7, 7)),
    Op.linear(32, 10),
    Op.add((16, 7, 7)),
]


OPAQUE = "onnxruntime, its graph unread"
"""The CPU's provider used as those that do not let their graph be cut open."""


def opened(name: str) -> Runtime:
    """The runtime with one thread; skips the test where it does not work."""
    if name == OPAQUE:
        return OnnxRuntime(1, replace(PROVIDERS["onnxruntime"], graph=False, kernels=False))
    try:
        return RUNTIMES[name]({"threads": 1})
    except ImportError as error:
        pytest.skip(f"{name} does not work here ({error}): {INSTALL[name]}")


def parameters() -> list[object]:
    """Every runtime; those that need a GPU bear the mark `gpu`."""
    return [pytest.param(name, marks=pytest.mark.gpu) if name in GPU_RUNTIMES else name for name in RUNTIMES]


@pytest.fixture(params=[*parameters(), OPAQUE])
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """Each runtime with one thread."""
    with opened(request.param) as runtime:
        yield runtime


def plainly(model: bytes, image: np.ndarray) -> np.ndarray:
    """What the file says, computed without any optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: image})[0])


def networks() -> list[Network]:
    space = get_space("proxyless-tiny")
    return [tiny_network(), space.network(space.sample(np.random.default_rng(0)))]


def test_it_says_what_a_table_is_bound_to(runtime: Runtime) -> None:
    described = runtime.describe()
    assert {key: type(described[key]) for key in BOUND} == BOUND
    assert described["runtime"] in RUNTIMES
    assert described["threads"] == 1
    assert described == runtime.describe()


def test_networks_are_timed_one_execution_a_run(runtime: Runtime) -> None:
    for network in networks():
        session = runtime.load_network(network_to_onnx(network))
        assert session.repeats == 1
        for runs in (1, 7):
            samples = session.time_ms(runs)
            assert len(samples) == runs
            assert all(type(sample) is float and 0 < sample < 10_000 for sample in samples)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.key)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_operators_are_repeated_until_a_run_is_long_enough(runtime: Runtime, op: Op, batch_size: int) -> None:
    session = runtime.load_operator(op_to_onnx(op, batch_size=batch_size), 0.05)
    assert session.repeats >= 1
    samples = session.time_ms(3)
    assert len(samples) == 3
    assert all(0 < sample < 10_000 for sample in samples)
    assert runtime.load_operator(op_to_onnx(op, batch_size=batch_size), 1e-6).repeats == 1


@pytest.mark.parametrize("batch_size", [1, 2])
def test_networks_compute_what_the_file_says(runtime: Runtime, batch_size: int) -> None:
    for network in networks():
        model = network_to_onnx(network, batch_size=batch_size)
        session = runtime.load_network(model)
        session.time_ms(2)  # timing leaves nothing behind
        rng = np.random.default_rng(3)
        images = rng.standard_normal((batch_size, *network.input_shape)).astype(np.float32)
        for image in (images, 2 * images):
            output = session.run(image)
            assert output.dtype == np.float32
            np.testing.assert_allclose(output, plainly(model, image), rtol=1e-3, atol=1e-4)


def test_more_work_takes_longer(runtime: Runtime) -> None:
    small, large = (
        runtime.load_operator(op_to_onnx(Op.conv((32, size, size), 32, kernel=3, norm=True)), 0.05) for size in (7, 56)
    )
    assert min(large.time_ms(5)) / large.repeats > 5 * min(small.time_ms(5)) / small.repeats


def test_many_sessions_live_side_by_side(runtime: Runtime) -> None:
    sessions = [runtime.load_operator(op_to_onnx(op), 0.01) for op in OPS for _ in range(3)]
    assert all(session.time_ms(1)[0] > 0 for session in sessions)


def test_what_cannot_be_built_is_an_error_and_the_next_model_is_built(runtime: Runtime) -> None:
    integers = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "integers",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [1, 3])],
    )
    unsuitable = helper.make_model(integers, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    for model in (b"", b"garbage", unsuitable.SerializeToString()):
        with pytest.raises(Exception, match=r".+"):
            runtime.load_network(model)
        with pytest.raises(Exception, match=r".+"):
            runtime.load_operator(model, 0.01)
    assert runtime.load_network(network_to_onnx(tiny_network())).time_ms(1)


def test_a_batch_that_a_file_leaves_open_is_one_image(runtime: Runtime) -> None:
    model = onnx.load_from_string(network_to_onnx(tiny_network()))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    assert runtime.load_network(model.SerializeToString()).time_ms(1)[0] > 0


def test_runtimes_compute_the_same() -> None:
    """What is searched for one runtime can be deployed on another."""
    here = [opened(name) for name in RUNTIMES if name not in GPU_RUNTIMES]
    space = get_space("proxyless-tiny")
    rng = np.random.default_rng(5)
    for network in (tiny_network(), space.network(space.sample(rng)), zoo_network("mobilenet-v2")):
        model = network_to_onnx(network)
        image = rng.standard_normal((1, *network.input_shape)).astype(np.float32)
        first, *others = [runtime.load_network(model).run(image) for runtime in here]
        for other in others:
            assert np.abs(other - first).max() <= 1e-3 * np.abs(first).max()


def test_every_runtime_says_how_it_is_installed() -> None:
    assert set(INSTALL) == set(RUNTIMES)


@pytest.mark.parametrize("name", [name for name in RUNTIMES if name not in GPU_RUNTIMES])
def test_threads_are_those_that_were_asked_for(name: str) -> None:
    """Counted by the operating system, each in a process of its own: more threads are so many more than one."""
    opened(name).close()
    code = f"""
import os, sys
from quick import tiny_network
from hwnas.measure.onnx_models import network_to_onnx
from hwnas.measure.runtimes import RUNTIMES
with RUNTIMES[{name!r}]({{"threads": int(sys.argv[1])}}) as runtime:
    session = runtime.load_network(network_to_onnx(tiny_network(channels=64, size=64)))
    session.time_ms(5)
    print(len(os.listdir("/proc/self/task")))
"""
    threads = min(3, len(os.sched_getaffinity(0)))
    env = {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    one, more = (
        int(subprocess.run([sys.executable, "-c", code, count], capture_output=True, check=True, env=env).stdout)
        for count in ("1", str(threads))
    )
    assert more - one == threads - 1


class Clock:
    """Stands still but for what runs take."""

    def __init__(self) -> None:
        self.ns = 0

    def perf_counter(self) -> float:
        return self.ns / 1e9

    def perf_counter_ns(self) -> int:
        return self.ns


@pytest.mark.parametrize(
    ("taken_ms", "warm", "timed", "long_warm"),
    [(0.1, 10, 5, 10), (2.5, 6, 3, 6), (4.0, 4, 2, 4), (5.0, 1, 2, 3), (6.0, 1, 1, 3), (200.0, 1, 1, 1)],
)
def test_a_network_is_warm_before_it_is_timed_and_a_long_one_is_run_less_often(
    monkeypatch: pytest.MonkeyPatch, taken_ms: float, warm: int, timed: int, long_warm: int
) -> None:
    """What ran before has taken its weights out of the cache."""
    clock, calls = Clock(), list[int]()
    monkeypatch.setattr("hwnas.measure.runtimes.timed.time", clock)

    def run() -> None:
        clock.ns += round(taken_ms * 1e6)
        calls.append(clock.ns)

    warm_up(run)
    assert len(calls) == warm
    assert visit_ms(run, 5) == [pytest.approx(taken_ms)] * timed
    calls.clear()
    assert long_visit_ms(run, 5) == [pytest.approx(taken_ms)] * 5
    assert long_warm + 5 <= len(calls) <= long_warm + 2 * 5  # interrupted ones are tried again


def test_a_loaded_network_keeps_no_second_copy_of_its_weights() -> None:
    """Hundreds of networks stay loaded: ONNX Runtime's Python class would hold the bytes of each."""
    model = network_to_onnx(tiny_network())
    before = sys.getrefcount(model)
    with opened("onnxruntime") as runtime:
        session = runtime.load_network(model)
        assert sys.getrefcount(model) == before
        session.time_ms(1)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_whole_networks_are_those_that_are_warmed(name: str) -> None:
    calls: list[int] = []
    with opened(name) as runtime:
        session = runtime.load_network(network_to_onnx(tiny_network()))
        place = "run_once" if name == "onnxruntime" else "_run"
        run = getattr(session, place)
        setattr(session, place, lambda: (calls.append(0), run()))
        session.time_ms(3)
    assert len(calls) >= WARM_RUNS + 3  # without it: one and three, six where other work interrupts them
