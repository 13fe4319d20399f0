"""One operator as it runs inside a network of ONNX Runtime.

Measured alone, a convolution pays for turning its input into the runtime's blocked layout and its output back, which
it does not pay inside a network. So before each input that a network has in blocks stands an anchor (a 1x1 convolution,
which the runtime runs in blocks), the runtime's own optimiser transforms the whole, and what it put behind the anchors
is what is timed, without the conversion of a blocked output: fused, in the layout of a network. Conversions that a
network does pay are operators of their own (`hwnas.latency.lowering`). That core is repeated, each copy with weights of
its own, so that one run is long against the clock.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwnas.measure.onnx_models import BLOCKED

ALIGNMENT = 4
"""The runtime runs depthwise convolutions in blocks where their channels are a multiple of it."""

FEED = 16
"""Channels that feed an anchor of other widths."""

ShapesOf = Callable[[onnx.ModelProto], list[tuple[int, ...]]]


def anchored(model: bytes) -> tuple[onnx.ModelProto, frozenset[str]]:
    """The one-operator model with an anchor before each input that a network has in blocks of channels.

    Which tensors these are the model says (`hwnas.measure.onnx_models.BLOCKED`). Returns the names of such outputs too.
    """
    proto = onnx.load_from_string(model)
    graph = proto.graph
    blocked = frozenset({item.key: item.value.split() for item in proto.metadata_props}.get(BLOCKED, ()))
    anchors = []
    for value in graph.input:
        if value.name in blocked:
            inner = f"{value.name}_anchored"
            _rename(graph, value.name, inner)
            channels = _dims(value)[1]
            if channels % ALIGNMENT:
                value.type.tensor_type.shape.dim[1].dim_value = FEED
            anchors += _anchor(graph, value.name, inner, channels)
    after = []
    for value in graph.output:
        # a conversion to blocks needs a reader of blocks; and the runtime fuses an activation that it writes as several
        # nodes (HardSwish) only where it does not end the graph
        if value.name in blocked and _dims(value)[1] % ALIGNMENT == 0:
            inner = f"{value.name}_inner"
            _rename(graph, value.name, inner)
            after += _anchor(graph, inner, value.name, _dims(value)[1])
    nodes = [*anchors, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return proto, blocked & {value.name for value in graph.output}


def _anchor(graph: onnx.GraphProto, source: str, target: str, channels: int) -> list[onnx.NodeProto]:
    """A convolution by ones that gives so many channels, from as many or from `FEED`."""
    depthwise = channels % ALIGNMENT == 0
    weight, inner = f"{target}_anchor", f"{target}_plain"
    shape = (channels, 1 if depthwise else FEED, 1, 1)
    graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), weight))
    # its own activation keeps the runtime from fusing the operator's addition or activation into the anchor
    return [
        helper.make_node("Conv", [source, weight], [inner], kernel_shape=[1, 1], group=channels if depthwise else 1),
        helper.make_node("Tanh", [inner], [target]),
    ]


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


@dataclass(frozen=True, slots=True)
class Core:
    """What the runtime put behind the anchors.

    Attributes:
        source: the optimised model it was cut from (initialisers, opsets).
        nodes: in topological order.
        inputs, outputs: names and shapes, in whatever layout the runtime chose.
    """

    source: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]

    def model(self, repeats: int) -> onnx.ModelProto:
        """A model that runs `repeats` copies of the core, all fed from the same inputs."""
        return repeated(self, repeats)


def core_of(optimised: onnx.ModelProto, ends: Collection[str], shapes_of: ShapesOf) -> Core:
    """Cuts the core out of an optimised model.

    Args:
        optimised: what the runtime made of the anchored model.
        ends: its outputs that a network has in blocks.
        shapes_of: runs a model and returns its outputs' shapes.
    """
    nodes = list(optimised.graph.node)
    producer = {name: node for node in nodes for name in node.output}
    fixed = {value.name: value for value in optimised.graph.initializer}
    outputs = []
    for value in optimised.graph.output:
        name = value.name
        if name in ends:
            if producer[name].op_type == "ReorderOutput":  # only the end of the graph asks for it
                name = producer[name].input[0]
            if _is_anchor(producer[name], fixed):
                name = producer[name].input[0]
        outputs.append(name)
    core: list[onnx.NodeProto] = []
    inputs: list[str] = []
    seen: set[str] = set()

    def walk(name: str) -> None:
        if name in seen or name in fixed or not name:
            return
        seen.add(name)
        node = producer.get(name)
        if node is None or _is_anchor(node, fixed):
            inputs.append(name)
            return
        for source in node.input:
            walk(source)
        if not any(node is other for other in core):
            core.append(node)

    for name in outputs:
        walk(name)
    if not core:
        raise ValueError("the runtime left nothing of the operator to time")
    probe = copy.deepcopy(optimised)
    del probe.graph.output[:]
    known = {value.name: _dims(value) for value in optimised.graph.input}
    asked = [name for name in dict.fromkeys([*inputs, *outputs]) if name not in known]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in asked)
    shapes = known | dict(zip(asked, shapes_of(probe), strict=True))
    return Core(
        optimised,
        tuple(core),
        tuple((name, shapes[name]) for name in inputs),
        tuple((name, shapes[name]) for name in outputs),
    )


def _is_anchor(node: onnx.NodeProto, weights: dict[str, TensorProto]) -> bool:
    """A 1x1 convolution without bias whose weights are one (or the zeros that fill a block of channels).

    The runtime turns a BatchNorm into such a convolution too, but with a bias; weights of operators are random. In the
    plain layout it calls a convolution with an activation `FusedConv`.
    """
    if node.op_type not in ("Conv", "FusedConv") or len(node.input) != 2 or node.input[1] not in weights:
        return False
    weight = weights[node.input[1]]
    if len(weight.dims) != 4 or tuple(weight.dims[2:]) != (1, 1):
        return False
    values = numpy_helper.to_array(weight)
    return bool(values.any() and ((values == 0) | (values == 1)).all())


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def repeated(core: Core, repeats: int) -> onnx.ModelProto:
    """`repeats` copies of the core in one graph; every copy has its own weights and outputs."""
    initializers = {value.name: value for value in core.source.graph.initializer}
    produced = {name for node in core.nodes for name in node.output}
    nodes, weights, outputs = [], [], []
    for index in range(repeats):
        used: dict[str, str] = {}
        for step, node in enumerate(core.nodes):
            twin = copy.deepcopy(node)
            twin.name = f"{step}#{index}"
            for position, name in enumerate(node.input):
                if name in produced:
                    twin.input[position] = f"{name}#{index}"
                elif name in initializers:
                    used[name] = twin.input[position] = f"{name}#{index}"
            twin.output[:] = [f"{name}#{index}" if name else name for name in node.output]
            nodes.append(twin)
        for name, twin_name in used.items():
            weight = copy.deepcopy(initializers[name])
            weight.name = twin_name
            weights.append(weight)
        outputs += [
            helper.make_tensor_value_info(f"{name}#{index}", TensorProto.FLOAT, shape) for name, shape in core.outputs
        ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in core.inputs]
    graph = helper.make_graph(nodes, "operator", inputs, outputs, weights)
    return helper.make_model(graph, ir_version=core.source.ir_version, opset_imports=list(core.source.opset_import))
