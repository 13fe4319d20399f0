"""Which channels of a net live and die together, read off its steps: `find_channels`.

Every convolution and every hidden linear layer makes channels of its own. Residual sums (and products) tie the channels
of their summands, depthwise convolutions, BatchNorms, activations and poolings pass them through, a concatenation lines
them up, flattening spreads one over several features. What cannot lose channels is fixed, with the reason: the image,
the outputs, and what feeds an operation whose result depends on their number or place.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hwnas.network import INPUT, Ref
from hwnas.ops import Shape
from hwnas.trace.graph import PAD, RESHAPE, SCALE, Graph, Step, Value

FIXED = -1
"""The place of a channel that every net has."""

Ids = NDArray[np.int64]

ZERO_KEEPING = ("", "relu", "relu6", "hardswish", "silu", "tanh", "gelu", "leakyrelu")
"""Activations of which nothing comes where nothing goes in."""

PASSING = ("affine", "act", "max_pool", "avg_pool", "global_avg_pool", PAD, SCALE)
"""Steps whose output has the channels of their input."""


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that are there in all of `layers`, or in none.

    Attributes:
        name: of the first of `layers`.
        size: channels.
        first: the place of its first channel among all channels of the net; they lie side by side.
        layers: the convolutions and linear layers that make them.
    """

    name: str
    size: int
    first: int
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mask:
    """A layer behind which channels are masked: a BatchNorm, or one whose output is multiplied.

    Attributes:
        layer: its path.
        step: in the graph.
        norm: it is a BatchNorm, so that its scale and shift take the mask.
        ids: the places of its channels, `FIXED` where a channel is in every net.
    """

    layer: str
    step: int
    norm: bool
    ids: Ids


@dataclass(frozen=True, slots=True)
class Run:
    """Channels that follow each other: of one group, in order, each `times` times; or `count` fixed ones."""

    group: int
    count: int
    times: int = 1


@dataclass(frozen=True, slots=True)
class Channels:
    """The channels of one net.

    Attributes:
        graph, outputs: what it was read from.
        groups: in the order of the net.
        ids: for each value of the net the place of each of its channels among those of all groups, or `FIXED`.
        runs: the same by groups.
        masks: where channels are masked.
        fixed: layers whose channels are (partly) in every net, with the reason.
        strange: steps of layers that cannot be changed: no constant can be folded into them either.
    """

    graph: Graph
    outputs: tuple[Value, ...]
    groups: tuple[Group, ...]
    ids: Mapping[Ref, Ids]
    runs: Mapping[Ref, tuple[Run, ...]]
    masks: tuple[Mask, ...]
    fixed: Mapping[str, str]
    strange: frozenset[int] = frozenset()

    @property
    def count(self) -> int:
        """Channels that can go."""
        return sum(group.size for group in self.groups)

    def group_of(self) -> NDArray[np.int64]:
        """The number of each channel's group [count]."""
        return np.repeat(np.arange(len(self.groups)), [group.size for group in self.groups])

    @property
    def why_none(self) -> str:
        """Why nothing can go, of a net without groups: the first layer that cannot lose channels, and its reason."""
        return next((f"{layer}: {why}" for layer, why in self.fixed.items()), "it has no convolution")

    def report(self) -> list[str]:
        """What was tied, and what could not be gated and why, a line each."""
        lines = [
            f"{group.size} channels tied: {', '.join(group.layers)}" for group in self.groups if len(group.layers) > 1
        ]
        return lines + [f"not gated: {layer}: {why}" for layer, why in self.fixed.items()]


def find_channels(graph: Graph, outputs: Sequence[Value], layers: Mapping[int, str]) -> Channels:
    """The groups of a net.

    Args:
        graph: unfused, of the net as it is trained.
        outputs: what it returns.
        layers: for each step that is a call of a layer, the layer's path.
    """
    finder = _Finder(graph, layers)
    for step in graph.steps:
        finder.look_at(step)
    for value in outputs:
        finder.fix(value.ref, "its channels are the net's output")
    return finder.result(tuple(outputs))


