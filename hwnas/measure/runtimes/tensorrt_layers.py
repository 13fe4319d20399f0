"""The layers of a TensorRT engine, and which ONNX nodes each was made from. Plain text in, no TensorRT needed.

Two sources say the same: the engine inspector's JSON, of an engine that was loaded, and the builder's log, of one that
is only built. Both carry, in `Metadata`, the names of the ONNX nodes; `hwnas.measure.onnx_models` has put the number of
the operator into these names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hwnas.measure.runtimes.base import WHOLE, KernelTime

REFORMAT = "reformat"
"""Kind of layers that belong to no operator: conversions of layout or type between them."""

WAITS = "waits"
"""Kind of layers in which streams wait for each other: they belong to no operator either."""

FOREIGN = "foreign"
"""Kind of what was timed under a name that the engine's layers do not have (a ForeignNode as a whole)."""

ABSORBED = "absorbed"
"""Kind of an operator that has no layer of its own: it runs inside that of another one."""

NOBODYS = (REFORMAT, WAITS, FOREIGN)
"""Kinds of layers that are no operator's."""

_SYNCHRONISING = ("signal", "wait")
_HEAVY = ("Conv", "Gemm", "MatMul")
_ONNX = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_NAME = re.compile(r"^Name: (.*?), LayerType: ([^,]*), ")
_TENSORS = re.compile(
    r"(Inputs|Outputs): \[(.*?)\](?=, (?:Constants|Outputs|TacticName|StreamId|ParameterType|Metadata))"
)
_DIMENSIONS = re.compile(r"Dimensions: \[([-0-9,]*)\]")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an engine.

    Attributes:
        name: as the profiler calls it too.
        kind: what TensorRT calls it.
        nodes: names of the ONNX nodes that it computes, in the order of the file.
        input_shape, output_shape: of the first input and output, without the batch; empty where unknown.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()

    @property
    def operators(self) -> tuple[str, ...]:
        """What the names of its ONNX nodes begin with, each once: one for each operator of the network."""
        return tuple(dict.fromkeys(node.split(".")[0] for node in self.nodes))


def layers_of_log(lines: Iterable[str]) -> list[Layer]:
    """Layers from the builder's message "Layers:", one a line."""
    return [layer for line in lines if (layer := _of_line(line)) is not None]


def _of_line(line: str) -> Layer | None:
    match = _NAME.match(line)
    if match is None:
        return None
    shapes = {side: _dimensions(text) for side, text in _TENSORS.findall(line)}
    metadata = line.partition("Metadata:")[2]
    return Layer(match[1], match[2], _nodes(metadata), shapes.get("Inputs", ()), shapes.get("Outputs", ()))


def _dimensions(text: str) -> tuple[int, ...]:
    found = _DIMENSIONS.search(text)
    return tuple(int(size) for size in found[1].split(",") if size)[1:] if found else ()


def _nodes(metadata: str) -> tuple[str, ...]:
    """Names of ONNX nodes, in the order of the file: their names end with a number."""
    names = dict.fromkeys(_ONNX.findall(metadata))
    return tuple(sorted(names, key=_place))


def _place(name: str) -> int:
    number = name.rpartition("_")[2]
    return int(number) if number.isdigit() else -1


def layers_of_inspector(text: str) -> list[Layer]:
    """Layers from the JSON of an engine inspector.

    Raises:
        ValueError: it is none, or has no details: the engine was not built with detailed profiling verbosity.
    """
    try:
        layers = json.loads(text)["Layers"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the engine inspector answered nonsense ({error!r:.80})") from None
    if not all(isinstance(layer, dict) and "Name" in layer for layer in layers):
        raise ValueError("the engine has no details of its layers: it was built without detailed profiling verbosity")
    return [
        Layer(
            str(layer["Name"]),
            str(layer.get("LayerType", "")),
            _nodes(str(layer.get("Metadata", ""))),
            _shape(layer.get("Inputs", [])),
            _shape(layer.get("Outputs", [])),
        )
        for layer in layers
    ]


def _shape(tensors: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    return tuple(int(size) for size in tensors[0].get("Dimensions", ()))[1:] if tensors else ()


def owner(layer: Layer) -> str:
    """The ONNX node whose operator a layer's time is counted for: its convolution or matrix product, else the first.

    A layer that computes several operators is one kernel; what it takes cannot be told apart.
    """
    heavy = [node for node in layer.nodes if node.partition(".")[2].rstrip("0123456789_") in _HEAVY]
    return (heavy or list(layer.nodes))[0]


def kernel_times(
    layers: Sequence[Layer], samples_ms: Mapping[str, Sequence[float]], whole_ms: Sequence[float]
) -> list[KernelTime]:
    """What each operator took, and in terms of their own what belongs to none.

    Args:
        layers: of the engine.
        samples_ms: by layer name, the profiler's durations in each run; every list as long as `whole_ms`.
        whole_ms: of runs without the profiler.

    Returns:
        An entry for each layer; of the kinds `NOBODYS` what is no operator's; `ABSORBED`, with no time, for operators
        that run inside another's layer; and `WHOLE`. Launches are in no layer: they are what the whole run takes more.
    """
    known = {layer.name: layer for layer in layers}
    runs = len(whole_ms)
    timed = [
        _timed(known[name], times) if name in known else KernelTime("", FOREIGN, (), (), tuple(times))
        for name, times in samples_ms.items()
    ]
    seen = {time.node.split(".")[0] for time in timed if time.node}
    hidden = [node for layer in layers for node in layer.nodes if node.split(".")[0] not in seen]
    first = {node.split(".")[0]: node for node in reversed(hidden)}
    absorbed = [KernelTime(node, ABSORBED, (), (), (0.0,) * runs) for node in first.values()]
    return [*timed, *absorbed, KernelTime("", WHOLE, (), (), tuple(whole_ms))]


def _timed(layer: Layer, times: Sequence[float]) -> KernelTime:
    if not layer.nodes:
        kind = WAITS if layer.kind in _SYNCHRONISING else REFORMAT
        return KernelTime("", kind, layer.input_shape, layer.output_shape, tuple(times))
    return KernelTime(owner(layer), layer.kind, layer.input_shape, layer.output_shape, tuple(times))
