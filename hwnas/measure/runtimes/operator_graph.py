"""One operator as it runs inside a network of ONNX Runtime.

Measured alone, a convolution pays for turning its input into the runtime's blocked layout and its output back, which it
does not pay inside a network. So the operator is put between anchors (1x1 max poolings, which take either layout), the
runtime's own optimiser transforms the whole, and what it put BETWEEN the anchors is what is timed: fused, in the layout
of a network, with conversions only where the operator itself forces them. That core is repeated, each copy with weights
of its own, so that one run is long against the clock and weights are as cold as in a network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

_ANCHOR_KERNEL = [1, 1]
ShapesOf = Callable[[onnx.ModelProto], list[tuple[int, ...]]]


def anchored(model: bytes) -> onnx.ModelProto:
    """The one-operator model with an anchor at each image-shaped input and output."""
    proto = onnx.load_from_string(model)
    graph = proto.graph
    first, last = [], []
    for value in graph.input:
        if _rank(value) == 4:
            _rename_input(graph, value.name, f"{value.name}_anchored")
            first.append(_anchor(value.name, f"{value.name}_anchored"))
    for value in graph.output:
        if _rank(value) == 4:
            inner = f"{value.name}_inner"
            for node in graph.node:
                node.output[:] = [inner if name == value.name else name for name in node.output]
                node.input[:] = [inner if name == value.name else name for name in node.input]
            last.append(_anchor(inner, value.name))
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    return proto


def _rank(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)


def _anchor(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("MaxPool", [source], [target], kernel_shape=_ANCHOR_KERNEL)


def _rename_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


@dataclass(frozen=True, slots=True)
class Core:
    """What the runtime put between the anchors.

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


def between_anchors(optimised: onnx.ModelProto, shapes_of: ShapesOf) -> Core:
    """Cuts the core out of an optimised model. `shapes_of` runs a model and returns its outputs' shapes."""
    nodes = list(optimised.graph.node)
    producer = {name: node for node in nodes for name in node.output}
    fixed = {value.name for value in optimised.graph.initializer}
    outputs = []
    for value in optimised.graph.output:
        # behind the last anchor the runtime may have put a conversion back to the plain layout: walk up to the anchor
        anchor = producer[value.name]
        while not _is_anchor(anchor) and anchor.op_type == "ReorderOutput":
            anchor = producer[anchor.input[0]]
        outputs.append(anchor.input[0] if _is_anchor(anchor) else value.name)
    core: list[onnx.NodeProto] = []
    inputs: list[str] = []
    seen: set[str] = set()

    def walk(name: str) -> None:
        if name in seen or name in fixed or not name:
            return
        seen.add(name)
        node = producer.get(name)
        if node is None or _is_anchor(node):
            inputs.append(name)
            return
        for source in node.input:
            walk(source)
        if not any(node is other for other in core):
            core.append(node)

    for name in outputs:
        walk(name)
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


def _is_anchor(node: onnx.NodeProto) -> bool:
    return node.op_type == "MaxPool" and any(
        attribute.name == "kernel_shape" and list(attribute.ints) == _ANCHOR_KERNEL for attribute in node.attribute
    )


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def repeated(core: Core, repeats: int) -> onnx.ModelProto:
    """`repeats` copies of the core in one graph; every copy has its own weights and outputs."""
    initializers = {value.name: value for value in core.source.graph.initializer}
    produced = {name for node in core.nodes for name in node.output}
    nodes, weights, outputs = [], [], []
    for index in range(repeats):
        used: dict[str, str] = {}
        for node in core.nodes:
            twin = copy.deepcopy(node)
            twin.name = f"{node.name}#{index}"
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
