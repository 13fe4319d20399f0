"""The net that is left when channels go: a plain module with the same output as the net with them masked."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from hwnas.errors import HwnasError
from hwnas.network import INPUT, Ref
from hwnas.nn.prunable import PrunableGroup, Tied, select
from hwnas.nn.silent import absorb, through_layer, through_norm
from hwnas.ops import Shape
from hwnas.trace.channels import FIXED, Channels, Ids, find_channels
from hwnas.trace.graph import Step, Value
from hwnas.trace.narrow import Remains, remains
from hwnas.trace.torch_fx import Reading, read_steps


@dataclass(frozen=True)
class Readable:
    """A net with its channels found: what gates, cuts and prices begin with."""

    reading: Reading
    channels: Channels

    @classmethod
    def of(cls, module: nn.Module, input_shape: Shape) -> Readable:
        """Reads a module; its weights are not looked at.

        Raises:
            HwnasError: torch.fx cannot trace it; it says which line, and what to change.
        """
        reading = read_steps(module, input_shape, deployed=False)
        return cls(reading, find_channels(reading.graph, reading.outputs, reading.layers))

    @cached_property
    def makers(self) -> dict[int, fx.Node]:
        """The call that each step was read from."""
        found: dict[int, fx.Node] = {}
        for node in self.reading.traced.graph.nodes:
            value = self.reading.values.get(node.name)
            for one in value if isinstance(value, tuple | list) else (value,):
                if isinstance(one, Value) and one.ref != INPUT:
                    found.setdefault(one.ref[0], node)  # a dropout behind it has the same value
        return found


def empty_groups(channels: Channels, alive: Tensor) -> frozenset[int]:
    """The groups that have no channel of `alive` (bool [channels])."""
    counts = torch.zeros(len(channels.groups), dtype=torch.int64)
    counts.index_add_(0, torch.from_numpy(channels.group_of()), alive.cpu().long())
    return frozenset(torch.nonzero(counts == 0).flatten().tolist())


@torch.no_grad()
def cut(module: nn.Module, readable: Readable, alive: Tensor) -> fx.GraphModule:
    """The module without the channels that are not `alive`; it is copied, not changed.

    Args:
        module: of the layers that `readable` was read from.
        readable: of the module.
        alive: bool [channels].

    Raises:
        Severed: nothing would be left of the image, or a constant could not be folded.
        HwnasError: a forward names a number of channels.
    """
    channels = readable.channels
    left = remains(channels, empty_groups(channels, alive))
    values = _Values(module, readable, left, alive.cpu())
    for step in channels.graph.steps:
        values.follow(step, readable.reading.layers.get(step.index))
    result = _Surgery(module, readable, left, values).result()
    _try(result, channels)
    return result


def _try(module: fx.GraphModule, channels: Channels) -> None:
    """Runs the cut net once."""
    training = module.training
    try:
        parameter = next(iter(module.parameters()))
        module.eval()(torch.zeros(1, *channels.graph.input.shape, device=parameter.device, dtype=parameter.dtype))
    except RuntimeError as error:
        text = (str(error).strip().splitlines() or [""])[0][:160]
        raise HwnasError(
            f"the net does not run with fewer channels ({text}): its forward names a number of channels; let it take "
            "them from the tensor (flatten, or view with -1)"
        ) from error
    module.train(training)


@dataclass(slots=True)
class _Values:
    """Follows the constants through the net: what silent layers give, and what is still to be added elsewhere.

    Attributes:
        constants: of each value a number for each channel (of the whole net).
        layers: by path, the layers that are left, with fewer channels.
        shifts: for each (step, input) that needs one, what is to be added.
    """

    module: nn.Module
    readable: Readable
    left: Remains
    alive: Tensor
    constants: dict[Ref, Tensor] = field(default_factory=dict)
    layers: dict[str, nn.Module] = field(default_factory=dict)
    shifts: dict[tuple[int, Ref], nn.BatchNorm2d] = field(default_factory=dict)

    @property
    def channels(self) -> Channels:
        """Of the net."""
        return self.readable.channels

    def __post_init__(self) -> None:
        self.constants[INPUT] = torch.zeros(len(self.channels.ids[INPUT]), dtype=torch.float64)

    def here(self, ref: Ref) -> Tensor:
        """Of each channel of a value, whether it was not removed."""
        return _at(self.channels.ids[ref], self.alive)

    def kept(self, ref: Ref) -> Tensor:
        """Places of the channels of a value that are left."""
        flags = [
            torch.full((run.count,), live)
            for run, live in zip(self.channels.runs[ref], self.left.live[ref], strict=True)
        ]
        return torch.nonzero(self.here(ref) & torch.cat(flags)).flatten()

    def follow(self, step: Step, path: str | None) -> None:
        """What a step makes of the constants, and the step's layer with fewer channels."""
        for ref in self.left.shifts.get(step.index, ()):
            self.shifts[step.index, ref] = self._shift(ref)
            self.constants[ref] = torch.zeros_like(self.constants[ref])
        before = [self.constants[ref] for ref in step.inputs]
        out: Ref = (step.index, 0)
        if step.kind in ("conv", "linear", "affine") and path is not None and _changed(step, self.channels):
            layer = self.module.get_submodule(path)
            after = self._norm(layer, path, step) if step.kind == "affine" else self._layer(layer, path, step)
            self.constants[out] = torch.where(self.here(out), after, 0.0)
            return
        if step.kind == "act" and step.op is not None:
            self.constants[out] = self._activated(step, before[0])
            self.constants[out][self.kept(out)] = 0
        elif step.kind == "add":
            self.constants[out] = before[0] + before[1]
        elif step.kind == "concat":
            self.constants[out] = torch.cat(before)
        elif step.kind == "scale":
            self.constants[out] = before[0] * step.numbers[0]
        elif step.kind == "reshape":
            times = len(self.channels.ids[out]) // len(before[0])
            self.constants[out] = before[0].repeat_interleave(times)
        elif step.kind in ("max_pool", "avg_pool", "global_avg_pool", "pad"):
            self.constants[out] = before[0]
        else:
            for port in range(len(step.outputs)):
                self.constants[step.index, port] = torch.zeros(len(self.channels.ids[step.index, port])).double()

    def _activated(self, step: Step, constants: Tensor) -> Tensor:
        """By the net's own activation, which may have a slope or a form of its own."""
        node = self.readable.makers[step.index]
        x = constants.clone()  # it may work in place
        if node.op == "call_module":
            given: Tensor = self.module.get_submodule(str(node.target))(x)
        elif node.op == "call_method":
            given = getattr(x, str(node.target))(*node.args[1:], **node.kwargs)
        else:
            assert callable(node.target)
            named = {name: x if isinstance(value, fx.Node) else value for name, value in node.kwargs.items()}
            given = node.target(*(x if isinstance(one, fx.Node) else one for one in node.args), **named)
        return given

    def _layer(self, layer: nn.Module, path: str, step: Step) -> Tensor:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        entry, out = step.inputs[0], (step.index, 0)
        depthwise = step.op is not None and step.op.depthwise
        given = through_layer(layer, self.constants[entry])
        bias = layer.bias.double().cpu() if layer.bias is not None else torch.zeros_like(given)
        if not self.left.lives(out):
            return given + bias
        rows = self.kept(out)
        new = _narrow(layer, rows, None if depthwise else self.kept(entry))
        assert isinstance(new, nn.Conv2d | nn.Linear)
        self.layers[path] = new
        if new.bias is None:
            return given
        new.bias += given[rows].to(new.bias)
        if not depthwise:
            return torch.zeros_like(given)
        silent = given + bias  # of a depthwise convolution, channels that are fed nothing give the bias
        silent[rows] = 0
        return silent

    def _norm(self, layer: nn.Module, path: str, step: Step) -> Tensor:
        assert isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d)
        before, out = self.constants[step.inputs[0]], (step.index, 0)
        after = through_norm(layer, before)
        if not self.left.lives(out):
            return after
        rows = self.kept(out)
        new = _narrow(layer, rows, None)
        assert isinstance(new, nn.BatchNorm2d | nn.BatchNorm1d)
        absorb(new, before[rows])
        self.layers[path] = new
        after[rows] = 0
        return after

    def _shift(self, ref: Ref) -> nn.BatchNorm2d:
        """A BatchNorm that adds the constants; it may learn."""
        rows = self.kept(ref)
        norm = nn.BatchNorm2d(len(rows), eps=1e-5)
        like = next(iter(self.module.parameters()))
        norm.to(like.device, like.dtype)
        norm.running_var = torch.full_like(norm.weight.detach(), 1 - norm.eps)
        norm.running_mean = -self.constants[ref][rows].to(norm.weight.detach())
        return norm


