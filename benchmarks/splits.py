"""How often intervals hold from one choice of calibration networks to the next, and what of that is chance.

    python benchmarks/splits.py TABLE... [--draws 5]

TABLE is one that `benchmarks/prediction.py` kept, of a space of operators (of atoms and gated channels test networks
have operators that the table lacks). Its networks are split at random, 200 times, into 30 to calibrate on and the
rest, and the share of the rest is counted whose measurement is in its 90% interval. The first line of a table is of
what was measured: the mean over splits, the least of them, and the share of splits below 78%. The others are of
latencies that are drawn as the model has them: the law, operators and sizes off by as much as it believes, networks
by their noise and `model_error`. Nothing is wrong with its intervals there, so that a bound which these miss is one
that chance alone misses.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import HwnasError
from hwnas.latency.calibration import Calibration, calibrate
from hwnas.latency.kriging import OPERATOR_ERROR, RUN_ERROR_MS, alike
from hwnas.latency.model import LatencyModel
from hwnas.latency.plan import CALIBRATION_NETWORKS
from hwnas.latency.table import LatencyTable, MeasuredNetwork
from hwnas.latency.widths import NORMAL_90

SPLITS = 200
LEAST = 0.78
"""Coverage of a split, for a mean of 90%. Of intervals with nothing wrong the least of 200 has less in one of four
tables: that is seen here."""

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Networks:
    """What is known of measured networks, each at its place.

    Attributes:
        times: measured, in ms.
        noise: their relative standard errors.
        sums: of their operators, in ms, not calibrated.
        counts: how often each operator runs, by key.
        parts: of the sum, by key.
        doubts: what `model_error` says.
    """

    times: Vector
    noise: Vector
    sums: Vector
    counts: list[Counter[str]]
    parts: list[dict[str, float]]
    doubts: Vector

    @classmethod
    def of(cls, plain: LatencyModel, measured: list[MeasuredNetwork]) -> Networks:
        """Of one table; `plain` is not calibrated."""
        found = [(net.measured, net.network) for net in measured if net.network]
        counts = [Counter(op.key for op in plain.lower(net)) for _, net in found]
        return cls(
            np.array([taken.latency_ms for taken, _ in found]),
            np.array([taken.relative_error for taken, _ in found]) / NORMAL_90,
            np.array([plain.sum_ms(net) for _, net in found]),
            counts,
            [plain.calibrations.parts_ms(count.elements()) for count in counts],
            np.array([plain.calibrations.model_error(count.elements()) for count in counts]),
        )

    def calibrated(self, places: Sequence[int]) -> Calibration:
        """On the networks at `places`."""
        listed = ([of[place] for place in places] for of in (self.noise, self.parts, self.counts, self.doubts))
        return calibrate(self.sums[places], self.times[places], *listed)

    def predicted(self, calibration: Calibration, place: int) -> tuple[float, float]:
        """Latency of the network at `place` in ms, and half of its 90% interval."""
        factors = calibration.factors
        parts = {key: factors.get(key, 1.0) * taken for key, taken in self.parts[place].items()}
        summed = calibration.corrected_ms(self.sums[place], self.parts[place])
        latency = calibration.latency_ms(summed)
        runs = calibration.open_runs(self.counts[place], factors)
        return latency, calibration.half_width_ms(latency, self.doubts[place], summed, parts, runs)


def split_coverage(networks: Networks) -> Vector:
    """For random splits the share of the rest whose measurement is in its interval."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(SPLITS):
        order = rng.permutation(len(networks.times))
        calibration = networks.calibrated(order[:CALIBRATION_NETWORKS])
        rest = order[CALIBRATION_NETWORKS:]
        found = np.array([networks.predicted(calibration, place) for place in rest])
        shares.append((np.abs(networks.times[rest] - found[:, 0]) <= found[:, 1]).mean())
    return np.array(shares)


def drawn(networks: Networks, rng: np.random.Generator) -> Networks:
    """The same networks, with latencies as the model that is calibrated on all of them has them."""
    law = networks.calibrated(np.arange(len(networks.times)))
    assert law.noise is not None
    assert law.kriging is not None
    straight = law.slope * networks.sums + law.offset_ms
    keys = sorted({key for parts in networks.parts for key in parts})
    weights = {key: float(law.kriging.weights[column]) for key, column in law.kriging.columns.items()}
    errors = {key: weights.get(key, 0.0) * OPERATOR_ERROR * float(rng.standard_normal()) for key in keys}
    run_ms = RUN_ERROR_MS * rng.standard_normal()
    operators = [sum(errors[key] * taken for key, taken in parts.items()) for parts in networks.parts]
    runs = np.array([sum(n for key, n in count.items() if key in weights) for count in networks.counts])
    sizes = np.log(networks.sums)
    bent = rng.multivariate_normal(np.zeros(len(sizes)), alike(sizes, sizes), method="eigh")
    own = np.hypot([law.noise.of(latency) for latency in straight.tolist()], networks.doubts)
    shared = (np.array(operators) + run_ms * runs) / straight
    return replace(networks, times=straight * (1 + shared + bent + own * rng.standard_normal(len(own))))


def line(name: str, coverage: Vector) -> str:
    return f"{name:40s} {coverage.mean():8.1%} {coverage.min():7.1%} {(coverage < LEAST).mean():10.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, nargs="+")
    parser.add_argument("--draws", type=int, default=5)
    args = parser.parse_args()
    if args.draws < 0:
        parser.error("--draws is 0 or more")
    print(f"{'table':40s} coverage   least below {LEAST:.0%}", flush=True)
    for path in args.table:
        try:
            with LatencyTable.open(path) as table:
                plain = LatencyModel(table, calibrate_on=lambda _: False)
                measured = table.networks()
                known = all(
                    op.key in plain.operators for net in measured if net.network for op in plain.lower(net.network)
                )
                if len(measured) <= CALIBRATION_NETWORKS or not known:
                    parser.error(f"{path} has no test networks, or some whose operators it lacks")
                networks = Networks.of(plain, measured)
        except HwnasError as error:
            parser.error(str(error))
        print(line("/".join(path.parts[-2:]), split_coverage(networks)), flush=True)
        for number in range(args.draws):
            print(line("  drawn", split_coverage(drawn(networks, np.random.default_rng(number)))), flush=True)


if __name__ == "__main__":
    main()
