"""Reading ONNX files: what is written is read back, spellings of other exporters, and files that are no models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper

from hwnas.errors import HwnasError
from hwnas.measure.onnx_models import network_to_onnx
from hwnas.network import INPUT, NetworkBuilder
from hwnas.ops import ACTIVATIONS, Op
from hwnas.trace import ops_of

IMAGE = (6, 9, 8)
ROUND_TRIPS = [
    *[Op.conv(IMAGE, 4, kernel=3, stride=2, norm=True, act=act) for act in ACTIVATIONS],
    Op.conv(IMAGE, 4, kernel=(3, 1), groups=2, dilation=(2, 1), padding=(0, 1, 2, 3)),
    Op.pool("max_pool", IMAGE, kernel=3, stride=2, ceil_mode=True),
    Op.pool("avg_pool", IMAGE, kernel=2, padding=(0, 0, 1, 1)),
    Op.global_avg_pool(IMAGE),
    Op.shuffle(IMAGE, 3),
    Op.affine(IMAGE, act="relu"),
    Op.linear(6 * 9 * 8, 5, act="relu"),
]


@pytest.mark.parametrize("op", ROUND_TRIPS, ids=lambda op: op.key)
def test_every_operator_is_read_back(op: Op, tmp_path: Path) -> None:
    builder = NetworkBuilder(IMAGE)
    builder.add(op)
    path = tmp_path / "model.onnx"
    path.write_bytes(network_to_onnx(builder.build(), batch_size=3))
    network = ops_of(path)
    assert network.unknown == ()
    assert network.ops == (op.deployed(),)


def test_wiring_is_read_back(tmp_path: Path) -> None:
    builder = NetworkBuilder(IMAGE)
    first, _ = split = builder.add(Op.split(IMAGE, (2, 4)))
    builder.add(Op.conv((4, 9, 8), 2, kernel=1, norm=True, residual=True, act="relu"), ((first, 1), split))
    both = builder.add(Op.concat([(2, 9, 8), (4, 9, 8)]), (builder.last, (first, 1)))
    builder.add(Op.global_avg_pool(IMAGE))
    builder.add(Op.conv((6, 1, 1), 6, kernel=1, bias=True, act="hardsigmoid"))
    builder.add(Op.mul(IMAGE, (6, 1, 1)), (both, builder.last))
    builder.add(Op.add(IMAGE, act="silu"), (builder.last, INPUT))
    network = builder.build()
    path = tmp_path / "model.onnx"
    path.write_bytes(network_to_onnx(network))
    read = ops_of(str(path))
    assert read.ops == tuple(op.deployed() for op in network.ops)
    assert [node.inputs for node in read.nodes] == [node.inputs for node in network.nodes]
    assert read.output == network.output


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x1_0", "densenet121", "googlenet"])
def test_published_nets_are_read_back_and_fused_as_the_runtime_fuses_them(name: str, tmp_path: Path) -> None:
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    network = ops_of(torchvision.models.get_model(name, weights=None, **options), (3, 224, 224))
    path, optimized = tmp_path / "model.onnx", tmp_path / "optimized.onnx"
    path.write_bytes(network_to_onnx(network))
    read = ops_of(path)
    assert [op.key for op in read.ops] == [op.key for op in network.ops]
    assert [node.inputs for node in read.nodes] == [node.inputs for node in network.nodes]
    session = onnxruntime.SessionOptions()
    session.optimized_model_filepath = str(optimized)
    session.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), session, providers=["CPUExecutionProvider"])
    nodes = onnx.load(optimized).graph.node
    # ONNX Runtime runs a BatchNorm that stands alone as a depthwise convolution, and adds a residual as a fourth input.
    kernels = [node for node in nodes if node.op_type in ("Conv", "FusedConv")]
    if not any(node.domain == "com.microsoft.nchwc" for node in kernels):
        pytest.skip("ONNX Runtime has no blocked convolutions on this processor")
    ops = [op for op in network.ops if op.kind in ("conv", "affine")]
    assert len(kernels) == len(ops)
    assert sum(len(node.input) == 4 for node in kernels) == sum(op.residual for op in ops)
    fused = sum(any(attribute.name == "activation" for attribute in node.attribute) for node in kernels)
    assert fused == sum(bool(op.act) for op in ops)


def as_trained(module: torch.nn.Module) -> None:
    """Statistics, scales and biases as after training: the exporter drops a bias that is all zeros."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.ndim == 1:
            assert name.rpartition(".")[2] in ("weight", "bias", "running_mean", "running_var")
            tensor.uniform_(0.5, 1.5, generator=generator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimize", [True, False], ids=["folded", "kept"])
def test_exported_net_has_the_operators_of_the_module(optimize: bool, tmp_path: Path) -> None:
    module = torchvision.models.mobilenet_v2(weights=None).eval()
    as_trained(module)
    program = torch.onnx.export(
        module, (torch.zeros(1, 3, 224, 224),), dynamo=True, optimize=optimize, opset_version=20, verbose=False
    )
    assert program is not None
    path = tmp_path / "model.onnx"
    program.save(str(path))
    kept = any(node.op_type == "BatchNormalization" for node in program.model_proto.graph.node)
    assert kept is not optimize
    network, expected = ops_of(path), ops_of(module, (3, 224, 224))
    assert network.unknown == ()
    assert [op.key for op in network.ops] == [op.key for op in expected.ops]
    assert network.macs == expected.macs


def model(
    nodes: list[onnx.NodeProto],
    shape: tuple[int | str, ...] = ("batch", 4, 8, 8),
    constants: dict[str, Any] | None = None,
    opset: int = 20,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A model whose last node gives the output."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *[helper.make_opsetid(domain, 1) for domain in domains]]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def read(proto: onnx.ModelProto, folder: Path, **options: Any) -> Any:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return ops_of(path, **options)


N = helper.make_node
WEIGHT = {"w": np.zeros((4, 4, 3, 3), np.float32)}
F32 = np.float32
SPELLINGS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], int, list[str]]] = {
    "same padding": (
        [N("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])],
        WEIGHT, 20, ["conv 4x8x8>4x4x4 k3 s2 p0x0x1x1"],
    ),
    "no padding": ([N("Conv", ["x", "w"], ["y"], auto_pad="VALID")], WEIGHT, 20, ["conv 4x8x8>4x6x6 k3"]),
    "old clip": ([N("Conv", ["x", "w"], ["c"]), N("Clip", ["c"], ["y"], min=0.0, max=6.0)],
                 WEIGHT, 8, ["conv 4x8x8>4x6x6 k3 relu6"]),
    "pad": ([N("Pad", ["x", "p"], ["q"]), N("Conv", ["q", "w"], ["y"])],
            WEIGHT | {"p": np.array([0, 0, 1, 0, 0, 0, 1, 2])}, 20, ["conv 4x8x8>4x8x8 k3 p1x0x1x2"]),
    "hardswish by hand": (
        [N("Conv", ["x", "w"], ["c"]), N("Add", ["c", "three"], ["a"]), N("Clip", ["a", "zero", "six"], ["r"]),
         N("Mul", ["c", "r"], ["m"]), N("Div", ["m", "six"], ["y"])],
        WEIGHT | {"three": F32(3), "zero": F32(0), "six": F32(6)}, 13, ["conv 4x8x8>4x6x6 k3 hardswish"],
    ),
    "bias apart": ([N("Conv", ["x", "w"], ["c"]), N("Add", ["b", "c"], ["y"])],
                   WEIGHT | {"b": np.zeros((4, 1, 1), F32)}, 20, ["conv 4x8x8>4x6x6 k3 bias"]),
    "matmul and bias": (
        [N("GlobalAveragePool", ["x"], ["g"]), N("Flatten", ["g"], ["f"]), N("MatMul", ["f", "m"], ["p"]),
         N("Add", ["p", "b"], ["y"])],
        {"m": np.zeros((4, 5), F32), "b": np.zeros(5, F32)}, 20,
        ["global_avg_pool 4x8x8>4x1x1", "linear 4>5 bias"],
    ),
    "old mean": ([N("ReduceMean", ["x"], ["y"], axes=[-1, -2], keepdims=0)], {}, 13, ["global_avg_pool 4x8x8>4x1x1"]),
    "shape computed": (
        [N("Shape", ["x"], ["s"]), N("Gather", ["s", "zero"], ["n"]), N("Concat", ["n", "rest"], ["t"], axis=0),
         N("Reshape", ["x", "t"], ["r"]), N("Gemm", ["r", "m"], ["y"], transB=1)],
        {"zero": np.array([0]), "rest": np.array([-1]), "m": np.zeros((3, 256), F32)}, 20, ["linear 256>3"],
    ),
    "split": ([N("Split", ["x"], ["a", "b"], axis=1, split=[1, 3]), N("Concat", ["b", "a"], ["y"], axis=-3)],
              {}, 11, ["split 4x8x8>4x8x8 c1x3", "concat 3x8x8,1x8x8>4x8x8"]),
    "unused": ([N("Softmax", ["x"], ["s"]), N("Relu", ["x"], ["y"])], {}, 20, ["act 4x8x8>4x8x8 relu"]),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str, tmp_path: Path) -> None:
    nodes, constants, opset, expected = SPELLINGS[spelling]
    network = read(model(nodes, constants=constants, opset=opset), tmp_path)
    assert network.unknown == ()
    assert [op.key for op in network.ops] == expected


@pytest.mark.parametrize(
    ("node", "named"),
    [
        (N("Softmax", ["c"], ["s"], name="head/softmax"), "Softmax head/softmax"),
        (N("Softmax", ["c"], ["s"]), "Softmax (gives s)"),
        (N("FancyConv", ["c"], ["s"], name="n", domain="acme"), "acme.FancyConv n"),
        (N("Clip", ["c", "", "six"], ["s"], name="n"), "Clip n"),
        (N("HardSigmoid", ["c"], ["s"], name="n"), "HardSigmoid n"),
        (N("Mul", ["c", "six"], ["s"], name="n"), "n"),
        (N("Transpose", ["c"], ["s"], name="n", perm=[1, 0, 2, 3]), "Transpose n"),
        (N("Conv", ["c", "c"], ["s"], name="n"), "Conv n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_understood_is_named_and_the_rest_is_read(node: onnx.NodeProto, named: str, tmp_path: Path) -> None:
    nodes = [N("Conv", ["x", "w"], ["c"]), node, N("Conv", ["x", "w"], ["d"]), N("Add", ["s", "d"], ["y"])]
    if node.op_type in ("Transpose", "Conv", "FancyConv"):  # their shapes do not fit the sum
        nodes[-1] = N("Sum", ["s", "d", "d"], ["y"], name="sum")
    proto = model(nodes, constants=WEIGHT | {"six": F32(6)}, domains=("acme",))
    network = read(proto, tmp_path)
    assert network.unknown[0] == named
    assert [op.kind for op in network.ops][:2] == ["conv", "conv"]


def test_open_image_size_is_asked_for_or_given(tmp_path: Path) -> None:
    proto = model([N("Conv", ["x", "w"], ["y"])], (1, 4, "height", "width"), WEIGHT)
    with pytest.raises(HwnasError, match=r"size of its images open \(4x\?x\?\): export it with a fixed size"):
        read(proto, tmp_path)
    assert read(proto, tmp_path, input_shape=(4, 10, 12)).ops[0].output == (4, 8, 10)
    with pytest.raises(HwnasError, match=r"takes images of 4x\?x\?, not 3x8x8"):
        read(proto, tmp_path, input_shape=(3, 8, 8))


def external(location: str) -> onnx.ModelProto:
    proto = model([N("Conv", ["x", "w"], ["y"])], constants=WEIGHT)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return proto


def test_weights_in_a_file_beside_are_not_needed_but_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(HwnasError, match=r"weights are in 'model.data', which is not there"):
        read(external("model.data"), tmp_path)
    (tmp_path / "model.data").write_bytes(b"")
    assert read(external("model.data"), tmp_path).params == 4 * 4 * 9


@pytest.mark.parametrize("location", ["../model.data", "/etc/passwd", "", "a/../../b"])
def test_weights_elsewhere_are_refused(location: str, tmp_path: Path) -> None:
    with pytest.raises(HwnasError, match="must lie in a file beside it"):
        read(external(location), tmp_path)


def test_a_file_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)  # sparse: takes no space
    with pytest.raises(HwnasError, match="too large"):
        ops_of(path)


def _two_inputs() -> onnx.ModelProto:
    proto = model([N("Add", ["x", "z"], ["y"])])
    proto.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 4, 8, 8)))
    return proto


def _vast_weights() -> onnx.ModelProto:
    proto = model([N("Conv", ["x", "w"], ["y"])], constants=WEIGHT)
    proto.graph.initializer[0].dims[0] = 2**33
    return proto


def _grown() -> onnx.ModelProto:
    """Each size is small enough, what comes of them is not: upsampling 2^16 times, twice."""
    nodes = [N("Resize", [name, "", "scales"], [to], mode="nearest") for name, to in (("x", "a"), ("a", "y"))]
    return model(nodes, (1, 4, 1, 1), {"scales": np.array([1, 1, 2**16, 1], np.float32)})


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "no ONNX file"),
    "text": (lambda: b"hello, world\n" * 100, "no ONNX file"),
    "torch": (lambda: b"PK\x03\x04" + bytes(1000), "no ONNX file"),
    "cut": (lambda: model([N("Conv", ["x", "w"], ["y"])], constants=WEIGHT).SerializeToString()[:-200], "no ONNX file"),
    "dangling": (lambda: model([N("Relu", ["ghost"], ["y"])]).SerializeToString(), "reads 'ghost', which"),
    "text input": (lambda: model([N("Relu", ["x"], ["y"])], (1, 128)).SerializeToString(), "input 'x' is no image"),
    "two inputs": (lambda: _two_inputs().SerializeToString(), "one image as its input was expected; its inputs: x, z"),
    "wrong shapes": (
        lambda: model([N("Conv", ["x", "w"], ["y"])], (1, 3, 8, 8), WEIGHT).SerializeToString(), "Conv",
    ),
    "image of 2^31 rows": (
        lambda: model([N("Relu", ["x"], ["y"])], (1, 3, 2**31, 2)).SerializeToString(), "'x' has a size of 2147483648",
    ),
    "batch of 2^63 - 1": (
        lambda: model([N("Relu", ["x"], ["y"])], (2**63 - 1, 3, 4, 4)).SerializeToString(), "has a size of 92233720368",
    ),
    "weights of 2^33 channels": (
        lambda: _vast_weights().SerializeToString(), "'w' has a size of 8589934592, more than runtimes take",
    ),
    "stride of 2^40": (
        lambda: model([N("Conv", ["x", "w"], ["y"], strides=[2**40, 1])], constants=WEIGHT).SerializeToString(),
        "strides of Conv (gives y) has a size of 1099511627776",
    ),
    "padding of -2^40": (
        lambda: model([N("Conv", ["x", "w"], ["y"], pads=[-(2**40)] * 4)], constants=WEIGHT).SerializeToString(),
        "pads of Conv (gives y) has a size of 1099511627776",
    ),
    "grown beyond 2^31": (lambda: _grown().SerializeToString(), "has a size of 4294967296"),
    "constant": (
        lambda: model([N("Relu", ["w"], ["y"])], constants=WEIGHT).SerializeToString(), "nothing that depends",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_are_no_models(case: str, tmp_path: Path) -> None:
    make, message = BROKEN[case]
    path = tmp_path / "model.onnx"
    path.write_bytes(make())
    if case == "wrong shapes":
        assert ops_of(path).unknown == ("Conv (gives y)",)
        return
    with pytest.raises(HwnasError) as caught:
        ops_of(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(HwnasError, match="No such file"):
        ops_of(tmp_path / "missing.onnx")
    with pytest.raises(HwnasError, match="is no file"):
        ops_of(tmp_path)
