"""From a table's visits to latencies: regimes of the machine and the level of each session taken off.

Everything that runs as a whole network (calibration networks, the reference, networks whose kernels were timed) tells
of the regimes (`hwnas.measure.regimes`); networks of one input shape tell of each other, since what slows a large net
down does not touch one that stays in the cache. A kernel timed inside a network is corrected as that network is.
Operators timed alone stay in the cache; their fastest visits say what they take.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from hwnas.latency.terms import GAPS, LAYERS
from hwnas.latency.widths import NORMAL_90
from hwnas.measure.regimes import LEAST_ENTRIES, regimes
from hwnas.measure.runtimes.base import WHOLE
from hwnas.measure.statistics import ESTIMATOR, Estimate, estimate, fastest_means

QUANTILE, NOISY_QUANTILE = 0.35, 0.5
"""Of a network's visits, regimes taken off: where its level is. What disturbs single visits only ever adds to them, so
that a low quantile is nearer to the truth; where they scatter a lot, the median is the surer one."""

DOUBTED = 0.04
"""A visit made while the machine took so much longer counts half: a regime is not one for all networks, and changes.
On a busy server visits scattered by 1% while it was quiet and by 5% while it took a tenth longer."""

NOISY = 0.06
"""Scatter of the visits (relative, by the median absolute deviation) from which on the median is taken. Up to 4.5% the
low quantile, visits weighted, predicted networks better: with mean errors of 1.5 and 1.1% for 1.7 and 1.35%."""

QUIET = 0.05
"""A visit made while the machine took so much longer at most says what the kernels of a network take. Others say less:
what slows all networks down slows each in its own measure (MobileNets by 14%, a network of shuffles by 31%)."""

LEAST_QUIET = 3
"""Of a network with fewer quiet visits, so many of its quietest ones count."""

RESAMPLES = 200
LEAST_FOR_LEVEL = 4
"""An entry with fewer visits in a session says nothing of the session's level."""

OVERHEAD = "overhead"
"""The network that does as good as nothing: what its kernel takes, timing one costs."""

OVERHEAD_KEYS = frozenset(("act 1x1x1>1x1x1 relu", "act 1x1x1>1x1x1 relu plain"))
"""Keys of its one operator, which nobody asked for."""

SHORTEST_MS = 1e-5
"""What is left at least of a kernel when that is taken off."""

Samples = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NetworkVisit:
    """One visit of something that runs as a whole network.

    Attributes:
        number: unique, in the order of time.
        entry: what was visited; `shape` is that of its input.
        samples_ms: as the clock showed them.
    """

    number: int
    entry: tuple[str, str]
    session: int
    shape: tuple[int, ...]
    samples_ms: Samples


