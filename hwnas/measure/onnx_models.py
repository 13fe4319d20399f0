"""Writes a `Network`, or one `Op`, as an ONNX model with random weights: what a runtime is given to be timed.

The graph is what deployment gives: every BatchNorm folded into a bias, float32, a fixed batch. Weights are scaled so
that activations of deep nets stay near one: denormals or infinities would falsify the timing. Written with
`onnx.helper`, which takes milliseconds; torch is not needed. To be timed an outline of it is enough
(`hwnas.measure.outlines`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from hwnas.errors import HwnasError
from hwnas.measure.outlines import MAX_BYTES, POOL_SIZE, described, filled
from hwnas.network import INPUT, Network, Ref
from hwnas.ops import Op, Shape

IR_VERSION = 10
OPSET = 20
"""Older than what onnx writes by default, which ONNX Runtime and TensorRT refuse."""

BIAS_STD = 0.1
"""Spread of biases: revives activations that a deep net without normalisation would let die."""

BLOCKED = "hwnas.blocked"
"""Key of a model's metadata: which of its tensors are in blocks of channels, by name."""

GRAPH_BYTES = 2**24
"""What of an ONNX file is left for all that are no weights."""

TOO_LARGE = "the network is larger than an ONNX file can be (2 GiB): choose a smaller one"


def network_to_onnx(network: Network, *, batch_size: int = 1, seed: int = 0) -> bytes:
    """The network as a serialised ONNX model with input "input" and output "output".

    Raises:
        HwnasError: the network has operators that are not known, or is too large for one file (2 GiB).
    """
    return filled(network_outline(network, batch_size=batch_size, seed=seed))


def op_to_onnx(op: Op, *, batch_size: int = 1, seed: int = 0, blocked: Sequence[str] = ()) -> bytes:
    """One operator as a serialised ONNX model with inputs "input0", "input1", … and outputs "output0", …

    `blocked` names those tensors that a network has in blocks of channels (`hwnas.latency.lowering`); the model says so
    to the runtime that times it.
    """
    return filled(op_outline(op, batch_size=batch_size, seed=seed, blocked=blocked))


def network_outline(network: Network, *, batch_size: int = 1, seed: int = 0) -> bytes:
    """`network_to_onnx` as an outline; errors are the same."""
    if network.unknown:
        raise HwnasError(f"cannot write a network with unknown operators: {', '.join(network.unknown[:5])}")
    _check_size(network.ops)
    writer = _Writer(batch_size, seed)
    values: dict[Ref, tuple[str, Shape]] = {INPUT: (writer.input("input", network.input_shape), network.input_shape)}
    for index, node in enumerate(network.nodes):
        writer.prefix = node_prefix(index)
        fed = [writer.reshaped(*values[ref], shape) for ref, shape in zip(node.inputs, node.op.inputs, strict=True)]
        results = writer.write(node.op, fed)
        values.update({(index, port): result for port, result in enumerate(zip(results, node.op.outputs, strict=True))})
    name, shape = values[network.output]
    return writer.model([("output", name, shape)])


def node_prefix(index: int) -> str:
    """What the names of ONNX nodes begin with that were written for node `index` of a network."""
    return f"n{index}."


def op_outline(op: Op, *, batch_size: int = 1, seed: int = 0, blocked: Sequence[str] = ()) -> bytes:
    """`op_to_onnx` as an outline."""
    _check_size([op])
    writer = _Writer(batch_size, seed)
    if blocked:
        writer.metadata[BLOCKED] = " ".join(blocked)
    fed = [writer.input(f"input{index}", shape) for index, shape in enumerate(op.inputs)]
    results = zip(writer.write(op, fed), op.outputs, strict=True)
    return writer.model([(f"output{index}", name, shape) for index, (name, shape) in enumerate(results)])


def weight_bytes(ops: Sequence[Op]) -> int:
    """Of a model's weights, which its outline only describes."""
    return 4 * sum(op.deployed_params * (2 if op.kind == "affine" else 1) for op in ops)


