"""ONNX models in another precision: float16 throughout, or int8 by Q/DQ nodes around convolutions and linear layers.

Deployment runtimes with strongly typed networks compute in the types of the file, so that the file is what decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hwnas.errors import HwnasError

FLOAT16_MAX = 65504.0
INT8_MAX = 127

_STAY_FLOAT = {"Resize": (1, 2), "Upsample": (1,), "QuantizeLinear": (1,), "DequantizeLinear": (1,)}
"""Inputs, by operator, that are float32 whatever the data are."""

_QUANTISED = ("Conv", "Gemm")
_CALIBRATION_SEED = 7


def to_float16(model: bytes) -> bytes:
    """The model with float16 weights, activations, inputs and outputs.

    Raises:
        HwnasError: it is no ONNX model, is quantised, or a weight is not finite in float16.
    """
    proto = _load(model)
    graph = proto.graph
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        raise HwnasError("the model is quantised: it cannot be brought to float16")
    kept = {
        node.input[place]
        for node in graph.node
        for place in _STAY_FLOAT.get(node.op_type, ())
        if place < len(node.input)
    }
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            tensor.CopyFrom(_half(tensor))
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        if kind.elem_type == TensorProto.FLOAT and value.name not in kept:
            kind.elem_type = TensorProto.FLOAT16
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT and not kept & {*node.output}:
                attribute.t.CopyFrom(_half(attribute.t))
    return bytes(proto.SerializeToString())


def _half(tensor: TensorProto) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    if not np.isfinite(values).all() or (values.size and float(np.abs(values).max()) > FLOAT16_MAX):
        raise HwnasError(f"{tensor.name}: a weight is beyond what float16 holds (65504): deploy it in fp32")
    return numpy_helper.from_array(values.astype(np.float16), tensor.name)


def to_int8(model: bytes, images: NDArray[np.float32] | None = None) -> bytes:
    """The model with Q/DQ nodes on the inputs and weights of its convolutions and linear layers.

    Activations get one symmetric scale a tensor, so that the largest value in `images` just fits; weights one a
    channel. The product is computed in int8; what lies between stays float32.

    Args:
        model: a float32 model. One that has Q/DQ nodes already is returned as it is.
        images: the calibration set [images, channels, height, width], a multiple of the model's batch; without one,
            normally distributed random values: enough to time a network, not to deploy it.

    Raises:
        HwnasError: it is no float32 ONNX model, or does not run on these images.
    """
    proto = _load(model)
    graph = proto.graph
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        return model
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in _QUANTISED and node.input[1] in weights]
    names = list(dict.fromkeys(node.input[0] for node in nodes))
    scales = activation_scales(model, names, images)
    writer = _Quantiser(graph, weights)
    quantised: dict[str, str] = {}
    for node in nodes:
        # named after the operator that they are for, so that layers made from them are told to be its own
        prefix = node.name[: node.name.find(".") + 1]
        axis = 1 if node.op_type == "Gemm" and not _transposed(node) else 0
        source = node.input[0]
        if source not in quantised:
            quantised[source] = writer.activation(source, scales[source], prefix)
        node.input[0] = quantised[source]
        node.input[1] = writer.weight(node.input[1], axis, prefix)
    writer.finish()
    return bytes(proto.SerializeToString())


def _transposed(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def activation_scales(
    model: bytes, names: Sequence[str], images: NDArray[np.float32] | None = None
) -> Mapping[str, float]:
    """For each tensor the scale at which its largest magnitude is 127; found by running the model on `images`.

    Raises:
        HwnasError: the model does not run on them.
    """
    import onnxruntime as ort

    proto = _load(model)
    given = {value.name for value in proto.graph.input}
    del proto.graph.output[:]
    inner = [name for name in names if name not in given]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner)
    if not inner:  # nothing has to be run
        inner, proto = [], _load(model)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        largest: dict[str, float] = {}
        for feeds in _batches(session.get_inputs(), images):
            found = dict(zip(inner, session.run(inner, feeds), strict=True)) if inner else {}
            for name in names:
                value = found[name] if name in found else feeds[name]
                largest[name] = max(largest.get(name, 0.0), float(np.abs(value).max()))
    except Exception as error:  # the runtime's errors have no common type
        reason = " ".join(str(error).split())[:200]
        raise HwnasError(f"the model does not run on the calibration images: {reason}") from None
    return {name: max(value, 1e-6) / INT8_MAX for name, value in largest.items()}


def _batches(inputs: Sequence[object], images: NDArray[np.float32] | None) -> list[dict[str, NDArray[np.float32]]]:
    rng = np.random.default_rng(_CALIBRATION_SEED)
    shapes = {
        str(getattr(node, "name", "")): [size if isinstance(size, int) else 1 for size in getattr(node, "shape", ())]
        for node in inputs
    }
    if images is None:
        return [{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}]
    ((name, shape),) = shapes.items()
    parts = np.split(images, max(1, len(images) // shape[0]))
    return [{name: np.ascontiguousarray(part, np.float32)} for part in parts]


class _Quantiser:
    """Adds Q/DQ nodes to a graph."""

    def __init__(self, graph: onnx.GraphProto, weights: Mapping[str, TensorProto]) -> None:
        self._graph, self._weights = graph, weights
        self._before: dict[str, list[onnx.NodeProto]] = {}
        self._done: dict[str, str] = {}
        self._constants: list[onnx.NodeProto] = []

    def activation(self, name: str, scale: float, prefix: str) -> str:
        """The tensor, quantised and back; returns its name."""
        factor, zero = self._scale(f"{name}_scale", np.asarray(scale, np.float32))
        middle, result = f"{name}_quantised", f"{name}_dequantised"
        self._before[name] = [
            helper.make_node("QuantizeLinear", [name, factor, zero], [middle], name=f"{prefix}{name}_quantise"),
            helper.make_node("DequantizeLinear", [middle, factor, zero], [result], name=f"{prefix}{name}_dequantise"),
        ]
        return result

    def weight(self, name: str, axis: int, prefix: str) -> str:
        """The weight as int8 with a scale a channel, and back; returns its name."""
        if name in self._done:
            return self._done[name]
        values = numpy_helper.to_array(self._weights[name])
        others = tuple(place for place in range(values.ndim) if place != axis)
        scale = np.maximum(np.abs(values).max(others), 1e-9).astype(np.float32) / INT8_MAX
        shape = [-1 if place == axis else 1 for place in range(values.ndim)]
        whole = np.clip(np.rint(values / scale.reshape(shape)), -INT8_MAX, INT8_MAX).astype(np.int8)
        factor, zero = self._scale(f"{name}_scale", scale)
        self._graph.initializer.append(numpy_helper.from_array(whole, f"{name}_quantised"))
        result = f"{name}_dequantised"
        inputs = [f"{name}_quantised", factor, zero]
        node = helper.make_node("DequantizeLinear", inputs, [result], name=f"{prefix}{name}_dequantise", axis=axis)
        self._constants.append(node)
        self._done[name] = result
        return result

    def _scale(self, name: str, values: NDArray[np.float32]) -> tuple[str, str]:
        zero = f"{name}_zero"
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        self._graph.initializer.append(numpy_helper.from_array(np.zeros(values.shape, np.int8), zero))
        return name, zero

    def finish(self) -> None:
        """Puts the nodes where they are in topological order, and drops weights that nobody reads any more."""
        made = {name for node in self._graph.node for name in node.output}
        nodes = [*self._constants, *(node for name in self._before if name not in made for node in self._before[name])]
        for node in self._graph.node:
            nodes.append(node)
            nodes += [added for name in node.output for added in self._before.get(name, ())]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)


def _load(model: bytes) -> onnx.ModelProto:
    try:
        return onnx.load_from_string(model)
    except Exception:  # protobuf's errors have no common type
        raise HwnasError("not an ONNX model") from None


CONVERSIONS = {"fp32": lambda model: model, "fp16": to_float16, "int8": to_int8}
"""Precision of a profile -> what brings a float32 model to it."""