def _changed(step: Step, channels: Channels) -> bool:
    """Whether a layer has channels that may go, or may be fed fewer."""
    refs = [(step.index, 0), *step.inputs]
    return any(run.group != FIXED for ref in refs for run in channels.runs[ref]) or step.kind == "affine" or (
        step.op is not None and (step.op.groups == 1 or step.op.depthwise)
    )  # fmt: skip


def _at(ids: Ids, alive: Tensor) -> Tensor:
    places = torch.from_numpy(ids)
    return torch.where(places >= 0, alive[places.clamp_min(0)], True) if len(alive) else places < 0


def _narrow(layer: nn.Module, rows: Tensor, columns: Tensor | None) -> nn.Module:
    """A plain copy of a layer with the outputs `rows`, and with the inputs `columns` where they are not the same."""
    from hwnas.nn.gates import without_gate

    new = without_gate(layer)
    for dim, keep in enumerate((rows, columns)):
        if keep is not None:
            tensors = [*new.named_parameters(), *new.named_buffers()]
            cut_along = {name: tensor.shape[dim] for name, tensor in tensors if tensor.ndim > dim}
            tied = tuple(Tied(name, dim) for name in cut_along)
            select(new, PrunableGroup("", next(iter(cut_along.values())), tied), keep)
    return new