class Levels:
    """What every visit of a table has to be multiplied by, and what entries take then."""

    def __init__(self, visits: Sequence[NetworkVisit]) -> None:
        self._visits = sorted(visits, key=lambda visit: visit.number)
        self._log = np.array([np.log(visit.samples_ms.min()) for visit in self._visits])
        self._regime, self._told = self._regimes()
        self._of: dict[tuple[str, str], list[int]] = {}
        for place, visit in enumerate(self._visits):
            self._of.setdefault(visit.entry, []).append(place)
        self.quantile = NOISY_QUANTILE if self.scatter > NOISY else QUANTILE
        self.sessions = self._session_factors()
        """Factor of each session."""
        self._factor = {
            visit.number: float(np.exp(-regime)) * self.sessions.get(visit.session, 1.0)
            for visit, regime in zip(self._visits, self._regime, strict=True)
        }

    @property
    def scatter(self) -> float:
        """Of the visits of one entry, regimes taken off: relative, the median over entries."""
        found = []
        for places in self._of.values():
            values = self._log[places] - self._regime[places]
            found.append(1.48 * float(np.median(np.abs(values - np.median(values)))))
        return float(np.median(found)) if found else 0.0

    @property
    def estimator(self) -> str:
        """What latencies of networks are, in words."""
        if not self._told.any():
            return ESTIMATOR
        return f"{self.quantile:g} quantile of visits, regimes taken off"

    def _regimes(self) -> tuple[Samples, NDArray[np.bool_]]:
        """The regime of each visit, and whether it could be told."""
        regime, told = np.zeros(len(self._visits)), np.zeros(len(self._visits), np.bool_)
        entries = {entry: number for number, entry in enumerate(dict.fromkeys(v.entry for v in self._visits))}
        index = np.array([entries[visit.entry] for visit in self._visits], np.intp)
        sessions = np.array([visit.session for visit in self._visits])
        for session in np.unique(sessions):
            inside = np.flatnonzero(sessions == session)
            shapes: dict[tuple[int, ...], list[int]] = {}
            for place in inside.tolist():
                shapes.setdefault(self._visits[place].shape, []).append(place)
            for places in (inside.tolist(), *shapes.values()):  # of one shape where they are enough, else of all
                if len({index[place] for place in places}) >= LEAST_ENTRIES:
                    regime[places], told[places] = regimes(index[places], self._log[places]), True
        return regime, told

    def _session_factors(self) -> dict[int, float]:
        """Factors that bring each session to the level of the first, by everything that both have measured."""
        levels: dict[int, dict[tuple[str, str], float]] = {}
        for session in dict.fromkeys(visit.session for visit in self._visits):
            places: dict[tuple[str, str], list[int]] = {}
            for place, visit in enumerate(self._visits):
                if visit.session == session and visit.entry[0] in ("reference", "network"):
                    places.setdefault(visit.entry, []).append(place)
            known = {
                entry: self._level(found, 1.0).latency_ms
                for entry, found in places.items()
                if len(found) >= LEAST_FOR_LEVEL
            }
            if known:
                levels[session] = known
        factors: dict[int, float] = {}
        first: dict[tuple[str, str], float] = {}
        for session, known in sorted(levels.items()):
            ratios = [first[entry] / level for entry, level in known.items() if entry in first]
            factors[session] = float(np.median(ratios)) if ratios else 1.0
            first = {**{entry: level * factors[session] for entry, level in known.items()}, **first}
        return factors

    def _level(self, places: Sequence[int], factor: float | None = None) -> Estimate:
        """The estimate from some visits; `factor` stands for those of their sessions."""
        factors = [factor or self.sessions.get(self._visits[place].session, 1.0) for place in places]
        samples = [self._visits[place].samples_ms * by for place, by in zip(places, factors, strict=True)]
        if not self._told[places].all():
            return estimate(samples)
        values = self._log[places] - self._regime[places] + np.log(factors)
        return level_of(values, sum(map(len, samples)), self.quantile, weights_of(self._regime[places]))

    def _slowness(self, entry: tuple[str, str]) -> dict[int, float]:
        """By the visits' numbers, how much longer the machine took than when it was quiet, in logarithms."""
        visits = ((self._visits[place], self._regime[place]) for place in self._of.get(entry, ()))
        return {v.number: float(regime) - math.log(self.sessions.get(v.session, 1.0)) for v, regime in visits}

    def quiet(self, entry: tuple[str, str]) -> int:
        """How many visits of an entry were made while the machine was quiet."""
        return sum(slow <= QUIET for slow in self._slowness(entry).values())

    def _telling(self, entry: tuple[str, str]) -> list[int]:
        """Numbers of an entry's visits that tell of its kernels: the quiet ones."""
        slow = self._slowness(entry)
        return sorted(slow, key=slow.__getitem__)[: max(LEAST_QUIET, self.quiet(entry))]

    def networks(self, role: str) -> dict[str, Estimate]:
        """Latencies of a role's entries by name, at the level of the first session when it was quiet."""
        return {name: self._level(places) for (kind, name), places in self._of.items() if kind == role}

    def kernels(self, timed: Iterable[tuple[str, int, float, Samples]]) -> dict[str, Estimate]:
        """Latencies of operators that were timed inside networks; `timed` as `by_network` has it."""
        valued = self._inside(timed)
        counts: Counter[str] = Counter()
        for one in valued:
            counts[one.name] += one.samples
        return {key: _over_networks(list(by.values()), counts[key]) for key, by in _by_network(valued).items()}

    def by_network(self, timed: Iterable[tuple[str, int, float, Samples]]) -> dict[str, dict[str, list[float]]]:
        """What operators take in each network that they were timed in, by key and name, in ms: one value a visit.

        Args:
            timed: key of the operator, number of the network's visit, kernels that the operator is run as, durations
                in its runs. What was timed in the network `OVERHEAD` alone tells what timing one kernel costs, and
                nothing of the operator.
        """
        return _by_network(self._inside(timed))

    def _inside(self, timed: Iterable[tuple[str, int, float, Samples]]) -> list[_Valued]:
        """What was timed inside networks, less what timing it costs."""
        valued = self._valued(timed)
        overhead = self._overhead(valued)
        return [
            replace(one, value_ms=one.value_ms - one.launches * overhead)
            for one in valued
            if one.entry != ("cover", OVERHEAD)
        ]

    def terms(
        self, operators: Iterable[tuple[str, int, float, Samples]], timed: Iterable[tuple[str, int, float, Samples]]
    ) -> dict[str, dict[str, float]]:
        """What networks take beside their operators.

        Args:
            operators: as `kernels`; they tell what timing one kernel costs.
            timed: likewise the terms `WHOLE`, `LAYERS`, and kinds that belong to no operator.

        Returns:
            For each network that was timed whole too the median ms of each kind, and of `GAPS`: what its run takes
            more than its kernels, less what timing them cost. It is negative where kernels overlap.
        """
        valued = self._valued(timed)
        if not valued:
            return {}
        overhead = self._overhead(self._valued(operators))
        visits: dict[int, dict[str, float]] = {}
        owner: dict[int, str] = {}
        for one in valued:
            visits.setdefault(one.number, {})[one.name] = one.value_ms - one.launches * (one.name != WHOLE) * overhead
            owner[one.number] = one.entry[1]
        found: dict[str, dict[str, list[float]]] = {}
        for number, terms in visits.items():
            if owner[number] != OVERHEAD and {WHOLE, LAYERS} <= set(terms):
                terms[GAPS] = terms.pop(WHOLE) - terms.pop(LAYERS)
                for kind, value in terms.items():
                    found.setdefault(owner[number], {}).setdefault(kind, []).append(value)
        return {
            name: {kind: float(np.median(values)) for kind, values in terms.items()} for name, terms in found.items()
        }

    def _valued(self, timed: Iterable[tuple[str, int, float, Samples]]) -> list[_Valued]:
        """What was timed inside networks, at the level of the first session, of the visits that tell something."""
        owner = {number: entry for entry in self._of for number in self._telling(entry)}
        telling = [one for one in timed if one[1] in owner]
        means = fastest_means([samples for *_, samples in telling])
        return [
            _Valued(name, number, owner[number], launches, mean * self._factor[number], len(samples))
            for (name, number, launches, samples), mean in zip(telling, means, strict=True)
        ]

    @staticmethod
    def _overhead(operators: Sequence[_Valued]) -> float:
        """What timing one kernel costs: what one that does nothing seems to take."""
        nothing = [one.value_ms for one in operators if one.entry == ("cover", OVERHEAD)]
        return float(np.median(nothing)) if nothing else 0.0


