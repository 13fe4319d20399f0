"""Reads an ONNX file: shapes come from ONNX's own shape inference, weights are never loaded.

A file is not trusted: its size, and where it says that its weights lie, are checked before anything is made of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import onnx

from hwnas.errors import HwnasError
from hwnas.network import Network
from hwnas.ops import Shape
from hwnas.trace.fuse import fuse
from hwnas.trace.graph import Graph, Value
from hwnas.trace.onnx_nodes import NODES, Call

MAX_BYTES = 2**31
"""What protobuf can hold; larger models keep their weights in a file beside."""

MAX_SIZE = 2**31 - 1
"""Largest dimension, kernel, stride or padding that runtimes take."""

_SIZES = ("kernel_shape", "strides", "pads", "dilations", "group", "output_padding", "output_shape")

_SMALL = 1024
"""Constants of more elements than this are weights, whose values nobody asks for."""


def read_onnx(path: Path, input_shape: Shape | None = None) -> Network:
    """The deployed operators of the ONNX file at `path`.

    Args:
        path: the file.
        input_shape: one image, (channels, height, width), where the file leaves its size open.

    Raises:
        HwnasError: it is no ONNX file, is damaged, has no single image as input, or leaves the image's size open.
    """
    model = _load(path)
    _check_external(path, model)
    image = _image(path, model, input_shape)
    _check_sizes(path, model)
    shapes = _shapes(path, model, image)
    for name, shape in shapes.items():
        _check_size(path, repr(name), shape)
    return _Reader(path, model, image, shapes).network()


def _load(path: Path) -> onnx.ModelProto:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise HwnasError(f"{path}: {error.strerror or error}") from None
    if not path.is_file():
        raise HwnasError(f"{path} is no file: an ONNX file was expected")
    if size >= MAX_BYTES:
        raise HwnasError(f"{path} is too large for an ONNX file (2 GiB): export it with its weights in a file beside")
    try:
        model = onnx.load(path, load_external_data=False)
        if model.functions:
            from onnx import inliner

            model = inliner.inline_local_functions(model)
    except Exception as error:  # protobuf and onnx have many types for a damaged file
        raise HwnasError(f"{path} is no ONNX file, or is damaged ({_line(error)}): export it again") from None
    if not model.graph.node or not model.opset_import:
        raise HwnasError(f"{path} is no ONNX file, or is empty: export the model again")
    return model


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t


def _check_external(path: Path, model: onnx.ModelProto) -> None:
    """Refuses weights that lie outside the file's folder, or that are not there."""
    folder = path.resolve().parent
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        parts = PurePosixPath(location.replace(os.sep, "/"))
        if not location or parts.is_absolute() or ".." in parts.parts:
            raise HwnasError(f"{path}: its weights must lie in a file beside it, not at {location[:80]!r}")
        if not (folder / location).is_file():
            raise HwnasError(f"{path}: its weights are in {location[:80]!r}, which is not there: copy that file too")


def _check_sizes(path: Path, model: onnx.ModelProto) -> None:
    """Refuses what the file itself says of sizes, before anything is computed from it."""
    for value in model.graph.input:
        _check_size(path, repr(value.name), [dim.dim_value for dim in value.type.tensor_type.shape.dim])
    for tensor in _tensors(model.graph):
        _check_size(path, repr(tensor.name), tensor.dims)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in _SIZES:
                _check_size(path, f"{attribute.name} of {_label(node)}", (*attribute.ints, attribute.i))


def _check_size(path: Path, what: str, sizes: Iterable[int]) -> None:
    largest = max(map(abs, sizes), default=0)
    if largest > MAX_SIZE:
        raise HwnasError(
            f"{path}: {what[:80]} has a size of {largest}, more than runtimes take ({MAX_SIZE}): export the model again"
        )


