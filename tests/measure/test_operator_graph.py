"""An operator is timed as the runtime runs it inside networks: judged by the runtime's OWN optimised graphs."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import onnx
import pytest
from samples import conversions, operators, resnet_like

from hwnas.latency.lowering import FOLLOWING, blocked_tensors, lowering
from hwnas.measure.onnx_models import network_to_onnx, op_to_onnx
from hwnas.measure.runtimes.onnx_runtime import OnnxRuntime
from hwnas.measure.runtimes.operator_graph import Core, anchored, core_of
from hwnas.network import Network, NetworkBuilder
from hwnas.ops import KINDS, PLAIN, Op
from hwnas.spaces import get_space
from hwnas.zoo import zoo_network

CHANNELS = (6, 8, 16, 24)
"""Multiples of the runtime's blocks of channels (8, or 16 with AVX-512), and not."""


@functools.cache
def runtime() -> OnnxRuntime:
    return OnnxRuntime(threads=1)


def name(node: onnx.NodeProto) -> str:
    """A node's operator with what the runtime fused into it."""
    acts = [item.s.decode() for item in node.attribute if item.name == "activation"]
    added = node.op_type in ("Conv", "FusedConv") and len(node.input) > 3 and node.input[3]
    return "+".join([node.op_type, *(["sum"] if added else []), *acts])


def whole(network: Network, batch_size: int = 1) -> Counter[str]:
    """What the runtime makes of a network."""
    model = onnx.load_from_string(network_to_onnx(network, batch_size=batch_size))
    return Counter(map(name, runtime()._optimised(model).graph.node))


def block() -> int:
    """Channels of a block of the layout that the runtime prefers on this CPU; 0 where it has none."""
    return int(runtime().describe()["channel_block"])


@functools.cache
def cut(op: Op, batch_size: int = 1) -> Core:
    """What is timed for an operator."""
    model = op_to_onnx(op, batch_size=batch_size, blocked=blocked_tensors(op, block()))
    proto, ends = anchored(model)
    return core_of(runtime()._optimised(proto), ends, runtime()._shapes)


def core(op: Op, batch_size: int = 1) -> Counter[str]:
    return Counter(map(name, cut(op, batch_size).nodes))


def cores(network: Network, batch_size: int = 1) -> Counter[str]:
    """What is timed for all kernels of a network, conversions of layout among them."""
    total: Counter[str] = Counter()
    for op in lowering(runtime().describe())(network):
        total += core(op, batch_size)
    return total


def without_reshapes(found: Counter[str]) -> Counter[str]:
    """Flattening moves no data and is no operator."""
    return Counter({kind: count for kind, count in found.items() if kind not in ("Flatten", "Reshape", "Transpose")})


def same(network: Network, batch_size: int = 1) -> bool:
    """Whether what is timed is what the runtime makes of the network, each conversion of layout included."""
    return without_reshapes(whole(network, batch_size)) == without_reshapes(cores(network, batch_size))


def variants(channels: int) -> list[Op]:
    """Operators of every kind, those that run in either layout in both, and the conversions where there are any."""
    found = operators(channels)
    found += [op.in_layout(PLAIN) for op in found if op.kind in FOLLOWING]
    return [*found, *(conversions(channels) if block() and channels % block() == 0 else ())]


def test_every_kind_is_covered() -> None:
    assert {op.kind for op in (*operators(8), *conversions(8))} == set(KINDS)


@pytest.mark.parametrize("channels", CHANNELS)
def test_every_operator_has_a_core_that_can_be_timed(channels: int) -> None:
    for op in variants(channels):
        model = op_to_onnx(op, blocked=blocked_tensors(op, block()))
        session = runtime().load_operator(model, min_run_ms=0.01)
        assert session.repeats >= 1, op.key
        assert all(0 < sample < 1000 for sample in session.time_ms(2)), op.key