@dataclass(frozen=True, slots=True)
class _Valued:
    """One visit of something inside the network `entry`."""

    name: str
    number: int
    entry: tuple[str, str]
    launches: float
    value_ms: float
    samples: int


def _by_network(valued: Iterable[_Valued]) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {}
    for one in valued:
        found.setdefault(one.name, {}).setdefault(one.entry[1], []).append(one.value_ms)
    return found


def weights_of(regimes: Samples) -> Samples:
    """What visits count, by what the machine took longer then, in logarithms."""
    return np.asarray(1 / (1 + (np.maximum(regimes, 0.0) / DOUBTED) ** 2))


def level_of(log_ms: Samples, samples: int, quantile: float = QUANTILE, weights: Samples | None = None) -> Estimate:
    """The level of an entry from its visits, regimes taken off, its interval by how resamples deviate."""
    rng = np.random.default_rng(len(log_ms))  # fixed: the same visits always give the same interval
    weights = np.ones(len(log_ms)) if weights is None else weights
    point = float(weighted_quantile(log_ms, weights, quantile))
    chosen = rng.integers(len(log_ms), size=(RESAMPLES, len(log_ms)))
    again = weighted_quantile(log_ms[chosen], weights[chosen], quantile)
    half = NORMAL_90 * float(again.std())  # the ends of the resamples would be a quarter too wide with eight visits
    return Estimate(float(np.exp(point)), float(np.exp(point - half)), float(np.exp(point + half)), samples)


def weighted_quantile(values: Samples, weights: Samples, quantile: float) -> Samples:
    """Of each row of `values` [..., n]: where so much of the weight lies below, straight between the middles of the
    values' weights."""
    if values.shape[-1] == 1:
        return np.asarray(values[..., 0])
    order = np.argsort(values, axis=-1)
    values, weights = np.take_along_axis(values, order, -1), np.take_along_axis(weights, order, -1)
    middles = np.cumsum(weights, axis=-1) - weights / 2
    wanted = quantile * weights.sum(axis=-1, keepdims=True)
    behind = np.clip((middles < wanted).sum(axis=-1, keepdims=True), 1, values.shape[-1] - 1)
    low, high = (np.take_along_axis(middles, behind - shift, -1) for shift in (1, 0))
    part = np.clip((wanted - low) / (high - low), 0.0, 1.0)
    below, above = (np.take_along_axis(values, behind - shift, -1) for shift in (1, 0))
    return np.asarray((below + part * (above - below))[..., 0])


def _over_networks(by_network: Sequence[Sequence[float]], samples: int) -> Estimate:
    """The mean over the networks that a kernel was timed in.

    How far the networks are apart is part of the interval; what is left of it without the noise of each is the spread.
    """
    points = np.array([median(values) for values in by_network])
    noise = float(np.mean([_standard_error(values) ** 2 for values in by_network]))
    point = max(SHORTEST_MS, float(points.mean()))
    apart = float(points.var(ddof=1)) if len(points) > 1 else 0.0
    spread = max(0.0, apart - noise) ** 0.5 / point if len(points) > 1 else None
    half = NORMAL_90 * ((noise + apart) / len(points)) ** 0.5
    return Estimate(point, max(SHORTEST_MS, point - half), point + half, samples, spread)


def _standard_error(values: Sequence[float]) -> float:
    """Of a median, from the median absolute deviation."""
    middle = median(values)
    deviation = median(abs(value - middle) for value in values)
    return 1.86 * deviation / math.sqrt(len(values))
