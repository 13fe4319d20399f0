"""Operators that latency may be interpolated between: families, and the places of their members in log space."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from hwnas.latency.imported import BLOCK
from hwnas.measure.statistics import Estimate
from hwnas.ops import Op

FREE_ACTIVATIONS = ("", "relu", "relu6")
"""Activations that a fused kernel computes in registers at no cost that shows; all others are classes of their own."""


@dataclass(frozen=True, slots=True)
class Family:
    """What two operators must share to be neighbours; they differ in channels and resolution.

    Attributes:
        kind: the operator's.
        kernel, stride, dilation: the operator's.
        grouping: ``depthwise``, or the number of groups.
        residual: whether an add is fused.
        act: the class of the fused activation: empty for those of `FREE_ACTIVATIONS`.
        arity: inputs and outputs (of concatenations and splits).
        flat: whether the input is a vector.
    """

    kind: str
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    grouping: str = "1"
    residual: bool = False
    act: str = ""
    arity: tuple[int, int] = (1, 1)
    flat: bool = False

    def relatives(self) -> Iterable[Family]:
        """Families that the same kernel serves with little more or less work, the nearest first."""
        if self.act:
            yield replace(self, act="")
        if self.residual:
            arity = (self.arity[0] - 1, self.arity[1])
            yield replace(self, residual=False, arity=arity)
            if self.act:
                yield replace(self, residual=False, arity=arity, act="")


def family_of(op: Op) -> Family:
    """The family of an operator."""
    return Family(
        op.kind,
        op.kernel,
        op.stride,
        op.dilation,
        "depthwise" if op.depthwise else str(op.groups),
        op.residual,
        "" if op.act in FREE_ACTIVATIONS and op.kind != "act" else op.act,
        (len(op.inputs), len(op.outputs)),
        len(op.inputs[0]) == 1,
    )


def features(op: Op) -> list[float]:
    """Where an operator lies among its family: logarithms of channels in, channels out and the output's side."""
    pixels = math.prod(op.output[1:])
    first, last = op.inputs[0][0], op.output[0]
    return [math.log(first), 0.0 if op.depthwise else math.log(last), math.log(pixels) / 2]


def work(op: Op, element_bytes: int, batch_size: int) -> list[float]:
    """Bytes and MACs of one batch."""
    return [float(op.traffic_bytes(element_bytes, batch_size)), float(batch_size * op.macs)]


@dataclass(frozen=True, slots=True)
class Cloud:
    """Measured members of one family, at different places: `places` [n, 3], `costs` [n, 2] (`work`), `ms` [n]."""

    places: np.ndarray
    costs: np.ndarray
    ms: np.ndarray

    @classmethod
    def of(cls, places: np.ndarray, costs: np.ndarray, ms: np.ndarray) -> Self:
        """Members at one place (they differ in bias or a free activation) become one, at their geometric mean."""
        unique, first, inverse = np.unique(places.round(9), axis=0, return_index=True, return_inverse=True)
        inverse = inverse.reshape(-1)
        counts = np.bincount(inverse, minlength=len(unique))
        means = np.exp(np.bincount(inverse, np.log(ms), minlength=len(unique)) / counts)
        return cls(places[first], costs[first], means)

    def sample(self, most: int) -> np.ndarray:
        """Indices of at most `most` members, always the same."""
        count = len(self.ms)
        if count <= most:
            return np.arange(count)
        return np.sort(np.random.default_rng(count).choice(count, most, replace=False))

    def only(self, chosen: np.ndarray) -> Cloud:
        """The members that `chosen` (indices or flags) names."""
        return Cloud(self.places[chosen], self.costs[chosen], self.ms[chosen])

    def thinned(self, most: int) -> Cloud:
        """At most `most` members."""
        return self.only(self.sample(most))


