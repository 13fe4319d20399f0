"""Which kernel of a runtime's graph is which operator of the lowered network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwnas.latency.lowering import Step
from hwnas.latency.terms import LAYERS
from hwnas.measure.onnx_models import node_prefix
from hwnas.measure.runtimes.base import WHOLE, KernelTime
from hwnas.measure.runtimes.tensorrt_layers import ABSORBED, NOBODYS
from hwnas.ops import Op

CONVERSIONS = {"ReorderInput": "to_blocked", "ReorderOutput": "to_plain"}
"""What ONNX Runtime calls a conversion of layout -> the operator."""

SHORTEST_MS = 1e-4
"""What a clock of whole microseconds shows as nothing."""

_CONVOLUTIONS = ("Conv", "FusedConv")


@dataclass(frozen=True, slots=True)
class Timed:
    """The kernels of one network.

    Attributes:
        samples_ms: for each operator's key the durations in each run, the mean over its occurrences in the network.
        launches: as how many kernels each of these operators is run, the mean over its occurrences: a shuffle of
            channels is three, what runs inside another operator's kernel is none.
        total_ms: in each run, of all kernels.
        terms_ms: where the network was timed as a whole too, for each of `terms.TERMS` the durations in each run;
            `launches` has as how many kernels.
        unexpected: what the runtime runs otherwise than lowering assumes, for people; empty where it all fits.
    """

    samples_ms: dict[str, NDArray[np.float64]]
    launches: dict[str, float]
    total_ms: NDArray[np.float64]
    unexpected: tuple[str, ...] = ()
    terms_ms: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def assign(steps: Sequence[Step], times: Sequence[KernelTime]) -> Timed:
    """Finds for each operator of the lowered network (`Lower.steps`) what the runtime ran for it.

    Nodes made from an operator carry its name; conversions are told by their shapes. What does not fit is named, and
    gets no samples.
    """
    found: dict[str, list[NDArray[np.float64]]] = {}
    launches: dict[str, list[int]] = {}
    unexpected: list[str] = []
    own: dict[str, list[KernelTime]] = {}
    terms: dict[str, list[NDArray[np.float64]]] = {}
    kernels = 0
    converted: Counter[str] = Counter()
    for time in times:
        kernels += time.kind not in (WHOLE, ABSORBED)
        if time.kind == WHOLE or time.kind in NOBODYS:
            terms.setdefault(time.kind, []).append(np.asarray(time.samples_ms))
        elif time.kind in CONVERSIONS:
            shape = time.input_shape if time.kind == "ReorderInput" else time.output_shape
            key = Op.conversion(shape, blocked=time.kind == "ReorderInput").key
            converted[key] += 1
            found.setdefault(key, []).append(np.asarray(time.samples_ms))
            launches.setdefault(key, []).append(1)
        else:
            own.setdefault(time.node.split(".")[0], []).append(time)
    last = max((index for index, step in enumerate(steps[:-1]) if step.merged is None), default=0)
    for name in [name for name in own if name.startswith("output")]:  # what gives the output may have its name
        own.setdefault(_node(last), []).extend(own.pop(name))
    for index, step in enumerate(steps):  # of nodes that are one the runtime keeps any one's name
        if step.merged is not None and not (_run(own.get(_node(index))) and _run(own.get(_node(step.merged)))):
            own.setdefault(_node(step.merged), []).extend(own.pop(_node(index), []))
    assumed: Counter[str] = Counter()
    for index, step in enumerate(steps):
        if step.merged is not None:
            continue
        conversions = [op.key for op in step.kernels if op.kind in CONVERSIONS.values()]
        assumed.update(conversions)
        ops = [op for op in step.kernels if op.kind not in CONVERSIONS.values()]
        nodes = own.pop(_node(index), [])
        for op, part in zip(ops, _parted(nodes, len(ops)), strict=True):
            if part:
                found.setdefault(op.key, []).append(np.sum([time.samples_ms for time in part], axis=0))
                launches.setdefault(op.key, []).append(sum(time.kind != ABSORBED for time in part))
            else:
                unexpected.append(f"{op.key}: not run")
    unexpected += [f"{nodes[0].node} ({nodes[0].kind}): not assumed" for nodes in own.values() if nodes]
    for key in converted | assumed:
        if converted[key] != assumed[key]:
            unexpected.append(f"{key}: {converted[key]} run, {assumed[key]} assumed")
            found.pop(key, None)
    total = np.sum([time.samples_ms for time in times if time.kind != WHOLE], axis=0)
    means = {key: np.maximum(np.mean(samples, axis=0), SHORTEST_MS) for key, samples in found.items()}
    counts: dict[str, float] = {key: _mean(launches[key]) for key in means}
    summed = {}
    if WHOLE in terms:
        summed = {kind: np.sum(samples, axis=0) for kind, samples in terms.items()} | {LAYERS: total}
        counts |= {kind: len(samples) for kind, samples in terms.items()} | {LAYERS: kernels}
    return Timed(means, counts, total, tuple(unexpected), summed)


def _run(nodes: Sequence[KernelTime] | None) -> bool:
    """Whether any of these is a kernel of its own."""
    return any(time.kind != ABSORBED for time in nodes or ())


def _node(index: int) -> str:
    return node_prefix(index).rstrip(".")


def _mean(counts: Sequence[int]) -> float:
    whole, rest = divmod(sum(counts), len(counts))
    return whole if not rest else sum(counts) / len(counts)


def _parted(nodes: Sequence[KernelTime], count: int) -> list[list[KernelTime]]:
    """The nodes of one operator, parted among its kernels: a convolution, and an addition that it could not absorb."""
    if count <= 1:
        return [list(nodes)][:count]
    first = [time for time in nodes if time.kind in _CONVOLUTIONS]
    return [first, [time for time in nodes if time not in first], *([] for _ in range(count - 2))]
