"""What a table says of operators that are not in it.

`Interpolator.interpolate` reads an operator off its neighbours: measured ones of the same family (kind, kernel, stride,
dilation, groups, fused add, class of activation) that differ in channels and resolution only. Latency is a staircase,
now and then a step DOWN, so that nothing is forced to be monotone: a law of the family (launch, bytes, MACs) gives the
trend, and the ratio of the nearest neighbours to that law, fitted locally in log space, gives the rest. How wide the
interval has to be is learned by leaving entries of the table out, with and without their nearest neighbours: it grows
with the distance to what was measured and with the scatter around it.

`Interpolator.estimate` is for families that the table lacks: the bytes that an operator moves and its MACs, at the
rates of the whole table. Its interval is what that law misses families by that it was not fitted on, and is wide.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hwnas.latency.families import Cloud, Family, blocks_cloud, clouds_of, family_of, features, work
from hwnas.latency.law import Law
from hwnas.latency.widths import ASSUMED_WIDTH, LAW_COVERS, NORMAL_90, Widths, conformal
from hwnas.measure.statistics import Estimate
from hwnas.ops import Op

NEIGHBOURS = 8
"""Of the local fit. With `STEP` and weights of 1 / distance^4, 66% (fp16) and 77% (fp32) of left-out V100 convolutions
of batch 32 are met within 10%; published for interpolation over channels: 71 to 78%."""

NEAR = 0.05
"""Log distance within which neighbours weigh about the same."""

STEP, STAIR = 0.4, 0.1
"""A difference of `STAIR` or more (log) in one dimension counts for `STEP` more than it is: it is on another stair,
while what shares a coordinate, or nearly, is on the same one."""

CANDIDATES = 24
"""Nearest in plain distance, among which the nearest by `STEP` are chosen."""

RIDGE = 0.01
"""On the slopes of the local fit: enough where neighbours lie on a line."""

FEWEST = 3
"""Members that a family needs before anything is read off it."""

REACH = 1.5
"""Log distance (with `STEP`, a factor of 3 in one dimension) beyond which there are no neighbours."""

OWN_LAW = 6
"""Families with fewer entries take the shape of the whole table's law."""

ENOUGH = 40
"""Families with fewer entries share what is learned of the width."""

SAMPLED = 256
"""Entries of a family that are left out to learn the width; more change nothing but the time."""

FITTED = 1024
"""Entries of a family that its law is fitted on."""

DEPTHS = (0, 4, 16)
"""Nearest neighbours that are left out together with an entry, for distances that the table's own grid has not."""

BORROWED_ERROR = 0.15
"""Log width that is added where a family is read off one with another activation or without the fused add."""


@dataclass(frozen=True, slots=True)
class Guess:
    """A latency that nobody measured, with its 90% interval. `how` is ``interpolated`` or ``estimated``."""

    latency_ms: float
    low_ms: float
    high_ms: float
    how: str

    @property
    def deviation_ms(self) -> float:
        """Standard deviation that the upper end stands for."""
        return (self.high_ms - self.latency_ms) / NORMAL_90


def _guess(log_ms: float, width: float, how: str) -> Guess:
    return Guess(math.exp(log_ms), math.exp(log_ms - width), math.exp(log_ms + width), how)


