"""One operator between neighbours, for a runtime that does not let its optimised graph be cut open.

Measured alone, an operator pays for bringing its input into the runtime's layout and its output back, which it does not
pay inside a network. So a *fan* is built: an anchor (a 1x1 convolution of few channels, which leaves its output in the
layout of convolutions, just written) feeds many copies of the operator, each with weights of its own. Of what a copy
makes, one single number is taken on (an outlet), so that no copy can be optimised away and nothing is brought back. The
same graph without the copies takes what all of that costs: the difference is the copies alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

IMAGE_CHANNELS = 4
"""Inputs with up to so many channels are images: a network gets them in the plain layout."""

ANCHOR_CHANNELS = 8
"""Channels that an anchor makes its output of: few, so that it takes little beside the operator."""

Dims = tuple[int, ...]


def fan(model: bytes, copies: int, *, operator: bool = True) -> bytes:
    """The fan of a one-operator model, or what is left of it without the operator.

    Args:
        model: a serialised ONNX model as `hwnas.measure.onnx_models.op_to_onnx` writes it.
        copies: of the operator, or as many outlets as there would be.
        operator: False leaves the copies out.

    Raises:
        ValueError: the model is none of one operator, or does not take float32.
    """
    built = _Fan(onnx.load_from_string(model), copies, operator)
    return built.model()


class _Fan:
    """Collects the graph.

    Copies with weights share their inputs, except for images: a network turns each into the layout once. Copies without
    weights would be merged if they did, so that each has an anchor or an input of its own. Where an operator adds a
    residual, the next copy adds to the sum of the one before, as runtimes do it in place.
    """

    def __init__(self, source: onnx.ModelProto, copies: int, operator: bool) -> None:
        self.source = source
        self.graph = source.graph
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.outlets: dict[int, list[str]] = {}
        self.taps: dict[str, int] = {}
        self.values: dict[tuple[str, int], str] = {}
        self.sources: set[str] = set()
        self.weights = {value.name: numpy_helper.to_array(value) for value in self.graph.initializer}
        self.weighted = any(map(_is_weight, self.weights.values()))
        self.fed = [(value.name, _dims(value)) for value in self.graph.input if value.name not in self.weights]
        self.made = [(value.name, _dims(value)) for value in self.graph.output]
        self.chained = self.weighted and len(self.fed) > 1
        if not self.made or not self.graph.node:
            raise ValueError("there is no operator in the model")
        self._build(copies, operator)

    def _build(self, copies: int, operator: bool) -> None:
        kept = self.fed[:-1] if self.chained else self.fed
        total = self._value(*self.fed[-1], 0) if self.chained else ""
        for index in range(copies):
            fed = {name: self._value(name, dims, index) for name, dims in kept}
            made = self._copy(index, fed | {self.fed[-1][0]: total} if self.chained else fed) if operator else {}
            if self.chained:
                total = made.get(self.made[0][0], total)
                continue
            for name, dims in self.made:
                self._tap(made.get(name) or fed[self.fed[0][0]], dims if made else self.fed[0][1])
        if self.chained:
            self._tap(total, self.fed[-1][1])

    def _value(self, name: str, dims: Dims, index: int) -> str:
        """What copy `index` gets for the operator's input `name`."""
        image = len(dims) == 4 and dims[1] <= IMAGE_CHANNELS
        if self.weighted and not image:
            # as many copies share a value as it has numbers to tap, besides the one that is tapped in any case
            index //= max(1, (math.prod(dims) - 1) // len(self.made))
        if (name, index) in self.values:
            return self.values[name, index]
        if len(dims) == 4 and not image:
            source = f"{name}_source"
            if source not in self.sources:
                self.sources.add(self._input(source, (dims[0], ANCHOR_CHANNELS, *dims[2:])))
            value = self._anchor(source, f"{name}_{index}", dims[1], index)
            if not (self.chained and name == self.fed[-1][0]):
                self._tap(value, dims)  # with a second reader no runtime fuses the operator into its anchor
        else:
            value = self._input(f"{name}_{index}", dims)
        self.values[name, index] = value
        return value

    def _input(self, name: str, dims: Dims) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
        return name

    def _anchor(self, source: str, name: str, channels: int, seed: int) -> str:
        """Weights and bias are random: a runtime turns ones or zeros into something else."""
        rng = np.random.default_rng(seed)
        shape = (channels, ANCHOR_CHANNELS, 1, 1)
        weight = self._constant(f"{name}_weight", rng.standard_normal(shape, np.float32))
        bias = self._constant(f"{name}_bias", rng.standard_normal(channels, np.float32))
        self.nodes.append(helper.make_node("Conv", [source, weight, bias], [name], name, kernel_shape=[1, 1]))
        return name

    def _copy(self, index: int, fed: dict[str, str]) -> dict[str, str]:
        """Adds one copy; returns the new names of all its values."""
        names = dict(fed)
        for name, values in self.weights.items():
            if not _is_weight(values):
                names[name] = self._constant(name, values)
            else:  # equal weights would be kept once, and equal operators be run once
                names[name] = self._constant(f"{name}_{index}", values * np.float32(1 + index / 1024))
        for step, node in enumerate(self.graph.node):
            twin = copy.deepcopy(node)
            names |= {name: f"copy{index}_{name}" for name in node.output if name}
            twin.name = f"copy{index}_{step}"
            twin.input[:] = [names.get(name, name) for name in node.input]
            twin.output[:] = [names.get(name, name) for name in node.output]
            self.nodes.append(twin)
        return names

    def _tap(self, value: str, dims: Dims) -> None:
        """An outlet: one number of `value`, at another place than those before, since equal ones would be merged."""
        place = self.taps.get(value, 0)
        self.taps[value] = place + 1
        at = np.array(np.unravel_index(place % math.prod(dims), dims), np.int64)
        bounds = [self._constant(f"{end}_{'_'.join(map(str, at))}", at + add) for end, add in (("from", 0), ("to", 1))]
        axes = self._constant(f"axes_{len(dims)}", np.arange(len(dims), dtype=np.int64))
        outlet = f"{value}_outlet_{place}"
        self.nodes.append(helper.make_node("Slice", [value, *bounds, axes], [outlet], outlet))
        self.outlets.setdefault(len(dims), []).append(outlet)

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def model(self) -> bytes:
        """The serialised model, with one output for each rank of outlets."""
        outputs = []
        for rank, outlets in self.outlets.items():
            name = f"outlets_{rank}"
            self.nodes.append(helper.make_node("Concat", outlets, [name], name, axis=0))
            dims = [len(outlets), *[1] * (rank - 1)]
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
        graph = helper.make_graph(self.nodes, "fan", self.inputs, outputs, list(self.initializers.values()))
        opsets: Sequence[onnx.OperatorSetIdProto] = list(self.source.opset_import)
        built = helper.make_model(graph, ir_version=self.source.ir_version, opset_imports=opsets)
        return bytes(built.SerializeToString())


def _is_weight(values: NDArray[Any]) -> bool:
    """Not a shape, and not a bound of an activation."""
    return values.dtype == np.float32 and values.size > 1


def _dims(value: onnx.ValueInfoProto) -> Dims:
    """The shape of a float32 value.

    Raises:
        ValueError: it has another type.
    """
    if value.type.tensor_type.elem_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        raise ValueError(f"{value.name} is {kind}: only float32 models can be measured")
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
