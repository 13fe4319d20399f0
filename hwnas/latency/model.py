"""`LatencyModel`: a table with its calibration; predicts networks and prices spaces."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np

from hwnas.costs import Cost
from hwnas.errors import HwnasError
from hwnas.latency import trust
from hwnas.latency.calibration import FEASIBLE_CONFIDENCE, FOREIGN_ERROR, Calibration
from hwnas.latency.commands import profile_command
from hwnas.latency.groups import Calibrations, Whole, space_of
from hwnas.latency.imported import BLOCK
from hwnas.latency.known import Knowledge, Known, Piece, deviation_ms
from hwnas.latency.lowering import Lower, lowering
from hwnas.latency.quality import Quality
from hwnas.latency.slots import SpaceKernels
from hwnas.latency.table import ELEMENT_BYTES, LatencyTable, MeasuredNetwork
from hwnas.latency.terms import Terms, fit_terms
from hwnas.latency.widths import NORMAL_90
from hwnas.measure.statistics import Estimate
from hwnas.network import Network
from hwnas.ops import Op
from hwnas.spaces.base import Space
from hwnas.spaces.widths import WidthSpace

_NORMAL_FEASIBLE = NormalDist().inv_cdf(FEASIBLE_CONFIDENCE)


@dataclass(frozen=True, slots=True)
class OpEstimate:
    """One operator of a prediction, all its occurrences together. `latency_ms` is None where the table lacks it.

    `how` it is known: measured, interpolated, estimated, or empty. A block that was timed as one has its further
    operators in `rest`.
    """

    op: Op
    count: int
    latency_ms: float | None
    failure: str | None = None
    how: str = ""
    rest: tuple[Op, ...] = ()

    @property
    def key(self) -> str:
        """The operator's key; a block's keys joined."""
        return BLOCK.join(op.key for op in (self.op, *self.rest))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all occurrences."""
        return self.count * sum(op.macs for op in (self.op, *self.rest))


@dataclass(frozen=True, slots=True)
class Prediction:
    """Latency of one batch with its 90% interval.

    Attributes:
        latency_ms, low_ms, high_ms: None when an operator is missing or unknown: never a sum with holes.
        coverage: measured operators as a share of all; `interpolated` and `estimated` are the shares of those that
            were read off measured ones and off the bytes and MACs.
        missing: keys of operators that the table lacks, and names of operators that nobody knows.
        ops: most expensive first, missing ones last; their latencies are calibrated and add up to `latency_ms` but for
            the offset, and for the few percent that networks of one size take more or less.
        calibrated: whether whole networks stand behind the interval.
        terms: what belongs to no operator, in ms by kind; part of `latency_ms`.
    """

    latency_ms: float | None
    low_ms: float | None
    high_ms: float | None
    coverage: float
    missing: tuple[str, ...]
    ops: tuple[OpEstimate, ...]
    calibrated: bool
    interpolated: float = 0.0
    estimated: float = 0.0
    terms: Mapping[str, float] = field(default_factory=dict)

    @property
    def guessed(self) -> str:
        """What share of the operators was not measured, in words; empty where all were."""
        hows = {
            "interpolated between measured ones": self.interpolated,
            "estimated from bytes and MACs": self.estimated,
        }
        said = [f"{share:.1%} {how}" for how, share in hows.items() if share]
        return f"{self.coverage:.1%} of the operators measured, {', '.join(said)}" if said else ""


