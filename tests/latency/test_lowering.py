"""Lowered networks are what ONNX Runtime really runs: judged by its own optimised graphs and its own profiler."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
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
from hwnas.network import Network, NetworkBuilder
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


def built(*nodes: tuple[str, tuple[int, ...]]) -> Network:
    """A network of operators by key, each with the nodes that it is fed from; -1 is the input."""
    ops = [Op.parse(key) for key, _ in nodes]
    builder = NetworkBuilder(ops[0].inputs[0])
    for op, (_, fed) in zip(ops, nodes, strict=True):
        builder.add(op, [(at, 0) for at in fed])
    return builder.build()


CONV = "conv 16x14x14>16x14x14 bias"
RELU = "act 16x14x14>16x14x14 relu"
BOTH = "concat 16x14x14,16x14x14>32x14x14"
BRANCHES = {
    "one ReLU of two": built((CONV, (-1,)), (RELU, (0,)), (CONV, (1,)), (RELU, (0,)), (CONV, (3,)), (BOTH, (2, 4))),
    "a convolution whose ReLU is not all that reads it": built(
        (CONV, (-1,)), (RELU, (0,)), (CONV, (1,)), (BOTH, (0, 2))
    ),
    "an affine of a convolution": built(
        (CONV, (-1,)), ("affine 16x14x14>16x14x14 relu", (0,)), (CONV, (1,)), ("global_avg_pool 16x14x14>16x1x1", (2,))
    ),
    "an affine of a flattened one": built(
        ("conv 16x4x4>16x4x4 bias", (-1,)), ("affine 256>256", (0,)), ("linear 256>4 bias", (1,))
    ),
    "poolings that arrive plain": built(
        (RELU, (-1,)), ("max_pool 16x14x14>16x14x14 k3 p1", (0,)), ("avg_pool 16x14x14>16x14x14 k3 p1", (0,)),
        (BOTH, (1, 2)),
    ),
    "a pooling of all that arrives plain": built((RELU, (-1,)), ("global_avg_pool 16x14x14>16x1x1", (0,))),
    "one pooling of two, with itself": built(
        (CONV, (-1,)), ("max_pool 16x14x14>16x14x14 k3 p1", (0,)), ("max_pool 16x14x14>16x14x14 k3 p1", (0,)),
        (BOTH, (1, 2)), ("global_avg_pool 32x14x14>32x1x1", (3,)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BRANCHES)
def test_what_a_runtime_makes_one_of_is_one(name: str) -> None:
    net = BRANCHES[name]
    assert real(net) == assumed(net)
    timed = assign(Blocked(block()).steps(net), runtime().load_kernels(network_to_onnx(net)).time_kernels(1))
    assert timed.unexpected == ()
    assert set(timed.samples_ms) == {op.key for op in Blocked(block())(net)}


def test_nodes_that_were_taken_for_one_and_both_ran_are_named() -> None:
    net = BRANCHES["one ReLU of two"]
    times = runtime().load_kernels(network_to_onnx(net)).time_kernels(1)
    twin = next(time for time in times if time.kind == "Conv")
    late = replace(twin, node="n3.Relu_9", kind="Relu")
    early = replace(twin, node="n1.Relu_8", kind="Relu")
    found = assign(Blocked(block()).steps(net), [*times, early, late]).unexpected
    assert any("not assumed" in line for line in found)


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