@dataclass(slots=True)
class _Surgery:
    """Writes the forward of what is left, and gives it the layers that are left."""

    module: nn.Module
    readable: Readable
    left: Remains
    values: _Values
    graph: fx.Graph = field(default_factory=fx.Graph)
    made: dict[fx.Node, fx.Node] = field(default_factory=dict)
    shifted: dict[fx.Node, fx.Node] = field(default_factory=dict)
    several: set[fx.Node] = field(default_factory=set)
    layers: dict[str, nn.Module] = field(default_factory=dict)

    def result(self) -> fx.GraphModule:
        traced = self.readable.reading.traced
        for node in traced.graph.nodes:
            self._write(node)
        for node in reversed(self.graph.nodes):
            if not node.users and node.op not in ("output", "placeholder"):
                self.graph.erase_node(node)
        root: dict[str, Any] = {}
        for node in self.graph.nodes:
            if node.op == "call_module":
                path = str(node.target)
                root[path] = self.layers.get(path) or self.values.layers.get(path) or self._plain(path)
            elif node.op == "get_attr":
                root[str(node.target)] = copy.deepcopy(_attribute(self.module, str(node.target)))
        module = fx.GraphModule(root, self.graph, type(self.module).__name__)
        return module.train(self.module.training)

    def _plain(self, path: str) -> nn.Module:
        from hwnas.nn.gates import without_gate

        return without_gate(self.module.get_submodule(path))

    def _write(self, node: fx.Node) -> None:
        value = self.readable.reading.values.get(node.name)
        if isinstance(value, Value) and node.op != "placeholder" and not self.left.lives(value.ref):
            return
        merged = _is_merge(node, value, self.readable.channels)
        # a part that is lined up twice is twice there, and once among all input nodes
        lined_up = node.args[0] if node.args else node.kwargs.get("tensors")
        parts = lined_up if merged == "concat" else node.all_input_nodes
        assert isinstance(parts, list | tuple)
        arguments = [one for one in parts if isinstance(one, fx.Node) and one in self.made]
        if merged is not None and len(arguments) == 1:
            self.made[node] = self.shifted.get(arguments[0], self.made[arguments[0]])
            self.several.add(self.made[node])  # it stands for two values now
            return
        if merged is None and len(arguments) < len(node.all_input_nodes):
            return  # such as a size of what is gone
        step = value.ref[0] if isinstance(value, Value) else -1
        for one in node.all_input_nodes:
            self._shift(step, one)

        in_place = self._in_place(node)

        def current(one: fx.Node) -> fx.Node:
            found = self.shifted.get(one) or self.made[one]
            return self.graph.call_method("clone", (found,)) if in_place and found in self.several else found

        if merged == "concat":
            there = [current(part) for part in arguments]
            self.made[node] = self.graph.create_node(
                node.op, node.target, (there, *node.args[1:]), dict(node.kwargs), node.name
            )
        else:
            self.made[node] = self.graph.node_copy(node, current)

    def _in_place(self, node: fx.Node) -> bool:
        """Whether a call overwrites what it is given."""
        if node.op == "call_module":
            return bool(getattr(self.module.get_submodule(str(node.target)), "inplace", False))
        name = str(getattr(node.target, "__name__", node.target))
        own = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
        flags = [value for value in (*node.args[1:], node.kwargs.get("inplace")) if isinstance(value, bool)]
        return name.endswith("_") or (own and name.startswith("i") and name != "invert") or any(flags)

    def _shift(self, step: int, node: fx.Node) -> None:
        value = self.readable.reading.values.get(node.name)
        if isinstance(value, Value) and (step, value.ref) in self.values.shifts and node not in self.shifted:
            path = f"shift_{value.ref[0]}"
            self.layers[path] = self.values.shifts[step, value.ref]
            self.shifted[node] = self.graph.call_module(path, (self.made[node],))


def _is_merge(node: fx.Node, value: Any, channels: Channels) -> str | None:
    """Whether a node is a sum or a concatenation, which one summand or part less leaves as they are."""
    if not isinstance(value, Value) or value.ref == INPUT or node.op not in ("call_function", "call_method"):
        return None
    kind = channels.graph.steps[value.ref[0]].kind
    return kind if kind in ("add", "concat") and len(node.all_input_nodes) > 1 else None


def _attribute(module: nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found
