"""Reads an `nn.Module`: torch.fx traces it symbolically, shapes come from running it on the meta device.

The module is copied with parameters that have shapes and no data, so that a net of any size is read in no memory, and
neither the module nor its training mode is touched.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from hwnas.errors import HwnasError
from hwnas.network import Network
from hwnas.nn.deploy import deploy
from hwnas.ops import Shape
from hwnas.trace.fuse import fuse
from hwnas.trace.graph import Graph, Value
from hwnas.trace.torch_calls import FUNCTIONS, MODULES, Call


def read_module(module: nn.Module, input_shape: Shape) -> Network:
    """The deployed operators of `module` in inference, for one image of `input_shape`.

    Raises:
        HwnasError: torch.fx cannot trace it, or it does not take such images.
    """
    reading = read_steps(module, input_shape)
    return fuse(reading.graph, reading.outputs)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of a module.

    Attributes:
        traced: as torch.fx traced it, on the meta device and in inference.
        graph: its steps, before any fusion.
        values: what each node of `traced` gives, by its name: a `Value`, several of them, or nothing of the image's.
        layers: for each step that is a call of a layer, the path of the layer.
        outputs: what it returns.
    """

    traced: fx.GraphModule
    graph: Graph
    values: dict[str, Any]
    layers: dict[int, str]
    outputs: list[Value]


def read_steps(module: nn.Module, input_shape: Shape, *, deployed: bool = True) -> Reading:
    """The steps of `module` for one image of `input_shape`, before any fusion.

    Args:
        module: not changed.
        input_shape: channels, height, width.
        deployed: in the form in which its parts are deployed, else as it is trained.

    Raises:
        HwnasError: torch.fx cannot trace it, or it does not take such images.
    """
    name = type(module).__name__
    if len(input_shape) != 3:
        raise HwnasError(f"{name}: images are (channels, height, width), not {input_shape}")
    try:
        copied = _without_weights(module)
        copied = deploy(copied) if deployed else copied
        traced = fx.GraphModule(copied, _Tracer().trace(copied))
    except Exception as error:  # tracing runs the user's code
        mend = "export it to ONNX (torch.onnx.export) and pass the file" if deployed else (
            "take what depends on an image's values or shape out of its forward"
        )  # fmt: skip
        raise HwnasError(f"{name} cannot be traced ({_line(error)}{_where(error)}): {mend}") from error
    reader = _Reader(traced, Graph(input_shape))
    try:
        with torch.no_grad():
            reader.run(torch.empty(1, *input_shape, device="meta"))
    except Exception as error:
        raise HwnasError(
            f"{name} does not run on images of {input_shape} ({_line(error)}): check the input shape, "
            f"or export it to ONNX (torch.onnx.export) and pass the file"
        ) from error
    if not reader.outputs:
        raise HwnasError(f"{name} returns nothing that depends on its image")
    values = {node.name: value for node, value in reader.values.items()}
    return Reading(traced, reader.read, values, reader.layers, reader.outputs)


def _where(error: Exception) -> str:
    """The line of the module's own code at which tracing failed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    return f", in {frames[-1].filename} line {frames[-1].lineno}" if frames else ""


def _is_library(path: str) -> bool:
    return "/torch/" in path or path == __file__ or path.startswith("<")


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]


def skeleton(make: Callable[[], nn.Module]) -> nn.Module:
    """The module that `make` makes, without data where it can be made so."""
    try:
        with torch.device("meta"):
            return make()
    except NotImplementedError:  # it looks at its weights while it is made, as RegNets do
        return make()


def _without_weights(module: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters and buffers are on the meta device."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(_shape_of(parameter), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = _shape_of(buffer)
    return copy.deepcopy(module, memo).eval()


def _shape_of(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape without data, in the precision of the image that is passed through."""
    return tensor.detach().to("meta", torch.float32 if tensor.is_floating_point() else tensor.dtype)


class _Tracer(fx.Tracer):
    """Does not look into layers of hwnas' own that are understood as they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in MODULES or super().is_leaf_module(m, module_qualified_name)


class _Reader(fx.Interpreter):
    """Runs the traced graph on the meta device and notes each step."""

    def __init__(self, module: fx.GraphModule, graph: Graph) -> None:
        super().__init__(module)
        self.read = graph
        self.values: dict[fx.Node, Any] = {}
        self.layers: dict[int, str] = {}
        self.outputs: list[Value] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "placeholder":
            if isinstance(result, torch.Tensor):
                self.values[n] = self.read.input
        elif n.op == "output":
            fx.map_arg(n.args[0], lambda node: self._collect(self.values.get(node)))
        elif any(node in self.values for node in n.all_input_nodes) and (tensors := _tensors(result)):
            self.values[n] = self._read(n, result, tensors)
        return result

    def _collect(self, value: Any) -> None:
        if isinstance(value, Value):
            self.outputs.append(value)
        elif isinstance(value, tuple | list):
            for one in value:
                self._collect(one)

    def _read(self, n: fx.Node, result: Any, tensors: list[torch.Tensor]) -> Any:
        """The values that `n` gives; an unknown step where it is not understood."""
        inputs = [value for node in n.all_input_nodes for value in _flat(self.values.get(node))]
        call = Call(self.read, str(n.target), [tuple(tensor.shape[1:]) for tensor in tensors])
        args, kwargs = fx.map_arg((n.args, n.kwargs), lambda node: self.values.get(node, self.env[node]))
        handler: Callable[..., Any] | None = None
        if n.op == "call_module":
            layer = self.fetch_attr(str(n.target))
            call.name = str(n.target)
            label = f"{n.target} ({type(layer).__name__})"
            if type(layer) in MODULES:
                handler, args, kwargs = MODULES[type(layer)], (layer, *args), kwargs
        else:
            function = _function_name(n)
            call.name = f"{_scope(n)}.{function}" if _scope(n) else function
            label = call.name
            if n.op == "call_method" or _is_torch(n.target):
                handler = FUNCTIONS.get(function.rstrip("_") or function)
        steps = len(self.read.steps)
        try:
            if handler is None or any(tensor.shape[:1] != (1,) for tensor in tensors):
                raise ValueError(label)
            value = handler(call, *args, **kwargs)
            if [one.shape for one in _flat(value)] != call.shapes:
                raise ValueError(label)
        except (ValueError, TypeError, IndexError, AttributeError, RuntimeError):  # the last of numbers that learn
            del self.read.steps[steps:]
            values = self.read.unknown(inputs, call.shapes, label)
            value = values if isinstance(result, tuple | list) else values[0]
        if n.op == "call_module":
            self.layers.update(dict.fromkeys(range(steps, len(self.read.steps)), str(n.target)))
        return value


def _tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [one for part in result for one in _tensors(part)] if isinstance(result, tuple | list) else []


def _flat(value: Any) -> list[Value]:
    if isinstance(value, Value):
        return [value]
    return [one for part in value for one in _flat(part)] if isinstance(value, tuple | list) else []


def _function_name(n: fx.Node) -> str:
    if n.op == "call_method":
        return str(n.target)
    return str(getattr(n.target, "__name__", n.target))


def _is_torch(function: Any) -> bool:
    """Whether `function` is torch's own, not a user's of the same name."""
    package = (getattr(function, "__module__", None) or "torch").split(".")[0]
    return package in ("torch", "torchvision", "_operator", "builtins")


def _scope(n: fx.Node) -> str:
    """Path of the module in whose forward `n` is."""
    stack = n.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return str(paths[-1]) if paths else ""
