"""`LatencyModel`: a table with its calibration; predicts networks and prices spaces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hwnas.costs import Cost
from hwnas.errors import HwnasError
from hwnas.latency.calibration import Calibration, Quality, calibrate, quality
from hwnas.latency.lowering import Lower, lowering
from hwnas.latency.slots import SpaceKernels
from hwnas.latency.table import LatencyTable, MeasuredNetwork
from hwnas.measure.statistics import Estimate
from hwnas.network import Network
from hwnas.ops import Op, Shape
from hwnas.spaces.base import Space

MIN_GROUP = 8
"""Calibration networks of one input shape that are enough to calibrate networks of that shape by themselves."""


@dataclass(frozen=True, slots=True)
class OpEstimate:
    """One operator of a prediction, all its occurrences together. `latency_ms` is None where the table lacks it."""

    op: Op
    count: int
    latency_ms: float | None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """Latency of one batch with its 90% interval.

    Attributes:
        latency_ms, low_ms, high_ms: None when an operator is missing or unknown: never a sum with holes.
        coverage: measured operators as a share of all.
        missing: keys of operators that the table lacks, and names of operators that nobody knows.
        ops: most expensive first; latencies are shares of `latency_ms` (calibrated), missing ones last.
        calibrated: whether whole networks stand behind the interval.
    """

    latency_ms: float | None
    low_ms: float | None
    high_ms: float | None
    coverage: float
    missing: tuple[str, ...]
    ops: tuple[OpEstimate, ...]
    calibrated: bool


class LatencyModel:
    """Predicts from one table. Reads it once: later measurements need a new model."""

    def __init__(self, table: LatencyTable) -> None:
        self.path = table.path
        self.header = table.header
        self.operators: dict[str, Estimate] = table.operators()
        self.failures = table.failures()
        self.lower: Lower = lowering(self.header)
        groups: dict[Shape, list[tuple[float, float]]] = {}
        for network in table.networks():
            keys = self._keys(network)
            if all(key in self.operators for key in keys):
                pair = (self._sum(keys), network.measured.latency_ms)
                groups.setdefault(network.input_shape, []).append(pair)
        self.calibrations: dict[Shape, Calibration] = {
            shape: calibrate(*zip(*pairs, strict=True)) for shape, pairs in groups.items() if len(pairs) >= MIN_GROUP
        }
        everything = [pair for pairs in groups.values() for pair in pairs]
        self.pooled = calibrate([x for x, _ in everything], [y for _, y in everything])

    def _keys(self, network: MeasuredNetwork) -> tuple[str, ...]:
        """What a calibration network's latency is the sum of."""
        return network.keys if network.network is None else tuple(op.key for op in self.lower(network.network))

    def _sum(self, keys: Iterable[str]) -> float:
        return sum(self.operators[key].latency_ms for key in keys)

    def calibration(self, input_shape: Shape) -> Calibration:
        """The calibration for networks of an input shape: its own, where enough networks were measured, else all."""
        return self.calibrations.get(input_shape, self.pooled)

    def quality(self) -> Quality:
        """Out-of-sample quality over the networks of every input shape that has enough of them, else over all."""
        return quality(list(self.calibrations.values()) or [self.pooled])

    def predict(self, network: Network) -> Prediction:
        """Predicts a network. What is missing is named, and then there is no latency."""
        calibration = self.calibration(network.input_shape)
        counts = Counter(self.lower(network))
        found, missing = [], []
        for op, count in counts.items():
            known = self.operators.get(op.key)
            if known is None:
                missing.append(OpEstimate(op, count, None, self.failures.get(op.key)))
            else:
                found.append(OpEstimate(op, count, calibration.slope * known.latency_ms * count))
        found.sort(key=lambda estimate: -(estimate.latency_ms or 0))
        total = sum(counts.values()) + len(network.unknown)
        coverage = sum(estimate.count for estimate in found) / total if total else 1.0
        names = (*(estimate.op.key for estimate in missing), *network.unknown)
        ops = (*found, *missing)
        if names:
            return Prediction(None, None, None, coverage, names, ops, calibration.networks > 0)
        latency = sum(estimate.latency_ms or 0 for estimate in found) + calibration.offset_ms
        half = calibration.half_width * latency
        return Prediction(latency, max(0.0, latency - half), latency + half, 1.0, (), ops, calibration.networks > 0)

    def missing(self, ops: Iterable[Op]) -> list[str]:
        """Keys of `ops` that the table lacks."""
        return sorted({op.key for op in ops} - set(self.operators))

    def cost(self, space: Space) -> Cost:
        """Latency of the space's architectures: predictions, and the 99% upper ends that feasibility is decided on.

        Raises:
            HwnasError: the table lacks an operator of the space; it names the command that measures it.
        """
        kernels = SpaceKernels.of(space, self.lower)
        missing = self.missing(kernels.every())
        if missing:
            failed = [f"{key}: {self.failures[key]}" for key in missing if key in self.failures]
            why = f"; failed: {failed[0]}" if failed else ""
            raise HwnasError(
                f"{self.path} lacks {len(missing)} operators of {space.name} (such as '{missing[0]}'{why}): "
                f"run '{profile_command(space, self)}'"
            )
        calibration = self.calibration(space.input_shape)
        prices = kernels.prices(
            lambda op: self.operators[op.key].latency_ms, factor=calibration.slope, offset=calibration.offset_ms
        )
        return Cost("latency", prices, prices.scaled(1 + calibration.upper_margin))

    def fits(self, space: Space) -> bool:
        """Whether every operator of the space was measured."""
        return not self.missing(SpaceKernels.of(space, self.lower).every())


def profile_command(space: Space, model: LatencyModel) -> str:
    """The command that adds a space to the model's table."""
    import shlex

    from hwnas.devices import list_profiles
    from hwnas.spaces import get_space

    default = get_space(space.name)
    profile = model.header["profile"]
    # a profile from a file of the user's is not known by its name: what ships for the device measures as well
    names = [known.name for known in list_profiles() if known.name == profile["name"]]
    names += [known.name for known in list_profiles() if known.runtime == model.header["runtime"]]
    device = names[0] if names else profile.get("device", "cpu")
    command = f"hwnas profile --device {device} --space {space.name}"
    if space.input_shape != default.input_shape:
        command += f" --image-size {space.input_shape[1]}"
    if space.num_classes != default.num_classes:
        command += f" --num-classes {space.num_classes}"
    return f"{command} {bound_options(model.header)} --lut {shlex.quote(str(model.path))}"


def bound_options(header: dict[str, object]) -> str:
    """Options that make a command measure as the table was measured."""
    return f"--batch {header['batch_size']} --threads {header['threads']}"