class LatencyModel:
    """Predicts from one table. Reads it once: later measurements need a new model."""

    def __init__(self, table: LatencyTable, *, calibrate_on: Callable[[str], bool] | None = None) -> None:
        """Reads the table; `calibrate_on` chooses among its networks by name, None takes all."""
        self.path = table.path
        self.header = table.header
        self.failures = table.failures()
        self.lower: Lower = lowering(self.header)
        self.imported: bool = bool(self.header.get("imported"))
        self._spaces: dict[tuple[object, ...], SpaceKernels] = {}
        builds_error = table.builds_error
        networks = [
            Whole(
                (space_of(network.name), network.input_shape),
                self._keys(network),
                network.measured.latency_ms,
                math.hypot(network.measured.relative_error / NORMAL_90, builds_error),
            )
            for network in table.networks()
            if calibrate_on is None or calibrate_on(network.name)
        ]
        shapes = table.input_shapes("cover")
        timed_in = {
            key: frozenset((space_of(name), shapes[name]) for name in names) for key, names in table.inside().items()
        }
        self.terms: Terms = fit_terms([(len(self.lower(net)), taken) for net, taken in table.terms()])
        try:
            self.calibrations = Calibrations(table.operators(), self.terms, networks, timed_in)
        except np.linalg.LinAlgError:  # of latencies that no device has
            raise HwnasError(trust.damaged(self.path)) from None
        self.operators: Mapping[str, Estimate] = self.calibrations.operators
        self.knowledge = Knowledge(
            self.operators,
            table.blocks(),
            self.failures,
            element_bytes=ELEMENT_BYTES.get(self.header["precision"], 4),
            batch_size=self.header["batch_size"],
            foreign=self.imported,
        )

    def _keys(self, network: MeasuredNetwork) -> tuple[str, ...]:
        """What a calibration network's latency is the sum of."""
        return network.keys if network.network is None else tuple(op.key for op in self.lower(network.network))

    def sum_ms(self, network: Network) -> float:
        """What a network's operators, corrected, and its terms add up to; all operators have to be measured."""
        return self.calibrations.ms(op.key for op in self.lower(network))

    def calibration(self, of: Network | Space | WidthSpace) -> Calibration:
        """The calibration for a network, or for the networks of a space."""
        if not isinstance(of, Network) or of.space:
            return self.calibrations.of(of.space if isinstance(of, Network) else of.name, of.input_shape)
        kernels = Counter(op.key for op in self.lower(of) if op.key in self.operators)
        return self.calibrations.like(self.calibrations.parts_ms(kernels.elements()), of.input_shape)

    def quality(self) -> Quality:
        """Out-of-sample quality of predictions, over the networks that they are calibrated on."""
        return self.calibrations.quality()

    @property
    def calibrated(self) -> bool:
        """Whether whole networks stand behind the intervals."""
        return self.calibrations.pooled.networks > 0

    def _known(self, pieces: Iterable[Piece]) -> dict[Piece, Known | None]:
        """What the table says of each of `pieces`: latency, deviation, and how it is known; None is nothing."""
        pieces = list(pieces)
        try:
            self.knowledge.learn(pieces)
        except ValueError:  # a key of the table is none
            raise HwnasError(trust.damaged(self.path)) from None
        return {piece: self.knowledge.of(piece) for piece in pieces}

    def predict(self, network: Network) -> Prediction:
        """Predicts a network. What is missing is named, and then there is no latency."""
        calibration = self.calibration(network)
        kernels = self.lower(network)
        counts = Counter(self.knowledge.pieces(kernels))
        found, missing, parts, shares = [], [], [], Counter[str]()
        for piece, known in self._known(counts).items():
            (op, *rest), count = piece, counts[piece]
            if known is None:
                missing.append(OpEstimate(op, count, None, self.failures.get(op.key)))
                continue
            latency = calibration.slope * known.latency_ms * count
            found.append(OpEstimate(op, count, latency, how=known.how, rest=tuple(rest)))
            parts.append((known, calibration.slope * count))
            shares[known.how] += len(piece) * count
        found.sort(key=lambda estimate: -(estimate.latency_ms or 0))
        total = len(kernels) + len(network.unknown)
        share = {how: number / total for how, number in shares.items()}
        coverage = share.get("measured", 0.0) if total else 1.0
        guessed = (share.get("interpolated", 0.0), share.get("estimated", 0.0))
        names = (*(estimate.op.key for estimate in missing), *network.unknown)
        ops = (*found, *missing)
        if names:
            return Prediction(None, None, None, coverage, names, ops, calibration.networks > 0, *guessed)
        between = calibration.slope * self.terms.ms(len(kernels))
        summed = sum(estimate.latency_ms or 0 for estimate in found) + between
        strange = sum(estimate.latency_ms or 0 for estimate in found if not self.calibrations.has(estimate.op.key))
        law = calibration.foreign_ms if strange else calibration.latency_ms
        latency = law(summed / calibration.slope)
        foreign = FOREIGN_ERROR * strange if calibration.networks else 0.0
        each = {found.op.key: found.latency_ms / calibration.slope for found in ops if found.latency_ms}
        doubt = self.calibrations.model_error(op.key for op in kernels)
        runs = self.calibrations.open_runs(Counter(op.key for op in kernels), calibration)
        own = calibration.half_width_ms(latency, doubt, summed / calibration.slope, each, runs)
        half = math.hypot(own, NORMAL_90 * foreign, NORMAL_90 * deviation_ms(parts))
        ends = (max(0.0, latency - half), latency + half)
        terms = self.terms.parts(between)
        return Prediction(latency, *ends, coverage, (), ops, calibration.networks > 0, *guessed, terms)

    def search_ends(self, network: Network) -> tuple[float, float]:
        """Latency of a network and the one-sided upper end that a search decides on, in ms.

        Raises:
            HwnasError: the table says nothing of one of its operators.
        """
        calibration = self.calibration(network)
        margin, more = calibration.upper
        kernels = self.lower(network)
        pieces = self.knowledge.pieces(kernels)
        known = self._each_or_error(pieces)
        summed = sum(known[piece].latency_ms for piece in pieces) + self.terms.ms(len(kernels))
        # one operator's error is the same wherever it stands; errors of different ones are independent
        parts = [(known[piece], calibration.slope * count) for piece, count in Counter(pieces).items()]
        latency = calibration.latency_ms(summed)
        return latency, margin * latency + more + _NORMAL_FEASIBLE * deviation_ms(parts)

    def sum_of(self, ops: Sequence[Op], space: Space | WidthSpace) -> float:
        """What operators that follow each other in networks of a space add up to in ms, but for the offset.

        Raises:
            HwnasError: the table says nothing of one of them.
        """
        return self.calibration(space).slope * sum(found.latency_ms for found in self._chain_or_error(ops))

    def each_ms(self, ops: Sequence[Op], space: Space | WidthSpace) -> list[float | None]:
        """What each operator takes in networks of a space in ms, but for the offset; None where nobody knows."""
        pieces = [(op.deployed(),) for op in ops]
        known = self._known(pieces)
        slope = self.calibration(space).slope
        return [None if (found := known[piece]) is None else slope * found.latency_ms for piece in pieces]

    def _chain_or_error(self, ops: Sequence[Op]) -> list[Known]:
        pieces = self.knowledge.pieces(ops)
        known = self._each_or_error(pieces)
        return [known[piece] for piece in pieces]

    def _each_or_error(self, pieces: Sequence[Piece]) -> dict[Piece, Known]:
        known = self._known(pieces)
        lacking = [op.key for piece, found in known.items() if found is None for op in piece]
        if lacking:
            raise HwnasError(f"{self.path} lacks operators such as '{lacking[0]}': profile the space, or add --measure")
        return {piece: found for piece, found in known.items() if found is not None}

    def missing(self, ops: Iterable[Op]) -> list[str]:
        """Keys of `ops` that the table lacks."""
        return sorted({op.key for op in ops} - set(self.operators))

    def cost(self, space: Space) -> Cost:
        """Latency of the space's architectures: predictions, and the upper ends that feasibility is decided on.

        Raises:
            HwnasError: the table lacks an operator of the space; it names the command that measures it. An imported
                table, whose device is not here, may interpolate and estimate.
        """
        kernels = self.kernels(space)
        missing = self._unpriced(kernels)
        if missing:
            failed = [f"{key}: {self.failures[key]}" for key in missing if key in self.failures]
            why = f"; failed: {failed[0]}" if failed else ""
            mend = "it was imported: give the --lut of another one" if self.imported else (
                f"run '{profile_command(space, self)}'"
            )  # fmt: skip
            raise HwnasError(
                f"{self.path} lacks {len(missing)} operators of {space.name} (such as '{missing[0]}'{why}): {mend}"
            )
        calibration = self.calibration(space)
        slope, offset, (margin, more) = calibration.slope, calibration.offset_ms, calibration.upper
        curve = calibration.curve

        fixed, each = slope * self.terms.fixed_ms, self.terms.per_operator_ms

        def latency(ops: Sequence[Op]) -> float:
            return slope * (sum(known.latency_ms for known in self._chain(ops)) + each * len(ops))

        def upper(ops: Sequence[Op]) -> float:
            # errors of repeated operators are the same, so that deviations are added up as they are: never too narrow
            known = self._chain(ops)
            doubt = sum(found.deviation_ms for found in known)
            summed = sum(found.latency_ms for found in known) + each * len(ops)
            return slope * (summed + _NORMAL_FEASIBLE / margin * doubt)

        offset += fixed
        return Cost(
            "latency",
            replace(kernels.prices(latency, offset), curve=curve),
            replace(kernels.prices(upper, offset), curve=curve.scaled(margin, more)),
        )

    def kernels(self, space: Space) -> SpaceKernels:
        """What the table's runtime runs for a space's choices; remembered."""
        key = (space.name, space.input_shape, space.num_classes)
        if key not in self._spaces:
            self._spaces[key] = SpaceKernels.of(space, self.lower)
        return self._spaces[key]

    def _chain(self, ops: Sequence[Op]) -> list[Known]:
        """What is known of operators that follow each other; every one of them is."""
        pieces = self.knowledge.pieces(ops)
        known = self._known(pieces)
        return [found for piece in pieces if (found := known[piece]) is not None]

    def _pieces(self, kernels: SpaceKernels) -> list[Piece]:
        """Everything that the choices of a space are priced from, each once."""
        return list(dict.fromkeys(piece for ops in kernels.chains() for piece in self.knowledge.pieces(ops)))

    def _unpriced(self, kernels: SpaceKernels) -> list[str]:
        """Operators of a space that have no price. Where the device can be measured, all have to be measured."""
        known = self._known(self._pieces(kernels))
        return sorted(
            op.key
            for piece, found in known.items()
            for op in piece
            if found is None or (not self.imported and found.how != "measured")
        )

    def priced(self, space: Space) -> dict[str, int]:
        """How many different operators of a space are measured, interpolated and estimated."""
        return self.knowledge.counts(self._pieces(self.kernels(space)))

    def fits(self, space: Space) -> bool:
        """Whether every operator of the space was measured."""
        return not self.missing(self.kernels(space).every())
