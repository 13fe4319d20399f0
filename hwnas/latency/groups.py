"""Calibrations, and which of them a network gets: its space's own, else that of its input shape, else that of all.

Networks of one space are built alike and err alike. Tiny networks of another space say little of them, even where their
images have the same size: from a table of two spaces whose networks were calibrated together, those of one were found
2 to 5% slower than predicted. So a space is calibrated on its own networks where enough of them were measured. A
network that comes without the name of its space (an ONNX file) is taken to be of the one whose kernels it runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hwnas.latency.calibration import Calibration, calibrate, model_error
from hwnas.latency.quality import Quality, quality
from hwnas.latency.terms import Terms
from hwnas.measure.statistics import Estimate
from hwnas.ops import Shape

MIN_GROUP = 8
"""Calibration networks of one space, or of one input shape, that are enough to calibrate networks of it."""

ALIKE = 0.5
"""Share of its time that a network spends in a space's kernels to be taken for one of that space."""

Group = tuple[str, Shape]
"""A space's name, "" where there is none, and the input shape of its networks."""

_NAME = re.compile(r"(\S+) (?:calibration )?#\d+ ")


def space_of(name: str) -> str:
    """The space whose network an entry of a table is, by its name ("fbnet #3 0a1b…"); "" where it is of none."""
    found = _NAME.match(name)
    return found[1] if found else ""


@dataclass(frozen=True, slots=True)
class Whole:
    """A calibration network.

    Attributes:
        group: that it is of.
        keys: of its operators, each as often as it runs.
        measured_ms: of one batch.
        noise: relative standard error of that.
    """

    group: Group
    keys: tuple[str, ...]
    measured_ms: float
    noise: float