@pytest.mark.parametrize("channels", CHANNELS)
def test_no_anchor_is_timed_with_an_operator(channels: int) -> None:
    for op in variants(channels):
        found = core(op)
        if op.kind == "conv":
            convolutions = sum(count for kind, count in found.items() if "Conv" in kind)
            assert convolutions == 1, (op.key, found)
        elif op.kind == "affine":
            assert sum(count for kind, count in found.items() if "Conv" in kind or "Batch" in kind) == 1, op.key
        else:
            assert not any("Conv" in kind for kind in found), (op.key, found)


def test_repeats_reach_the_asked_duration_and_no_copy_is_optimised_away() -> None:
    op = Op.conv((16, 8, 8), 16, kernel=1, norm=True)
    model = cut(op).model(7)
    assert Counter(map(name, model.graph.node)) == Counter({kind: 7 * count for kind, count in core(op).items()})
    assert len(model.graph.output) == 7
    weights = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    assert len(weights) == 7  # each copy reads its own weights, as each layer of a network does
    one = op_to_onnx(op, blocked=blocked_tensors(op, block()))
    long = runtime().load_operator(one, min_run_ms=0.2)
    short = runtime().load_operator(one, min_run_ms=1e-4)
    assert long.repeats > short.repeats


SPACE_NETS = [(space, seed) for space in ("proxyless-tiny", "fbnet-tiny", "spos-shufflenet-tiny") for seed in range(2)]


@pytest.mark.parametrize(("space", "seed"), SPACE_NETS)
def test_networks_of_the_spaces_are_their_operators(space: str, seed: int) -> None:
    found = get_space(space)
    network = found.network(found.sample(np.random.default_rng(seed)))
    assert same(network)


@pytest.mark.parametrize("net", ["mobilenet-v2", "proxyless-r-mobile", "spos-323m"])
def test_networks_of_the_zoo_are_their_operators(net: str) -> None:
    network = zoo_network(net)
    assert same(network)


def squeeze_excite(channels: int = 64, *, act: str = "hardswish") -> Network:
    """A depthwise convolution, its squeeze and excitation, and a projection with the residual."""
    builder = NetworkBuilder((3, 32, 32))
    builder.add(Op.conv((3, 32, 32), channels, kernel=3, stride=2, norm=True, act=act))
    entry = builder.last
    wide = builder.add(Op.conv(builder.shape(), channels, kernel=3, groups=channels, norm=True, act=act))
    shape = builder.shape()
    builder.add(Op.global_avg_pool(shape))
    builder.add(Op.conv((channels, 1, 1), 16, kernel=1, bias=True, act="relu"))
    builder.add(Op.conv((16, 1, 1), channels, kernel=1, bias=True, act="hardsigmoid"))
    builder.add(Op.mul(shape, (channels, 1, 1)), (wide, builder.last))
    builder.add(Op.conv(shape, channels, kernel=1, norm=True, residual=True), (builder.last, entry))
    builder.add(Op.global_avg_pool(shape))
    builder.add(Op.linear(channels, 10))
    return builder.build()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_residual_nets_are_their_operators(batch_size: int) -> None:
    network = resnet_like()
    assert same(network, batch_size)


@pytest.mark.parametrize("act", ["relu", "relu6", "hardswish", "silu"])
def test_squeeze_and_excitation_nets_are_their_operators(act: str) -> None:
    network = squeeze_excite(act=act)
    assert same(network)


def test_a_description_that_fuses_otherwise_than_the_runtime_is_noticed() -> None:
    network = resnet_like(fused=False)
    assert whole(network) == whole(resnet_like())  # the runtime fuses whatever we call it
    assert not same(network)
    builder = NetworkBuilder((3, 32, 32))
    builder.add(Op.conv((3, 32, 32), 16, kernel=3, norm=True))
    builder.add(Op.activation(builder.shape(), "relu"))
    assert same(builder.build())  # lowering merges what is described apart