def _check_size(ops: Sequence[Op]) -> None:
    """Refuses what no file holds before memory is taken for its weights."""
    if weight_bytes(ops) >= MAX_BYTES - GRAPH_BYTES:
        raise HwnasError(TOO_LARGE)


class _Writer:
    """Collects the nodes and weights of one graph."""

    def __init__(self, batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.inputs: list[onnx.ValueInfoProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.metadata: dict[str, str] = {}
        self.prefix = ""

    def input(self, name: str, shape: Shape) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, (self.batch_size, *shape)))
        return name

    def node(self, op_type: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Adds a node and returns the names of its outputs."""
        name = f"{self.prefix}{op_type}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{port}" for port in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, name=name, **attributes))
        return names

    def constant(self, values: NDArray[Any] | Sequence[float] | Sequence[int], name: str = "") -> str:
        """Adds an initialiser: float32, or int64 where the values are whole numbers (shapes)."""
        array = np.asarray(values)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32, copy=False)
        name = name or f"constant_{len(self.initializers)}"
        data_type = TensorProto.INT64 if array.dtype == np.int64 else TensorProto.FLOAT
        self.initializers[name] = helper.make_tensor(name, data_type, array.shape, array.tobytes(), raw=True)
        return name

    def normal(self, shape: Sequence[int], std: float) -> str:
        """Adds a random initialiser, cut from a pool: drawing every weight anew would take most of the time."""
        name = f"constant_{len(self.initializers)}"
        start = int(self.rng.integers(POOL_SIZE))
        self.initializers[name] = described(name, shape, seed=self.seed, start=start, std=std)
        return name

    def weights(self, op: Op) -> list[str]:
        """The weight of a convolution or linear layer, He-scaled, and its bias if it has one."""
        if op.kind == "conv":
            shape: tuple[int, ...] = (op.output[0], op.inputs[0][0] // op.groups, *op.kernel)
        else:
            shape = (op.output[0], op.inputs[0][0])
        names = [self.normal(shape, math.sqrt(2 / math.prod(shape[1:])))]
        if op.bias or op.norm:
            names.append(self.normal((op.output[0],), BIAS_STD))
        return names

    def reshaped(self, name: str, arriving: Shape, wanted: Shape) -> str:
        """The value in the shape that its consumer takes (`hwnas.network.reshapes_freely`)."""
        if arriving == wanted:
            return name
        if len(wanted) == 1:
            return self.node("Flatten", [name], axis=1)[0]
        return self.node("Reshape", [name, self.constant([self.batch_size, *wanted])])[0]

    def write(self, op: Op, inputs: Sequence[str]) -> list[str]:
        """Adds `op` with its residual add and activation; returns the names of its outputs."""
        results = _WRITERS[op.kind](self, op, list(inputs))
        if op.residual:
            results = self.node("Add", [results[0], inputs[-1]])
        return [_write_act(self, op.act, result) for result in results] if op.act else results

    def model(self, outputs: Sequence[tuple[str, str, Shape]]) -> bytes:
        """The serialised model; `outputs` are (name outside, name inside, shape)."""
        for outside, inside, _ in outputs:
            self.nodes.append(helper.make_node("Identity", [inside], [outside], name=outside))
        self._drop_identities()
        results = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, (self.batch_size, *shape))
            for name, _, shape in outputs
        ]
        graph = helper.make_graph(self.nodes, "hwnas", self.inputs, results, list(self.initializers.values()))
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="hwnas")
        helper.set_model_props(model, self.metadata)
        serialized: bytes = model.SerializeToString()
        return serialized

    def _drop_identities(self) -> None:
        """Renames what feeds an output instead of copying it, where nobody else reads that value under its own name."""
        made = {name: node for node in self.nodes for name in node.output}
        for node in [node for node in self.nodes if node.op_type == "Identity"]:
            source = node.input[0]
            readers = sum(list(other.input).count(source) for other in self.nodes)
            if source in made and readers == 1:
                made[source].output[list(made[source].output).index(source)] = node.output[0]
                self.nodes.remove(node)


def _write_act(writer: _Writer, act: str, value: str) -> str:
    if act == "relu6":
        bounds = [writer.constant(np.asarray(bound), name) for name, bound in (("zero", 0.0), ("six", 6.0))]
        return writer.node("Clip", [value, *bounds])[0]
    if act == "silu":
        return writer.node("Mul", [value, writer.node("Sigmoid", [value])[0]])[0]
    if act == "hardswish":  # as the runtime writes it out, but under a name that tells which operator it is of
        gate = writer.node("HardSigmoid", [value], alpha=1 / 6, beta=0.5)[0]
        return writer.node("Mul", [value, gate])[0]
    op_type, attributes = _ACTS[act]
    return writer.node(op_type, [value], **attributes)[0]


_ACTS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "sigmoid": ("Sigmoid", {}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "tanh": ("Tanh", {}),
    "gelu": ("Gelu", {}),
    "leakyrelu": ("LeakyRelu", {"alpha": 0.01}),
}


def _write_conv(writer: _Writer, op: Op, inputs: list[str]) -> list[str]:
    return writer.node(
        "Conv",
        [inputs[0], *writer.weights(op)],
        kernel_shape=op.kernel,
        strides=op.stride,
        pads=op.padding,
        dilations=op.dilation,
        group=op.groups,
    )


def _write_linear(writer: _Writer, op: Op, inputs: list[str]) -> list[str]:
    return writer.node("Gemm", [inputs[0], *writer.weights(op)], transB=1)


def _write_pool(writer: _Writer, op: Op, inputs: list[str]) -> list[str]:
    op_type = "MaxPool" if op.kind == "max_pool" else "AveragePool"
    return writer.node(op_type, inputs, kernel_shape=op.kernel, strides=op.stride, pads=op.padding)


def _write_split(writer: _Writer, op: Op, inputs: list[str]) -> list[str]:
    return writer.node("Split", [inputs[0], writer.constant(op.sections)], len(op.sections), axis=1)


def _write_shuffle(writer: _Writer, op: Op, inputs: list[str]) -> list[str]:
    channels, *rest = op.output
    batch, groups = writer.batch_size, op.groups
    (grouped,) = writer.node("Reshape", [inputs[0], writer.constant([batch, groups, channels // groups, *rest])])
    (turned,) = writer.node("Transpose", [grouped], perm=[0, 2, 1, *range(3, 3 + len(rest))])
    return writer.node("Reshape", [turned, writer.constant([batch, channels, *rest])])


def _write_affine(writer: _Writer, op: Op, inputs: list[str]) -> list[str]:
    channels = op.output[0]
    ones = np.ones(channels, np.float32)
    shift = writer.normal((channels,), BIAS_STD)
    mean = writer.normal((channels,), BIAS_STD)
    return writer.node("BatchNormalization", [inputs[0], writer.constant(ones), shift, mean, writer.constant(ones)])


_WRITERS: dict[str, Callable[[_Writer, Op, list[str]], list[str]]] = {
    "conv": _write_conv,
    "linear": _write_linear,
    "max_pool": _write_pool,
    "avg_pool": _write_pool,
    "global_avg_pool": lambda writer, _, inputs: writer.node("GlobalAveragePool", inputs),
    "add": lambda writer, _, inputs: writer.node("Add", inputs),
    "mul": lambda writer, _, inputs: writer.node("Mul", inputs),
    "concat": lambda writer, _, inputs: writer.node("Concat", inputs, axis=1),
    "split": _write_split,
    "shuffle": _write_shuffle,
    "act": lambda _writer, _, inputs: inputs,
    "affine": _write_affine,
    "to_blocked": lambda _writer, _, inputs: inputs,
    "to_plain": lambda _writer, _, inputs: inputs,
}