class Calibrations:
    """The calibrations of one table, and its operators as they correct them.

    An operator is corrected once: the largest group that has it has the say. Where no calibration network has it, it is
    corrected as those of the networks that it was timed in (`Calibration.factor_of`); one that was timed alone stays
    as it is, since timing a kernel among others has no part in it.

    Attributes:
        operators: by key, corrected.
        terms: of the table.
        spaces: of the groups that have enough networks, the largest first.
        shapes: of the input shapes that have, all networks of a shape together.
        pooled: of all networks together.
    """

    def __init__(
        self,
        operators: Mapping[str, Estimate],
        terms: Terms,
        networks: Sequence[Whole],
        timed_in: Mapping[str, frozenset[Group]],
    ) -> None:
        """Fits.

        Args:
            operators: as they were measured.
            terms: of the table.
            networks: to calibrate on; what the operators of one are not all measured is left out.
            timed_in: by operator, the groups of the networks that it was timed inside of; those that were timed alone
                are not among them.
        """
        self.operators = dict(operators)
        self.terms = terms
        self._corrected: set[str] = set()
        self._on = {key for network in networks for key in network.keys}
        usable = [network for network in networks if all(key in self.operators for key in network.keys)]
        groups: dict[Group, list[Whole]] = {}
        shapes: dict[Shape, list[Whole]] = {}
        for network in usable:
            groups.setdefault(network.group, []).append(network)
            shapes.setdefault(network.group[1], []).append(network)
        own = {group: found for group, found in groups.items() if group[0] and len(found) >= MIN_GROUP}
        self.spaces: dict[Group, Calibration] = {
            group: self._fit(own[group]) for group in sorted(own, key=lambda group: (-len(own[group]), group))
        }
        large = {shape: found for shape, found in shapes.items() if len(found) >= MIN_GROUP}
        self.shapes: dict[Shape, Calibration] = {
            shape: self._only(large[shape], own) or self._fit(large[shape])
            for shape in sorted(large, key=lambda shape: (-len(large[shape]), shape))
        }
        alone = self.shapes.get(usable[0].group[1]) if len(shapes) == 1 else None
        self.pooled: Calibration = alone or self._fit(usable, correct=not large)
        self._correct_others(timed_in)
        self._kernels: dict[Group, set[str]] = {group: set() for group in self.spaces}
        for network in usable:
            self._kernels.get(network.group, set()).update(network.keys)
        for key, found in timed_in.items():
            for group in found & self.spaces.keys():
                self._kernels[group].add(key)

    def ms(self, keys: Iterable[str]) -> float:
        """Of a network of the operators `keys`; all have to be measured."""
        keys = tuple(keys)
        return sum(self.operators[key].latency_ms for key in keys) + self.terms.ms(len(keys))

    def parts_ms(self, keys: Iterable[str]) -> dict[str, float]:
        """What each operator takes in a network of the operators `keys`, all its occurrences together."""
        return {key: n * self.operators[key].latency_ms for key, n in Counter(keys).items()}

    def model_error(self, keys: Iterable[str]) -> float:
        """Relative standard error of a network of the operators `keys` beside a measurement's own; unmeasured ones are
        left out."""
        found = [(n, self.operators[key]) for key, n in Counter(keys).items() if key in self.operators]
        summed = sum(n * each.latency_ms for n, each in found)
        return model_error(summed, [(n, each.latency_ms, each.spread) for n, each in found])

    def _scale(self, factors: Mapping[str, float]) -> None:
        for key, factor in factors.items():
            self.operators[key] = self.operators[key].scaled(factor)

    def _only(self, found: Sequence[Whole], own: Mapping[Group, Sequence[Whole]]) -> Calibration | None:
        """The calibration of the space that all networks of a shape are of."""
        group = found[0].group
        return self.spaces[group] if group in own and len(own[group]) == len(found) else None

    def _fit(self, found: Sequence[Whole], *, correct: bool = True) -> Calibration:
        """Fits on networks; from then on operators that no calibration corrected before are, if `correct`."""
        open_ = [[key for key in network.keys if key not in self._corrected] for network in found if correct]
        calibration = calibrate(
            [self.ms(network.keys) for network in found],
            [network.measured_ms for network in found],
            [network.noise for network in found],
            [self.parts_ms(keys) for keys in open_],
            [Counter(keys) for keys in open_],
            [self.model_error(network.keys) for network in found],
        )
        self._scale(calibration.factors)
        self._corrected.update(calibration.factors)
        return calibration

    def _correct_others(self, timed_in: Mapping[str, frozenset[Group]]) -> None:
        for key in self.operators.keys() - self._corrected:
            latency = self.operators[key].latency_ms
            factors = [self.of(*group).factor_of(latency) for group in sorted(timed_in.get(key, ()))]
            if factors:
                self._scale({key: sum(factors) / len(factors)})

    def of(self, space: str, input_shape: Shape) -> Calibration:
        """The calibration for networks of a space at an input shape."""
        known = self.spaces.get((space, input_shape)) or self.shapes.get(input_shape)
        return known or self.pooled

    def like(self, parts_ms: Mapping[str, float], input_shape: Shape) -> Calibration:
        """The calibration for a network of no space that is known.

        Args:
            parts_ms: what its operators take, by key, those left out that nobody knows.
            input_shape: of it.
        """
        total = sum(parts_ms.values())
        shares = {
            group: sum(taken for key, taken in parts_ms.items() if key in kernels) / total if total else 0.0
            for group, kernels in self._kernels.items()
            if group[1] == input_shape
        }
        best = max(shares, key=lambda group: shares[group], default=None)
        return self.of(best[0] if best is not None and shares[best] >= ALIKE else "", input_shape)

    def has(self, key: str) -> bool:
        """Whether an operator is in a calibration network."""
        return key in self._on

    def open_runs(self, counts: Mapping[str, int], calibration: Calibration) -> int:
        """How often operators run, of `counts` by key, those left out that another calibration corrected."""
        return calibration.open_runs(counts, self._corrected)

    def quality(self) -> Quality:
        """Out-of-sample quality over the networks of every space that has enough, of input shapes without such a space,
        and where there are none, over all."""
        spaces = {shape for _, shape in self.spaces}
        others = [calibration for shape, calibration in self.shapes.items() if shape not in spaces]
        return quality([*self.spaces.values(), *others] or [self.pooled])