class Interpolator:
    """Reads operators off the measured ones of one table. Families are prepared when they are first asked for."""

    def __init__(
        self,
        operators: Mapping[str, Estimate],
        blocks: Mapping[str, Estimate] | None = None,
        *,
        element_bytes: int = 4,
        batch_size: int = 1,
    ) -> None:
        self._element_bytes, self._batch_size = element_bytes, batch_size
        self._blocks = blocks_cloud(blocks or {}, element_bytes=element_bytes, batch_size=batch_size)
        self._clouds = clouds_of(operators, element_bytes=element_bytes, batch_size=batch_size)
        self._fields: dict[Family, Field] = {}

    # -- asking ------------------------------------------------------------------------------------------------------

    def interpolate(self, ops: Sequence[Op], *, borrow: bool = False) -> list[Guess | None]:
        """Latencies from neighbours of the same family; None where there are none within reach.

        Args:
            ops: operators that the table lacks.
            borrow: read operators of an absent family off the one that differs in activation or fused add only, with
                a wider interval. For tables of devices that nobody here can measure.
        """
        found: list[Guess | None] = [None] * len(ops)
        asked: dict[tuple[Family, bool], list[int]] = defaultdict(list)
        for index, op in enumerate(ops):
            family = family_of(op)
            options = [family, *family.relatives()] if borrow else [family]
            there = next((option for option in options if self._size(option) >= FEWEST), None)
            if there is not None:
                asked[there, there != family].append(index)
        for (family, borrowed), indices in asked.items():
            chosen = [ops[index] for index in indices]
            places = np.array([features(op) for op in chosen])
            costs = np.array([work(op, self._element_bytes, self._batch_size) for op in chosen])
            log_ms, width, reached = self._field(family).read(places, costs)
            for index, middle, half, within in zip(indices, log_ms, width, reached, strict=True):
                if within:
                    half = math.hypot(half, BORROWED_ERROR) if borrowed else half
                    found[index] = _guess(float(middle), float(half), "interpolated")
        return found

    def estimate(self, ops: Sequence[Op]) -> list[Guess | None]:
        """Latencies from bytes and MACs at the rates of the whole table; None where it has no operators."""
        if self._law is None or not ops:
            return [None] * len(ops)
        costs = np.array([work(op, self._element_bytes, self._batch_size) for op in ops])
        return [_guess(float(middle), self._law_width, "estimated") for middle in self._law.log_ms(costs)]

    def _size(self, family: Family) -> int:
        return len(self._clouds[family].ms) if family in self._clouds else 0

    # -- what it rests on --------------------------------------------------------------------------------------------

    @cached_property
    def _law(self) -> Law | None:
        """Of all families together, each with the same weight."""
        return self._law_of(list(self._lawful.values()))

    @cached_property
    def _lawful(self) -> dict[Family | None, Cloud]:
        """What a law is fitted on: some members of every family; blocks teach it too, as a family of their own."""
        clouds: dict[Family | None, Cloud] = {family: cloud.thinned(SAMPLED) for family, cloud in self._clouds.items()}
        return clouds | ({None: self._blocks.thinned(SAMPLED)} if len(self._blocks.ms) else {})

    def _law_of(self, clouds: Sequence[Cloud]) -> Law | None:
        if not clouds:
            return None
        weights = np.concatenate([np.full(len(cloud.ms), 1 / len(cloud.ms)) for cloud in clouds])
        costs = np.concatenate([cloud.costs for cloud in clouds])
        return Law.fit(costs, np.concatenate([cloud.ms for cloud in clouds]), weights)

    @cached_property
    def _law_width(self) -> float:
        """Log half-width that covers nine of ten entries of a family that the law was fitted without."""
        misses = []
        for family, cloud in self._lawful.items():
            law = self._law_of([other for key, other in self._lawful.items() if key != family])
            if law is not None:
                misses.append(np.abs(law.log_ms(cloud.costs) - np.log(cloud.ms)))
        if len(misses) < 2:
            return LAW_COVERS
        errors = np.concatenate(misses)
        return max(LAW_COVERS, min(conformal(errors), float(errors.max())))

    def _field(self, family: Family) -> Field:
        if family not in self._fields:
            cloud = self._clouds[family]
            own = len(cloud.ms) >= OWN_LAW
            few = cloud.thinned(FITTED)
            law = Law.fit(few.costs, few.ms) if own else self._law
            assert law is not None
            field = Field(cloud, law, refit=own)
            field.widths = field.learned() if len(cloud.ms) >= ENOUGH else self._shared_widths
            self._fields[family] = field
        return self._fields[family]

    @cached_property
    def _shared_widths(self) -> Widths:
        """Of all families that are too small to learn from alone; assumed where they are too few together."""
        parts = []
        for cloud in self._clouds.values():
            if FEWEST <= len(cloud.ms) < ENOUGH:
                own = len(cloud.ms) > OWN_LAW
                law = Law.fit(cloud.costs, cloud.ms) if own else self._law
                assert law is not None
                parts.append(Field(cloud, law, refit=own).left_out())
        return Widths.learn(np.concatenate(parts)) if parts else Widths.assumed(ASSUMED_WIDTH)


