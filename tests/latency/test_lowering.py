"""Lowered networks are what ONNX Runtime really runs: judged by its own optimised graphs and its own profiler."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import onnx
import pytest

from hwnas.latency.atoms import calibration_archs
from hwnas.latency.kernels import assign
from hwnas.latency.lowering import PLAIN, Blocked, placement
from hwnas.measure.onnx_models import network_to_onnx
from hwnas.measure.runtimes.onnx_runtime import OnnxRuntime
from hwnas.models import load_model
from hwnas.network import Network
from hwnas.ops import Op
from hwnas.spaces import ATOM_SPACES, GATE_SPACES, SPACES, AtomSpace, find_space
from hwnas.spaces.gated import GateSpace

NETS = ["mobilenet_v2", "mobilenet_v3_large", "shufflenet_v2_x0_5", "mnasnet0_5", "efficientnet_b0", "resnet18",
        "densenet121", "squeezenet1_1", "googlenet", "regnet_y_400mf", "mobilenet_v3_small", "shufflenet_v2_x1_0",
        *(f"{name} {seed}" for name in (*SPACES, *ATOM_SPACES) if "quant" not in name for seed in range(2)),
        *(f"{name} {seed}" for name in GATE_SPACES if name.endswith("-tiny") for seed in range(3)),
        "zoo:atomnas-a+"]  # fmt: skip
CONVERSIONS = {"to_blocked": "ReorderInput", "to_plain": "ReorderOutput"}
POOLS = {"max_pool": "MaxPool", "avg_pool": "AveragePool", "global_avg_pool": "GlobalAveragePool"}
Found = Counter[tuple[object, ...]]


@cache
def runtime() -> OnnxRuntime:
    return OnnxRuntime(threads=1)


@cache
def block() -> int:
    return int(runtime().describe()["channel_block"])


@pytest.fixture(autouse=True)
def blocks_needed() -> None:
    if not block():
        pytest.skip("ONNX Runtime has no blocked layout on this CPU")


@cache
def network(name: str) -> Network:
    if " " not in name:
        return load_model(name if ":" in name else f"torchvision:{name}").network
    space, seed = name.split()
    found, rng = find_space(space), np.random.default_rng(int(seed))
    if isinstance(found, GateSpace):
        return found.network(calibration_archs(found, 30, seed=1)[11 + 9 * int(seed)])
    if isinstance(found, AtomSpace):
        arch = found.sample(rng)
        return found.network(found.aligned(arch) if seed == "1" else arch)
    return found.network(found.sample(rng))


def real(net: Network) -> Found:
    """Convolutions and poolings by layout, conversions by shape, in the graph that the runtime makes."""
    graph = onnx.shape_inference.infer_shapes(runtime()._optimised(onnx.load_from_string(network_to_onnx(net)))).graph
    found: Found = Counter()
    for node in graph.node:
        layout = "blocked" if node.domain.endswith("nchwc") else "plain"
        if node.op_type in ("Conv", "FusedConv"):
            found["conv", layout] += 1
        elif node.op_type in POOLS.values():
            found[node.op_type, layout] += 1
        elif node.op_type in CONVERSIONS.values():
            found[node.op_type,] += 1
    return found


def assumed(net: Network) -> Found:
    """The same of the lowered network."""
    found: Found = Counter()
    for op in Blocked(block())(net):
        layout = "blocked" if placement(op, block()).output else "plain"
        if op.kind == "conv":
            found["conv", layout] += 1
        elif op.kind == "affine" and op.layout != PLAIN and layout == "blocked":
            found["conv", layout] += 1  # the runtime makes a convolution of such a BatchNorm
        elif op.kind in POOLS:
            found[POOLS[op.kind], layout] += 1
        elif op.kind in CONVERSIONS:
            found[CONVERSIONS[op.kind],] += 1
    return found


@pytest.mark.parametrize("name", NETS)
def test_the_runtime_makes_of_a_network_what_lowering_says(name: str) -> None:
    assert real(network(name)) == assumed(network(name))


@pytest.mark.parametrize(
    "name", [name for name in NETS if not (name.startswith("atomnas") and name.endswith("0"))][:-1]
)
def test_every_kernel_is_found_in_the_profile_conversions_with_their_shapes(name: str) -> None:
    """`assign` compares conversions by shape and count, and names what does not fit.

    Sums of atoms whose numbers are no multiples of four are not among them: the runtime adds their projections in an
    order of its own, which `assign` then says. Searched nets have none.
    """
    net = network(name)
    timed = assign(Blocked(block()).steps(net), runtime().load_kernels(network_to_onnx(net)).time_kernels(1))
    assert timed.unexpected == ()
    assert set(timed.samples_ms) == {op.key for op in Blocked(block())(net)}
    assert all((samples > 0).all() for samples in timed.samples_ms.values())
    shuffles = {key: count for key, count in timed.launches.items() if Op.parse(key).kind == "shuffle"}
    assert bool(shuffles) == any(op.kind == "shuffle" for op in net.ops)
    assert set(shuffles.values()) <= {3}  # reshape, transpose, reshape
