"""What nets of gated channels take in milliseconds, as a smooth function of how many channels each group has.

Each operator's latency comes from the table's own curves over its channels in and out, made rising, linear in between;
or is in proportion to their product, as the papers' costs are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from hwnas.atom_costs import monotone
from hwnas.errors import HwnasError
from hwnas.gate_costs import Floats, GateCost
from hwnas.latency.commands import profile_command
from hwnas.ops import Op
from hwnas.spaces.gated import GateSpace
from hwnas.spaces.widths import Widths

if TYPE_CHECKING:
    from hwnas.latency.model import LatencyModel

KNOTS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Shares of an operator's channels at which the table is asked; a device computes them in blocks of `BLOCK`."""

BLOCK = 8


class GateLatency(GateCost):
    """Milliseconds of one batch, from a table that covers the space.

    Args:
        space: of the nets.
        model: of the table.
        shape: ``curves``, what the table says at several numbers of channels, made rising, linear in between; or
            ``bilinear``, the whole operator's latency in proportion to its channels in and out.
    """

    name = "latency"
    in_stairs = True

    def __init__(self, space: GateSpace, model: LatencyModel, shape: Literal["curves", "bilinear"] = "curves") -> None:
        super().__init__(space)
        self._model = model
        self._ends: dict[Widths, tuple[float, float]] = {}
        self._grid(bilinear=shape == "bilinear")

    def _grid(self, *, bilinear: bool) -> None:
        """Asks the table for every operator at its knots."""
        axes = [
            (
                _knots(term.op.inputs[0][0], fine=term.pairs and not bilinear),
                _knots(term.op.output[0], fine=not bilinear),
            )
            for term in self._terms
        ]
        asked = {
            (index, i, j): term.sized(int(x), int(y)).deployed()
            for index, (term, (xs, ys)) in enumerate(zip(self._terms, axes, strict=True))
            for i, x in enumerate(xs)
            for j, y in enumerate(ys)
            if x and y and (term.pairs or i == len(xs) - 1)
        }
        known = dict(zip(asked.values(), self._model.each_ms(list(asked.values()), self.space), strict=True))
        size = len(KNOTS) + 1
        self._x, self._y = np.zeros((len(axes), size)), np.zeros((len(axes), size))
        self._ms = np.zeros((len(axes), size, size))
        for index, (xs, ys) in enumerate(axes):
            table = np.zeros((len(xs), len(ys)))
            for i in range(len(xs)):
                for j in range(len(ys)):
                    op = asked.get((index, i, j)) or asked.get((index, len(xs) - 1, j))
                    table[i, j] = 0.0 if op is None else self._known_ms(op, known[op])
            table[0, :] = table[:, 0] = 0.0
            if not self._terms[index].pairs:
                table[:] = table[-1]
            table = np.apply_along_axis(monotone, 1, np.apply_along_axis(monotone, 0, table))
            self._x[index], self._y[index] = _padded(xs, size), _padded(ys, size)
            filled = np.pad(table, ((0, size - len(xs)), (0, size - len(ys))), "edge")
            self._ms[index] = filled

    def _known_ms(self, op: Op, found_ms: float | None) -> float:
        if found_ms is None and op.kind != "concat":  # which has too many shapes to be in every table
            mend = profile_command(self.space, self._model)
            raise HwnasError(f"{self._model.path} lacks operators such as '{op.key}': run '{mend}'")
        return found_ms or 0.0

    @cached_property
    def _rest(self) -> float:
        whole = self._entry.at(self._sizes), self._output.at(self._sizes)
        return self.total(self.gates.full) - float(self._values(*whole)[0].sum())

    def _values(self, entry: Floats, output: Floats) -> tuple[Floats, Floats, Floats]:
        x0, x1, i = _between(self._x, entry)
        y0, y1, j = _between(self._y, output)
        rows = np.broadcast_to(np.arange(len(self._terms)), entry.shape)
        a, b = self._ms[rows, i, j], self._ms[rows, i + 1, j]
        c, d = self._ms[rows, i, j + 1], self._ms[rows, i + 1, j + 1]
        u, v = (entry - x0) / (x1 - x0), (output - y0) / (y1 - y0)
        value = a * (1 - u) * (1 - v) + b * u * (1 - v) + c * (1 - u) * v + d * u * v
        by_entry = ((b - a) * (1 - v) + (d - c) * v) / (x1 - x0)
        by_output = ((c - a) * (1 - u) + (d - b) * u) / (y1 - y0)
        return value, by_entry, by_output

    def _of(self, widths: Widths) -> tuple[float, float]:
        filled = self.deployed(widths)
        if filled not in self._ends:
            try:
                self._ends[filled] = self._model.search_ends(self.network(filled))
            except HwnasError:  # a constant may need an operator that no other net has: then nobody knows
                if filled == self.gates.full:
                    raise
                self._ends[filled] = math.inf, math.inf
        return self._ends[filled]

    def total(self, widths: Widths) -> float:
        return self._of(widths)[0]

    def upper(self, widths: Widths) -> float:
        return self._of(widths)[1]

    def ends(self, widths: Widths) -> tuple[float, float] | None:
        """Latency and upper end of just these widths, whatever their numbers; None where the table cannot say."""
        try:
            return self._model.search_ends(self.network(widths))
        except HwnasError:
            return None


def _knots(count: int, fine: bool) -> list[int]:
    """Numbers of channels at which the table is asked: none, whole blocks, all."""
    if not fine:
        return [0, count]
    return sorted({0, count, *(min(count, max(1, round(share * count / BLOCK)) * BLOCK) for share in KNOTS)})


def _padded(knots: Sequence[int], size: int) -> Floats:
    """Knots [size]; behind the last one there are more of which none is ever reached."""
    more = np.arange(1, size - len(knots) + 1)
    return np.concatenate([knots, knots[-1] + more]).astype(float)


def _between(knots: Floats, at: Floats) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """The knots [terms, k] around values [..., terms], and the number of the lower one."""
    place = (at[..., None] > knots).sum(-1) - 1
    place = np.clip(place, 0, knots.shape[1] - 2)
    rows = np.broadcast_to(np.arange(len(knots)), at.shape)
    return knots[rows, place], knots[rows, place + 1], place