@dataclass(slots=True)
class _Finder:
    graph: Graph
    layers: Mapping[int, str]
    raw: dict[Ref, Ids] = field(default_factory=dict)
    made: list[tuple[str, Ids]] = field(default_factory=list)
    ties: list[tuple[Ids, Ids]] = field(default_factory=list)
    ends: list[tuple[Ids, str]] = field(default_factory=list)
    count: int = 0
    users: dict[Ref, list[Step]] = field(default_factory=lambda: defaultdict(list))
    calls: Counter[str] = field(default_factory=Counter)
    strange: set[int] = field(default_factory=set)
    something: set[Ref] = field(default_factory=set)  # values that are not zero where a channel is dead, as a sigmoid's

    def __post_init__(self) -> None:
        self.raw[INPUT] = np.full(self.graph.input.shape[0], FIXED)
        for step in self.graph.steps:
            for ref in step.inputs:
                self.users[ref].append(step)
        self.calls.update(
            self.layers[step.index]
            for step in self.graph.steps
            if step.kind in ("conv", "linear", "affine") and step.index in self.layers
        )

    def fix(self, ref: Ref, why: str) -> None:
        """The channels of a value are in every net."""
        self.ends.append((self.raw[ref], why))

    def fix_inputs(self, step: Step, why: str) -> None:
        for ref in step.inputs:
            self.fix(ref, why)
        for port, shape in enumerate(step.outputs):
            self.raw[step.index, port] = np.full(shape[0], FIXED)

    def new(self, step: Step) -> None:
        """The channels that a layer makes."""
        size = step.outputs[0][0]
        ids = np.arange(self.count, self.count + size)
        self.count += size
        self.made.append((step.name, ids))
        self.raw[step.index, 0] = ids

    def look_at(self, step: Step) -> None:
        ranks = {len(shape) for shape in (*(self.shape(ref) for ref in step.inputs), *step.outputs)}
        if not ranks <= {1, 3}:
            self.fix_inputs(step, f"{step.name} works on {_dims(step.outputs[0])}, which are no image's channels")
        elif step.kind in ("conv", "linear"):
            self._layer(step)
        elif step.kind == "affine" and self._strange(step):
            self.strange.add(step.index)
            self.fix_inputs(step, self._strange(step))
        elif step.kind in PASSING:
            self._pass(step)
        elif step.kind in ("add", "mul"):
            self._tie(step)
        elif step.kind == "concat":
            self.raw[step.index, 0] = np.concatenate([self.raw[ref] for ref in step.inputs])
        elif step.kind == RESHAPE:
            self._reshape(step)
        else:
            self.fix_inputs(step, f"{step.name} ({step.kind}) depends on how many channels there are, and which")

    def shape(self, ref: Ref) -> Shape:
        return self.graph.input.shape if ref == INPUT else self.graph.steps[ref[0]].outputs[ref[1]]

    def _strange(self, step: Step) -> str:
        """Why the channels of a layer cannot be changed; empty where they can."""
        path = self.layers.get(step.index)
        if path is None:
            return f"{step.name} is called as a function: make it a layer (nn.Conv2d, nn.Linear, nn.BatchNorm2d)"
        if self.calls[path] > 1:
            return f"{path} is used in {self.calls[path]} places: give each place a layer of its own"
        return ""

    def _layer(self, step: Step) -> None:
        op = step.op
        assert op is not None
        why = self._strange(step)
        if not why and op.groups > 1 and not op.depthwise:
            why = f"{step.name} has {op.groups} groups"
        if not why and op.bits:
            why = f"{step.name} is quantised"
        if why:
            self.strange.add(step.index)
            self.made.append((step.name, np.full(step.outputs[0][0], FIXED)))
            self.ends.append((np.zeros(0, np.int64), why))
            self.fix_inputs(step, why)
        elif op.depthwise:
            self.raw[step.index, 0] = self.raw[step.inputs[0]]
        else:
            self.new(step)

    def _pass(self, step: Step) -> None:
        ids = self.raw[step.inputs[0]]
        self.raw[step.index, 0] = ids
        act = step.op.act if step.op is not None and step.kind == "act" else ""
        if act not in ZERO_KEEPING:
            self.something.add((step.index, 0))
            if any(user.kind != "mul" for user in self.users[step.index, 0]):
                self.fix(step.inputs[0], f"{step.name} ({act}) makes something of nothing")

    def _tie(self, step: Step) -> None:
        first, second = (self.raw[ref] for ref in step.inputs)
        if step.kind == "mul" and self.something.issuperset(step.inputs):
            for ref in step.inputs:
                self.fix(ref, f"{step.name} multiplies what is something where nothing goes in")
        if len(first) == len(second):
            self.ties.append((first, second))
        else:
            self.fix(step.inputs[1], f"{step.name} spreads one channel over all")
        self.raw[step.index, 0] = np.maximum(first, second) if len(first) == len(second) else first

    def _reshape(self, step: Step) -> None:
        before, after = self.shape(step.inputs[0]), step.outputs[0]
        ids = self.raw[step.inputs[0]]
        if after[0] == before[0] and math.prod(after) == math.prod(before):
            self.raw[step.index, 0] = ids
        elif len(after) == 1:
            self.raw[step.index, 0] = np.repeat(ids, math.prod(before[1:]))
        else:
            self.fix_inputs(step, f"{step.name} makes {_dims(after)} of {_dims(before)}")

    # -- what comes of it ----------------------------------------------------------------------------------------------

    def result(self, outputs: tuple[Value, ...]) -> Channels:
        labels, reasons = self._labels()
        groups, places = self._groups(labels, reasons)
        places = np.append(places, FIXED)  # what index -1 finds
        ids = {ref: places[raw] for ref, raw in self.raw.items()}
        group_of = np.repeat(np.arange(len(groups)), [group.size for group in groups])
        runs = {ref: _runs(found, group_of) for ref, found in ids.items()}
        fixed: dict[str, str] = {}
        for name, raw in self.made:
            open_ends = [raw[raw >= 0]] if len(raw) else []
            why = next((reasons[label] for label in labels[np.concatenate(open_ends)] if label in reasons), "")
            if why or (raw < 0).any():
                fixed[name] = why or next((end for ids, end in self.ends if end.startswith(f"{name} ")), "it is fixed")
        return Channels(self.graph, outputs, groups, ids, runs, tuple(self._masks(ids)), fixed,
                        frozenset(self.strange))  # fmt: skip

    def _labels(self) -> tuple[NDArray[np.int64], dict[int, str]]:
        """A number for all channels that are tied, and for those of them that are fixed the reason.

        A channel that is tied to one of the image, or of the outputs, is fixed too.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        ends = list(self.ends)
        for first, second in self.ties:
            ends += [(one[other < 0], "it is added to channels that are fixed")
                     for one, other in ((first, second), (second, first))]  # fmt: skip
        edges = [np.stack([one, other])[:, (one >= 0) & (other >= 0)] for one, other in self.ties]
        rows, columns = np.concatenate([np.zeros((2, 0), np.int64), *edges], axis=1)
        graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(self.count, self.count))
        labels = connected_components(graph, directed=False)[1].astype(np.int64) if self.count else np.zeros(0, int)
        reasons: dict[int, str] = {}
        for ids, why in ends:
            for label in np.unique(labels[ids[ids >= 0]]):
                reasons.setdefault(int(label), why)
        return labels, reasons

    def _groups(
        self, labels: NDArray[np.int64], reasons: Mapping[int, str]
    ) -> tuple[tuple[Group, ...], NDArray[np.int64]]:
        """Labels that occur in the same layers are one group; and the place of each raw channel."""
        makers: dict[int, list[int]] = defaultdict(list)
        for number, (_, raw) in enumerate(self.made):
            for label in dict.fromkeys(labels[raw[raw >= 0]].tolist()):
                if label not in reasons:
                    makers[label].append(number)
        members: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for label, numbers in makers.items():  # in the order of the net
            members[tuple(numbers)].append(label)
        groups, place_of, first = [], np.full(int(labels.max(initial=-1)) + 1, FIXED), 0
        for places, found in members.items():
            names = tuple(self.made[number][0] for number in places)
            groups.append(Group(names[0], len(found), first, names))
            place_of[found] = np.arange(first, first + len(found))
            first += len(found)
        return tuple(groups), place_of[labels]

    def _masks(self, ids: Mapping[Ref, Ids]) -> Iterable[Mask]:
        for step in self.graph.steps:
            found = ids.get((step.index, 0))
            if found is None or step.kind not in ("conv", "linear", "affine") or not (found >= 0).any():
                continue
            followers = self.users[step.index, 0]
            normed = len(followers) == 1 and followers[0].kind == "affine"
            silent = step.op is not None and step.op.depthwise and not step.op.bias
            if step.kind == "affine" or not (normed or silent):
                yield Mask(self.layers[step.index], step.index, step.kind == "affine", found)


def _runs(ids: Ids, group_of: NDArray[np.int64]) -> tuple[Run, ...]:
    owners = np.where(ids >= 0, group_of[ids], FIXED) if len(group_of) else np.full(len(ids), FIXED)
    cuts = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(ids)]
    found = []
    for start, end in pairwise(cuts):
        part = ids[start:end]
        times = 1
        if owners[start] >= 0:
            times = len(part) // len(np.unique(part))
        found.append(Run(int(owners[start]), end - start, times))
    return tuple(found)


def _dims(shape: Shape) -> str:
    return "x".join(map(str, shape))
