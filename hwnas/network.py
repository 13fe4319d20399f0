"""`Network`: a whole net as deployed operators and how they are wired. No weights.

It is what `hwnas.trace` reads off a module or an ONNX file, what a space computes for an architecture by arithmetic,
and what `hwnas.measure.onnx_models` writes as an ONNX graph to be timed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hwnas.ops import Op, Shape

Ref = tuple[int, int]
"""(node, output port); (-1, 0) is the network's input."""

INPUT: Ref = (-1, 0)

NO_LOW_BITS = "no runtime here runs convolutions of 1 to 4 bits"
"""Why quantised nets have no latency, for messages."""

UNKNOWN = -2
"""The node of a `Ref` to what an unknown operator gives: ``(UNKNOWN, i)`` comes out of ``Network.unknown[i]``."""


def reshapes_freely(shape: Shape, other: Shape) -> bool:
    """Whether a tensor of `shape` may arrive where `other` is taken: flattening, and dimensions of 1, move no data.

    Such reshapes are not operators; who writes a network out (`hwnas.measure.onnx_models`) inserts them.
    """
    if math.prod(shape) != math.prod(other):
        return False
    squeezed = [size for size in shape if size > 1] == [size for size in other if size > 1]
    return squeezed or len(shape) == 1 or len(other) == 1


@dataclass(frozen=True, slots=True)
class Node:
    """One operator and where its inputs come from."""

    op: Op
    inputs: tuple[Ref, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Network:
    """Operators in topological order.

    Attributes:
        input_shape: one image, channels first.
        nodes: each refers only to nodes before it.
        output: what the network returns.
        unknown: operators that were met and not understood, by the name a user would recognise. A network with
            unknown operators has no trustworthy cost: callers name them.
        space: the name of the space that it is an architecture of; "" where that is not known.
    """

    input_shape: Shape
    nodes: tuple[Node, ...]
    output: Ref
    unknown: tuple[str, ...] = ()
    space: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """Operators by key and their wiring; `from_json` reads it. BatchNorms are folded, names are not kept."""
        return {
            "input_shape": list(self.input_shape),
            "ops": [node.op.key for node in self.nodes],
            "inputs": [[list(ref) for ref in node.inputs] for node in self.nodes],
            "output": list(self.output),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Network:
        """The network that `to_json` wrote.

        Raises:
            ValueError: it is not one.
        """
        try:
            builder = NetworkBuilder(tuple(int(size) for size in data["input_shape"]))
            for key, refs in zip(data["ops"], data["inputs"], strict=True):
                builder.add(Op.parse(key), [_ref(ref, len(builder.nodes)) for ref in refs])
            output = _ref(data["output"], len(builder.nodes))
        except (KeyError, TypeError, IndexError, OverflowError) as error:  # Infinity is a number in JSON
            raise ValueError(f"not a network: {error}") from None
        return Network(builder.input_shape, tuple(builder.nodes), output)

    @property
    def ops(self) -> tuple[Op, ...]:
        """The operators, in order."""
        return tuple(node.op for node in self.nodes)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(op.macs for op in self.ops)

    @property
    def params(self) -> int:
        """Parameters of the module, BatchNorm included."""
        return sum(op.params for op in self.ops)

    @property
    def bitops(self) -> int:
        """MACs times weight bits times activation bits of the quantised convolutions (SPOS, table 6)."""
        return sum(op.bitops for op in self.ops)

    @property
    def counts(self) -> dict[str, int]:
        """What a budget can limit by arithmetic, by name: MACs, parameters, and bytes of traffic.

        Bytes are those of one image in float32: what every operator reads and writes, and the weights.
        """
        traffic = sum(op.traffic_bytes() for op in self.ops)
        return {"macs": self.macs, "params": self.params, "bytes": traffic}

    @property
    def quantised(self) -> bool:
        """Whether any convolution is quantised: then no runtime here runs it as it is meant, and it has no latency."""
        return any(op.bits for op in self.ops)

    @property
    def conv_fc_params(self) -> int:
        """Parameters of convolutions and linear layers with their biases."""
        return sum(op.conv_fc_params for op in self.ops)


def _ref(pair: Sequence[int], nodes: int) -> Ref:
    node, port = (int(number) for number in pair)
    if not -1 <= node < nodes or port < 0:
        raise ValueError(f"no such output: {node}, {port}")
    return (node, port)


@dataclass(slots=True)
class NetworkBuilder:
    """Builds a `Network` op by op; `last` is the reference of what was added last."""

    input_shape: Shape
    nodes: list[Node] = field(default_factory=list)
    last: Ref = INPUT

    def shape(self, ref: Ref | None = None) -> Shape:
        """Shape of what `ref` (default: the last node) gives."""
        node, port = self.last if ref is None else ref
        return self.input_shape if node < 0 else self.nodes[node].op.outputs[port]

    def add(self, op: Op, inputs: Sequence[Ref] | None = None, name: str = "") -> Ref:
        """Appends `op`, fed from `inputs` (default: the last node). Returns its reference.

        What arrives may be reshaped on the way where that moves no data (`reshapes_freely`): a linear layer takes
        the (C, 1, 1) of a pooling.

        Raises:
            ValueError: the shapes that arrive are not those the operator takes.
        """
        refs = (self.last,) if inputs is None else tuple(inputs)
        arriving = tuple(self.shape(ref) for ref in refs)
        if len(arriving) != len(op.inputs) or not all(map(reshapes_freely, arriving, op.inputs)):
            raise ValueError(f"{op.key}: is fed {arriving}")
        self.nodes.append(Node(op, refs, name))
        self.last = (len(self.nodes) - 1, 0)
        return self.last

    def extend(self, ops: Iterable[Op], residual: Ref | None = None) -> Ref:
        """Appends a chain of operators; those with `residual` also take the reference `residual`."""
        for op in ops:
            if op.residual:
                if residual is None:
                    raise ValueError(f"{op.key}: no residual reference given")
                self.add(op, (self.last, residual))
            else:
                self.add(op)
        return self.last

    def build(self) -> Network:
        """The finished network; its output is the last node."""
        return Network(self.input_shape, tuple(self.nodes), self.last)