def clouds_of(operators: Mapping[str, Estimate], *, element_bytes: int, batch_size: int) -> dict[Family, Cloud]:
    """The measured operators by family.

    Parsing a hundred thousand keys one by one takes seconds. Here keys are sorted into buckets that differ in numbers
    of their shapes only; one key of each is parsed, and the shapes of all are read at once.

    Raises:
        ValueError: a key is none.
    """
    buckets: dict[tuple[str, str, int, int], list[tuple[str, int, float]]] = defaultdict(list)
    for key, found in operators.items():
        kind, shapes, *rest = key.split(" ", 2)
        text, groups = rest[0] if rest else "", 1
        if kind == "conv" and " g" in f" {text}":
            text, groups = _without_groups(text)
        buckets[kind, text, shapes.count(","), shapes.count("x")].append((shapes, groups, found.latency_ms))
    parts: dict[Family, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = defaultdict(list)
    for (kind, text, *_), members in buckets.items():
        texts, counts, ms = zip(*members, strict=True)
        pattern = Op.parse(f"{kind} {texts[0]} {text}".rstrip())
        numbers = " ".join(texts).translate(_SEPARATORS).split()
        dims = np.array(list(map(int, numbers)), np.int64).reshape(len(texts), -1)
        groups_of = np.array(counts)
        if min(dims.min(), groups_of.min()) < 1:
            raise ValueError(f"one of the operators like {pattern.key!r} has a dimension or groups below 1")
        depthwise = (groups_of == dims[:, 0]) & (groups_of == dims[:, -len(pattern.output)]) & (groups_of > 1)
        classes = np.where(depthwise, 0, groups_of)
        for grouping in np.unique(classes):
            alike = classes == grouping
            name = "depthwise" if grouping == 0 else str(pattern.groups if kind != "conv" else grouping)
            part = _places_and_costs(pattern, dims[alike], groups_of[alike], element_bytes, batch_size)
            parts[replace(family_of(pattern), grouping=name)].append((*part, np.array(ms)[alike]))
    return {
        family: Cloud.of(*(np.concatenate(arrays) for arrays in zip(*members, strict=True)))
        for family, members in parts.items()
    }


_SEPARATORS = str.maketrans("x,>", "   ")


def _without_groups(text: str) -> tuple[str, int]:
    """The rest of a convolution's key without its groups, and how many those are."""
    words = text.split(" ")
    number = next(word for word in words if word.startswith("g") and word[1:].isdigit())
    return " ".join(word for word in words if word != number), int(number[1:])


def _places_and_costs(
    op: Op, dims: np.ndarray, groups: np.ndarray, element_bytes: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """`features` and `work` of operators like `op` whose shapes' numbers are `dims` [n, ...], in `groups` [n]."""
    ranks = [len(shape) for shape in (*op.inputs, op.output)]
    ends = np.cumsum(ranks)
    dims = dims.astype(float)  # products of a hostile table's numbers do not wrap around
    shapes = [dims[:, end - rank : end] for rank, end in zip(ranks, ends, strict=True)]
    first, last = shapes[0], shapes[-1]
    pixels = last[:, 1:].prod(axis=1)
    depthwise = (groups > 1) & (groups == first[:, 0]) & (groups == last[:, 0])
    places = np.column_stack([np.log(first[:, 0]), np.where(depthwise, 0.0, np.log(last[:, 0])), np.log(pixels) / 2])
    weights: np.ndarray = np.zeros(len(dims))
    if op.kind == "conv":
        weights = last[:, 0] * (first[:, 0] // groups) * op.kernel[0] * op.kernel[1]
    elif op.kind == "linear":
        weights = first[:, 0] * last[:, 0]
    macs = weights * pixels if op.kind == "conv" else weights
    held = 2 * last[:, 0] if op.kind == "affine" else weights + (last[:, 0] * (op.bias and op.weight_count > 0))
    moved = sum(shape.prod(axis=1) for shape in shapes)
    costs = np.column_stack([element_bytes * (batch_size * moved + held), batch_size * macs])
    return places, costs


def blocks_cloud(blocks: Mapping[str, Estimate], *, element_bytes: int, batch_size: int) -> Cloud:
    """Blocks by what their operators cost together; places mean nothing, blocks have no neighbours.

    Raises:
        ValueError: a name is not that of a block.
    """
    parsed = [[Op.parse(key) for key in name.split(BLOCK)] for name in blocks]
    costs = [np.sum([work(op, element_bytes, batch_size) for op in ops], axis=0) for ops in parsed]
    ms = np.array([found.latency_ms for found in blocks.values()])
    return Cloud(np.zeros((len(ms), 3)), np.array(costs).reshape(-1, 2), ms)
