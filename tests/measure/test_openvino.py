"""OpenVINO times an operator as it runs it inside networks: judged by its OWN execution graphs."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from quick import tiny_network
from samples import operators, resnet_like

from hwnas.measure.onnx_models import network_to_onnx, op_to_onnx
from hwnas.measure.runtimes import INSTALL
from hwnas.measure.runtimes.operator_fan import fan
from hwnas.network import Network
from hwnas.ops import Op
from hwnas.spaces import get_space
from hwnas.zoo import zoo_network

if TYPE_CHECKING:
    from hwnas.measure.runtimes.openvino import OpenVino

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason=f"openvino is not installed here: {INSTALL['openvino']}"
)

FREE = {"Const", "Input", "Output", "Reshape"}
"""What takes nothing in a run, or happens once."""

COPIES = 6


@functools.cache
def runtime() -> OpenVino:
    from hwnas.measure.runtimes.openvino import OpenVino

    return OpenVino(threads=1)


def nodes(model: bytes) -> Counter[tuple[str, ...]]:
    """(operator, implementation, layout, how many operators of the file it runs) of what OpenVINO runs for a model."""
    found: Counter[tuple[str, ...]] = Counter()
    for node in runtime()._compiled(model).get_runtime_model().get_ordered_ops():
        said: dict[str, Any] = {key: getattr(value, "value", value) for key, value in node.get_rt_info().items()}
        if said["layerType"] not in FREE and "outlet" not in said["originalLayersNames"]:
            fused = [name for name in said["originalLayersNames"].split(",") if not name.endswith("WithoutBiases")]
            found[said["layerType"], said["primitiveType"], said["outputLayouts"], str(len(fused))] += 1
    return found


@functools.cache
def timed(op: Op, batch_size: int = 1) -> Counter[tuple[str, ...]]:
    """What is timed for one copy of an operator: a fan's nodes, less those of the fan without it."""
    model = op_to_onnx(op, batch_size=batch_size)
    whole, rest = (nodes(fan(model, COPIES, operator=present)) for present in (True, False))
    left = Counter(whole)
    left.subtract(rest)
    for name, count in left.items():  # the numbers of all outlets together may be turned once
        assert count % COPIES == 0 or (name[0] == "Reorder" and abs(count) % COPIES == 1), (op.key, left)
    return Counter({name: count // COPIES for name, count in left.items() if count >= COPIES})


def cores(network: Network) -> Counter[tuple[str, ...]]:
    total: Counter[tuple[str, ...]] = Counter()
    for op in network.ops:
        total += timed(op.deployed())
    return total


@pytest.mark.parametrize("channels", [6, 16])
def test_every_copy_of_an_operator_is_run_and_nothing_else_is_timed(channels: int) -> None:
    for op in operators(channels):
        kinds = Counter(name[0] for name in timed(op).elements())
        if op.kind == "conv":
            assert kinds["Convolution"] == 1, (op.key, kinds)
        elif op.kind != "split":  # its parts may be views
            assert kinds, op.key
            assert not kinds["Convolution"], (op.key, kinds)


@pytest.mark.parametrize(("space", "seed"), [("proxyless-tiny", 0), ("proxyless-tiny", 1), ("proxyless", 0)])
def test_networks_of_the_spaces_are_their_operators(space: str, seed: int) -> None:
    found = get_space(space)
    network = found.network(found.sample(np.random.default_rng(seed)))
    real, each = nodes(network_to_onnx(network)), cores(network)
    # behind the last convolution a network brings one vector back to the plain layout; nothing else is missing
    assert not each - real
    assert sum((real - each).values()) <= 1
    assert {name[0] for name in real - each} <= {"Reorder"}


@pytest.mark.parametrize("network", [zoo_network("mobilenet-v2"), resnet_like()], ids=["mobilenet-v2", "resnet-like"])
def test_other_networks_are_their_operators(network: Network) -> None:
    real, each = nodes(network_to_onnx(network)), cores(network)
    assert {name[0] for name in (real - each) + (each - real)} <= {"Reorder"}


def test_a_batch_stays_a_batch() -> None:
    op = Op.conv((16, 8, 8), 16, kernel=3, norm=True, act="relu")
    assert sum(timed(op, 3).values()) == sum(timed(op).values()) == 1


@pytest.mark.parametrize("op", [Op.linear(3, 2), Op.conv((6, 1, 1), 8, kernel=1), Op.affine((3,))])
def test_operators_with_fewer_numbers_than_copies(op: Op) -> None:
    """Outlets at the same place would be merged, and the rest would take more than the whole."""
    session = runtime().load_operator(op_to_onnx(op), min_run_ms=10.0)
    assert session.repeats > op.inputs[0][0]
    assert min(session.time_ms(5)) > 1e-5


def test_repeats_reach_the_asked_duration() -> None:
    op = op_to_onnx(Op.conv((64, 14, 14), 64, kernel=1, norm=True))
    assert runtime().load_operator(op, min_run_ms=0.02).repeats < runtime().load_operator(op, min_run_ms=0.2).repeats


def test_precision_threads_and_streams_are_explicit() -> None:
    """Left alone, OpenVINO computes in bfloat16 where the CPU can, and pins its threads."""
    compiled = runtime()._compiled(network_to_onnx(tiny_network()))
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    wanted = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False, "PERF_COUNT": "NO"}
    assert {key: compiled.get_property(key) for key in wanted} == wanted
    assert {name[1].rsplit("_", 1)[-1] for name in nodes(network_to_onnx(zoo_network("mobilenet-v2")))} == {"f32"}


def test_more_threads_than_there_are_cores_are_refused() -> None:
    from hwnas.measure.runtimes.openvino import OpenVino

    cores = len(os.sched_getaffinity(0))
    with pytest.raises(ValueError, match=rf"at most {cores} threads here, not {cores + 5}"):
        OpenVino(threads=cores + 5)


def test_nothing_is_written_to_the_home_folder(tmp_path: Path) -> None:
    code = "import os, hwnas.measure.runtimes.openvino; assert 'CI' not in os.environ"
    env = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
    subprocess.run([sys.executable, "-c", code], check=True, env={**env, "HOME": str(tmp_path)})
    assert not list(tmp_path.iterdir())