def _image(path: Path, model: onnx.ModelProto, input_shape: Shape | None) -> Shape:
    """The shape of one image; fixes the model's input to it, with batch 1 where the batch is open."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise HwnasError(f"{path}: a model with one image as its input was expected; its inputs: {names[:200]}")
    value = inputs[0]
    dims = value.type.tensor_type.shape.dim
    if not value.type.HasField("tensor_type") or len(dims) != 4:
        raise HwnasError(f"{path}: input {value.name!r} is no image: (batch, channels, height, width) was expected")
    sizes = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]
    if input_shape is not None:
        if len(input_shape) != 3 or any(
            size not in (None, own) for size, own in zip(sizes[1:], input_shape, strict=True)
        ):
            raise HwnasError(f"{path}: takes images of {_dims(sizes[1:])}, not {_dims(input_shape)}")
        sizes[1:] = input_shape
    image = tuple(size for size in sizes[1:] if size is not None)
    if len(image) != 3:
        raise HwnasError(
            f"{path}: leaves the size of its images open ({_dims(sizes[1:])}): export it with a fixed size "
            f"(only the batch may be dynamic)"
        )
    for dim, size in zip(dims, (sizes[0] or 1, *image), strict=True):
        dim.dim_value = size
    return image


def _dims(sizes: Shape | list[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in sizes)


def _shapes(path: Path, model: onnx.ModelProto, image: Shape) -> dict[str, tuple[int, ...]]:
    """Shapes of every value that has a fixed one, with the batch."""
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    for tensor in _tensors(stripped.graph):
        count = 1
        for size in tensor.dims:
            count *= size
        if count > _SMALL:
            for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(field)
    # What the file says of its shapes may hold the open batch, or be wrong: the input's shape decides.
    stated = _stated(model.graph.value_info)
    del stripped.graph.value_info[:]
    for result in stripped.graph.output:
        result.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(stripped, data_prop=True)
    except Exception as error:  # onnx raises RuntimeError and its own types
        raise HwnasError(f"{path}: its shapes do not fit images of {_dims(image)} ({_line(error)})") from None
    found = _stated(inferred.graph.value_info) | _stated(inferred.graph.output) | _stated(inferred.graph.input)
    return stated | found


def _stated(values: Iterable[onnx.ValueInfoProto]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for value in values:
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            if all(dim.HasField("dim_value") and dim.dim_value > 0 for dim in dims):
                shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


class _Reader:
    """Goes through the nodes in the file's order, which ONNX demands to be topological."""

    def __init__(self, path: Path, model: onnx.ModelProto, image: Shape, shapes: dict[str, tuple[int, ...]]) -> None:
        self.path = path
        self.model = model
        self.shapes = shapes
        self.graph = Graph(image)
        self.constants: dict[str, onnx.TensorProto | None] = {tensor.name: tensor for tensor in model.graph.initializer}
        (name,) = (value.name for value in model.graph.input if value.name not in self.constants)
        self.batch_size = shapes[name][0]
        self.values: dict[str, Value] = {name: self.graph.input}

    def network(self) -> Network:
        for node in self.model.graph.node:
            self._read(node)
        outputs = [self.values[value.name] for value in self.model.graph.output if value.name in self.values]
        if not outputs:
            raise HwnasError(f"{self.path}: returns nothing that depends on its image: export the model again")
        return fuse(self.graph, outputs)

    def _read(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            if name and name not in self.values and name not in self.constants:
                raise HwnasError(f"{self.path} is damaged: {_label(node)} reads {name!r}, which nothing gives")
        inputs = [self.values[name] for name in node.input if name in self.values]
        like = node.op_type == "CastLike" and node.input[0] in self.constants  # takes only the type of the other input
        if not inputs or like or node.op_type in ("Shape", "Size"):
            self.constants.update(dict.fromkeys(filter(None, node.output), self._constant(node)))
            return
        results = [name for name in node.output if name]
        known = [self.shapes.get(name, ()) for name in results]
        steps = len(self.graph.steps)
        try:
            if node.domain not in ("", "ai.onnx") or node.op_type not in NODES:
                raise ValueError("not known")
            if any(shape[:1] != (self.batch_size,) for shape in known):
                raise ValueError("moves the batch")
            call = Call(self.graph, node, self.values, self.constants, self.shapes, known[0][1:])
            given = NODES[node.op_type](call)
            values = (given,) if isinstance(given, Value) else given
            if [value.shape for value in values] != [shape[1:] for shape in known[: len(values)]]:
                raise ValueError("the shapes disagree")
        except (ValueError, TypeError, IndexError, KeyError):
            del self.graph.steps[steps:]
            values = self.graph.unknown(inputs, [shape[1:] for shape in known], _label(node))
        self.values.update(zip(results, values, strict=False))

    def _constant(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """The tensor that a node without activations gives, where its elements are those of a tensor in the file."""
        if node.op_type in _KEEPS:
            return self.constants[node.input[0]]
        if node.op_type != "Constant":
            return None
        value = onnx.helper.get_attribute_value(node.attribute[0])
        plain = isinstance(value, int | float | list)
        return onnx.numpy_helper.from_array(np.asarray(value)) if plain else node.attribute[0].t


_KEEPS = ("Identity", "Cast", "CastLike", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
"""What keeps the elements of a constant as they are."""


def _label(node: onnx.NodeProto) -> str:
    kind = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    return f"{kind} {node.name}" if node.name else f"{kind} (gives {node.output[0] if node.output else 'nothing'})"
