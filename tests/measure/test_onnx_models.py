"""The ONNX models that are timed: valid, runnable, of the right shapes, and computing what the operator says."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from hwnas.errors import HwnasError
from hwnas.measure.onnx_models import network_to_onnx, op_to_onnx
from hwnas.network import INPUT, Network, NetworkBuilder, Node
from hwnas.ops import ACTIVATIONS, KINDS, Op

IMAGE = (6, 9, 8)
OPS = [
    Op.conv(IMAGE, 4, kernel=3, stride=2, norm=True, act="relu6"),
    Op.conv(IMAGE, 6, kernel=(1, 5), groups=6, act="silu"),
    Op.conv(IMAGE, 4, kernel=3, groups=2, dilation=2, padding=(0, 1, 2, 3), bias=True),
    Op.conv(IMAGE, 6, kernel=1, norm=True, residual=True, act="relu"),
    Op.linear(12, 5),
    Op.linear(12, 5, bias=False, act="hardswish"),
    Op.pool("max_pool", IMAGE, kernel=3, stride=2, ceil_mode=True),
    Op.pool("avg_pool", IMAGE, kernel=2, padding=(0, 0, 1, 1)),
    Op.global_avg_pool(IMAGE),
    Op.add(IMAGE, act="relu"),
    Op.mul(IMAGE, (6, 1, 1)),
    Op.mul(IMAGE, IMAGE, act="sigmoid"),
    Op.concat([IMAGE, (2, 9, 8), (1, 9, 8)]),
    Op.concat([(4,), (3,)]),
    Op.split(IMAGE, (1, 2, 3)),
    Op.split(IMAGE, (6,)),
    Op.shuffle(IMAGE, 3),
    Op.affine(IMAGE, act="relu"),
    Op.affine((12,)),
    *[Op.activation(IMAGE, act) for act in ACTIVATIONS if act],
    *[Op.conversion(IMAGE, blocked=blocked) for blocked in (True, False)],
]


def run(model: bytes, batch_size: int = 1, fill: float | None = None) -> dict[str, NDArray[np.float32]]:
    """Checks and runs `model` on random images; returns its inputs, outputs and weights by name."""
    proto = onnx.load_from_string(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    values = {
        given.name: rng.standard_normal(given.shape, dtype=np.float32)
        if fill is None
        else np.full(given.shape, fill, np.float32)
        for given in session.get_inputs()
    }
    assert all(value.shape[0] == batch_size for value in values.values())
    names = [result.name for result in session.get_outputs()]
    values.update(zip(names, session.run(names, dict(values)), strict=True))
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in proto.graph.initializer}
    return values | weights


def test_every_kind_is_covered() -> None:
    assert {op.kind for op in OPS} == set(KINDS)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.key)
def test_every_operator_runs_with_its_shapes(op: Op) -> None:
    values = run(op_to_onnx(op, batch_size=2), batch_size=2)
    assert [values[f"input{index}"].shape[1:] for index in range(len(op.inputs))] == list(op.inputs)
    assert [values[f"output{index}"].shape[1:] for index in range(len(op.outputs))] == list(op.outputs)


def test_convolution_add_relu_computes_what_torch_computes() -> None:
    import torch
    from torch.nn import functional

    op = Op.conv(IMAGE, 6, kernel=3, padding=(0, 1, 2, 1), groups=3, norm=True, residual=True, act="relu")
    values = run(op_to_onnx(op))
    weight, bias = (torch.from_numpy(values[f"constant_{index}"]) for index in range(2))
    image, residual = (torch.from_numpy(values[f"input{index}"]) for index in range(2))
    convolved = functional.conv2d(functional.pad(image, (1, 1, 0, 2)), weight, bias, groups=3)
    np.testing.assert_allclose(values["output0"], torch.relu(convolved + residual).numpy(), atol=1e-5)


@pytest.mark.parametrize("act", [act for act in ACTIVATIONS if act])
def test_activations_compute_what_torch_computes(act: str) -> None:
    import torch
    from torch.nn import functional

    spelled = {"leakyrelu": "leaky_relu"}
    values = run(op_to_onnx(Op.activation((4, 9, 9), act)))
    expected = getattr(functional, spelled.get(act, act))
    np.testing.assert_allclose(values["output0"], expected(torch.from_numpy(values["input0"])).numpy(), atol=1e-6)


def test_shuffle_computes_the_channel_shuffle() -> None:
    values = run(op_to_onnx(Op.shuffle((6, 2, 2), 2)))
    np.testing.assert_array_equal(values["output0"], values["input0"][:, [0, 3, 1, 4, 2, 5]])


def block_net(act: str, blocks: int) -> Network:
    """A deep net of residual blocks with squeeze and excitation, which neither may overflow nor die out."""
    builder = NetworkBuilder((3, 16, 16))
    builder.add(Op.conv((3, 16, 16), 8, kernel=3, norm=True, act=act))
    for _ in range(blocks):
        start = builder.last
        wide = builder.add(Op.conv((8, 16, 16), 16, kernel=1, norm=True, act=act))
        builder.add(Op.global_avg_pool((16, 16, 16)))
        builder.add(Op.conv((16, 1, 1), 16, kernel=1, bias=True, act="hardsigmoid"))
        builder.add(Op.mul((16, 16, 16), (16, 1, 1)), (wide, builder.last))
        builder.add(Op.conv((16, 16, 16), 8, kernel=1, norm=True, residual=True), (builder.last, start))
    builder.add(Op.global_avg_pool((8, 16, 16)))
    builder.add(Op.linear(8, 10))
    return builder.build()


def test_a_network_runs() -> None:
    values = run(network_to_onnx(block_net("relu", 2), batch_size=3), batch_size=3)
    assert values["input"].shape == (3, 3, 16, 16)
    assert values["output"].shape == (3, 10)


@pytest.mark.parametrize("act", ["relu", "relu6", "hardswish", "silu"])
@pytest.mark.parametrize("residual", [True, False])
def test_deep_nets_neither_overflow_nor_die(act: str, residual: bool) -> None:
    network = block_net(act, 60)
    if not residual:
        builder = NetworkBuilder((8, 8, 8))
        builder.extend([Op.conv((8, 8, 8), 8, kernel=3, norm=True, act=act)] * 100)
        network = builder.build()
    for fill in (None, 0.0):
        output = np.abs(run(network_to_onnx(network), fill=fill)["output"])
        assert np.isfinite(output).all()
        assert 1e-6 < output.max() < 1e20


def test_weights_follow_the_seed() -> None:
    network = block_net("relu", 1)
    assert network_to_onnx(network, seed=1) == network_to_onnx(network, seed=1)
    assert network_to_onnx(network, seed=1) != network_to_onnx(network, seed=2)


def test_outputs_that_others_read_too_and_empty_networks() -> None:
    builder = NetworkBuilder((2, 4, 4))
    first = builder.add(Op.activation((2, 4, 4), "relu"))
    builder.add(Op.add((2, 4, 4)), (first, first))
    for output in ((1, 0), first, INPUT):
        network = Network(builder.input_shape, tuple(builder.nodes), output)
        assert run(network_to_onnx(network))["output"].shape == (1, 2, 4, 4)


def test_reshapes_that_move_nothing_are_inserted() -> None:
    builder = NetworkBuilder((8, 2, 2))
    builder.add(Op.linear(32, 4))
    builder.add(Op.conv((4, 1, 1), 8, kernel=1))
    builder.add(Op.mul((8, 2, 2), (8, 1, 1)), (INPUT, builder.last))
    assert run(network_to_onnx(builder.build()))["output"].shape == (1, 8, 2, 2)


def test_unknown_operators_are_refused_by_name() -> None:
    network = Network((3, 8, 8), (Node(Op.activation((3, 8, 8), "relu"), (INPUT,)),), (0, 0), ("Einsum attention",))
    with pytest.raises(HwnasError, match="Einsum attention"):
        network_to_onnx(network)


def test_needs_no_torch() -> None:
    code = "import sys, hwnas.measure.onnx_models; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