class Field:
    """One family's latencies over channels and resolution, as ratios to a law."""

    def __init__(self, cloud: Cloud, law: Law, *, refit: bool) -> None:
        from scipy.spatial import cKDTree

        self._cloud, self._law, self._refit = cloud, law, refit
        self._tree = cKDTree(cloud.places)
        self._ratios = np.log(cloud.ms) - law.log_ms(cloud.costs)
        self.widths = Widths.assumed(ASSUMED_WIDTH)

    def read(self, places: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log latencies, log half-widths and whether there are neighbours within `REACH`, for `places` [n, d]."""
        distances, indices = self._nearest(places, min(NEIGHBOURS, len(self._cloud.ms)))
        ratios, scatter = _local(self._cloud.places, self._ratios, places, distances, indices)
        widths = self.widths.of(distances[:, 0], scatter)
        return self._law.log_ms(costs) + ratios, widths, distances[:, 0] <= REACH

    def learned(self) -> Widths:
        """The widths that this family's own left-out entries ask for."""
        return Widths.learn(self.left_out())

    def left_out(self) -> np.ndarray:
        """What leaving entries out shows: an array [m, 4] of distance, scatter, log error and depth."""
        count = len(self._cloud.ms)
        chosen = self._cloud.sample(SAMPLED)
        if count < ENOUGH:
            return self._left_out_one_by_one(chosen)
        wanted = min(count, 1 + NEIGHBOURS + DEPTHS[-1])
        distances, indices = self._nearest(self._cloud.places[chosen], wanted)
        found = []
        for depth in DEPTHS:
            span = slice(1 + depth, 1 + depth + NEIGHBOURS)  # the first is the entry itself: places are unique
            near, which = distances[:, span], indices[:, span]
            ratios, scatter = _local(self._cloud.places, self._ratios, self._cloud.places[chosen], near, which)
            depths = np.full(len(chosen), float(depth))
            found.append(np.column_stack([near[:, 0], scatter, ratios - self._ratios[chosen], depths]))
        return np.concatenate(found)

    def _left_out_one_by_one(self, chosen: np.ndarray) -> np.ndarray:
        """As `left_out`, with the law fitted anew each time: in a small family one entry bends it."""
        found = []
        for index in chosen:
            others = np.arange(len(self._cloud.ms)) != index
            rest = self._cloud.only(others)
            law = Law.fit(rest.costs, rest.ms) if self._refit else self._law
            field = Field(rest, law, refit=False)
            place, costs = self._cloud.places[index : index + 1], self._cloud.costs[index : index + 1]
            near, which = field._nearest(place, min(NEIGHBOURS, len(rest.ms)))
            ratios, scatter = _local(rest.places, field._ratios, place, near, which)
            error = law.log_ms(costs)[0] + ratios[0] - math.log(self._cloud.ms[index])
            found.append([near[0, 0], scatter[0], error, 0.0])
        return np.array(found).reshape(-1, 4)

    def _nearest(self, places: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances and indices of the `count` nearest members of each of `places`, both [n, count]."""
        wanted = min(len(self._cloud.ms), count + CANDIDATES)
        _, indices = self._tree.query(places, wanted)
        indices = np.reshape(indices, (len(places), wanted))
        apart = np.abs(self._cloud.places[indices] - places[:, None])
        distances = np.sqrt(((apart + STEP * np.minimum(1, apart / STAIR)) ** 2).sum(axis=2))
        order = np.argsort(distances, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1)


def _local(
    places: np.ndarray, ratios: np.ndarray, asked: np.ndarray, distances: np.ndarray, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted linear fit of `ratios` around each of `asked` [n, d], and the scatter of the neighbours around it.

    A fit of few points has no slopes. No answer leaves the range of the neighbours by more than half of it: slopes
    between stairs say little of what lies beyond.
    """
    near = ratios[indices]
    weights = 1 / (distances + NEAR) ** 4
    weights /= weights.sum(axis=1, keepdims=True)
    offsets = places[indices] - asked[:, None]
    n, k, d = offsets.shape
    rows = np.concatenate([np.ones((n, k, 1)), offsets if k >= OWN_LAW - 1 else np.zeros_like(offsets)], axis=2)
    ridge = np.diag([1e-9, *[RIDGE] * d])
    normal = np.einsum("nkp,nk,nkq->npq", rows, weights, rows) + ridge
    right = np.einsum("nkp,nk,nk->np", rows, weights, near)
    fitted = np.linalg.solve(normal, right[..., None])[..., 0]
    scatter = np.sqrt(np.einsum("nk,nk->n", weights, (near - np.einsum("nkp,np->nk", rows, fitted)) ** 2))
    low, high = near.min(axis=1), near.max(axis=1)
    margin = (high - low) / 2
    answer = np.clip(fitted[:, 0], low - margin, high + margin)
    same = distances[:, 0] < 1e-9  # the very shape was measured, with another activation of the same class
    return np.where(same, near[:, 0], answer), np.where(same, 0.0, scatter)
