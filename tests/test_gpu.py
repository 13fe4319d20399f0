"""What only a GPU can tell: `pytest -m gpu` on the first machine that has one. Elsewhere each is skipped, with why.

Nothing in this file has run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command import Hwnas
from quick import tiny_network

from hwnas.devices import find_profile
from hwnas.errors import RuntimeMissing
from hwnas.latency.kernels import assign
from hwnas.latency.lowering import AsWritten
from hwnas.measure.onnx_models import network_to_onnx
from hwnas.measure.process import MeasuringProcess, Subject
from hwnas.measure.runtimes import RUNTIMES
from hwnas.measure.runtimes.tensorrt import TensorRt
from hwnas.spaces import get_space

pytestmark = pytest.mark.gpu

PROFILES = ("cuda", "cuda-fp16", "cuda-int8", "rtx")


def usable(name: str) -> None:
    """Skips the test where the device cannot be used, with the reason that `hwnas devices` gives."""
    try:
        with MeasuringProcess(find_profile(name)):
            pass
    except RuntimeMissing as error:
        pytest.skip(str(error))


@pytest.fixture(params=["cuda", "rtx"])
def runtime(request: pytest.FixtureRequest) -> Iterator[TensorRt]:
    """Each TensorRT, in this process."""
    usable(request.param)
    profile = find_profile(request.param)
    with RUNTIMES[profile.runtime](profile.runtime_options()) as runtime:
        assert isinstance(runtime, TensorRt)
        yield runtime


@pytest.mark.parametrize("name", PROFILES)
def test_the_self_test_passes(hwnas: Hwnas, name: str) -> None:
    usable(name)
    done = hwnas("devices", "--self-test", name, "--json", timeout_s=1800)
    assert done.code == 0, done.stderr
    (entry,) = done.document
    assert entry["passed"] is True


def test_a_table_of_the_gpu_is_chosen_by_default(hwnas: Hwnas) -> None:
    usable("rtx")
    profile = ("profile", "--device", "rtx", "--space", "none", "--model", "zoo:mobilenet-v2", "--batch", "1")
    assert hwnas(*profile, timeout_s=1800).code == 0
    done = hwnas("predict", "zoo:mobilenet-v2", "--device", "rtx", "--json")
    assert "the newest that fits" in done.stderr
    assert done.document["coverage"] == 1


def test_memory_is_given_back(runtime: TensorRt) -> None:
    """Loading and unloading for ever takes no more memory than once."""
    import importlib

    cuda = importlib.import_module("cuda.bindings.runtime")
    space = get_space("proxyless-tiny")
    model = network_to_onnx(space.network(space.sample(np.random.default_rng(0))), batch_size=8)
    free = []
    for _ in range(6):
        session, clock = runtime.load_network(model), runtime.load_kernels(model)
        session.time_ms(2)
        session.close()
        clock.close()
        free.append(cuda.cudaMemGetInfo()[1])
    assert free[1] - free[-1] < 2**20


def test_layers_are_those_of_the_network_and_add_up(runtime: TensorRt) -> None:
    space = get_space("proxyless-tiny")
    network = space.network(space.sample(np.random.default_rng(1)))
    clock = runtime.load_kernels(network_to_onnx(network, batch_size=32))
    timed = assign(AsWritten().steps(network), clock.time_kernels(10))
    assert clock.state["sm_mhz"]
    clock.close()
    assert not timed.unexpected
    assert set(timed.samples_ms) == {op.key for op in AsWritten()(network)}


def test_the_driver_tells_clocks_and_temperature(runtime: TensorRt) -> None:
    assert runtime.watch.available, runtime.watch.why_not
    state = runtime.watch.read()
    assert state.sm_mhz
    assert state.temperature_c
    assert runtime.watch.driver()


@pytest.mark.parametrize("batch_size", [1, 32])
def test_a_second_process_finds_the_engines_of_the_first(tmp_path: Path, batch_size: int) -> None:
    usable("rtx")
    folder = tmp_path / "cache"
    model = network_to_onnx(tiny_network(), batch_size=batch_size)
    profile = find_profile("rtx").override(batch_size=batch_size)
    kept = []
    for _ in range(2):
        with MeasuringProcess(profile, cache=folder) as process:
            _, samples_ms = process.time_ms(Subject("net", "network", lambda: model), 5)
            assert min(samples_ms) > 0
        kept.append({path.name: path.read_bytes() for path in folder.glob("*.engine")})
    assert kept[0]
    assert kept[0] == kept[1]
