"""How well the table of one run predicts what other runs measured, and what single measurements are worth.

    python benchmarks/other_runs.py OUT OUT...

Each OUT has tables that `benchmarks/prediction.py` kept (its `--out`) on one machine and with one setting. For every
space that two or more have, one line a run: what its table predicts for the test networks, compared with what it
measured itself ("own"), with each other run alone ("another run"; the mean of these errors) and with the mean over all
other runs, whose noise is smaller ("mean of others"). "Measured" compares the run's own measurements with that mean:
where they are further from it than predictions are, it is the measurement that is off. Runs are brought to one level
as `hwnas verify` does, by what the calibration networks took then and take now: a line over the logarithm of latencies.
No test network has a part in it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prediction import TEST

from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.measure.statistics import line_at

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """What one table says, by names of networks: ms."""

    name: str
    calibration: dict[str, float]
    tests: dict[str, float]
    predicted: dict[str, float]

    @classmethod
    def read(cls, path: Path, name: str) -> Run:
        """From a table with networks to calibrate on and others."""
        with LatencyTable.open(path) as table:
            model = LatencyModel(table, calibrate_on=lambda net: not net.startswith(TEST))
            networks = {net.name: net for net in table.networks()}
            space = path.name.rsplit("-b", 1)[0]
            tests = {name: net for name, net in networks.items() if name.startswith(TEST) and net.network}
            predicted = {
                name: model.predict(replace(net.network, space=space)).latency_ms
                for name, net in tests.items()
                if net.network
            }
            return cls(
                name,
                {name: net.measured.latency_ms for name, net in networks.items() if name not in tests},
                {name: net.measured.latency_ms for name, net in tests.items()},
                {name: ms for name, ms in predicted.items() if ms is not None},
            )

    def at_level_of(self, other: Run, names: list[str]) -> Vector:
        """What this run measured for test networks, at the level of another: logarithms."""
        common = sorted(self.calibration.keys() & other.calibration.keys())
        here, there = (np.log([run.calibration[name] for name in common]) for run in (self, other))
        measured = np.log([self.tests[name] for name in names])
        return np.array([value - line_at(here, here - there, value)[0] for value in measured.tolist()])


def error(predicted: Vector, measured: Vector) -> float:
    """Mean relative error, of logarithms."""
    return float(np.abs(np.expm1(predicted - measured)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="+")
    args = parser.parse_args()
    found = Counter(path.name for out in args.out for path in out.glob("*.lut"))
    files = sorted(name for name, count in found.items() if count > 1)
    if not files:
        parser.error("no two of these folders have a table of the same name: give what --out was of two runs or more")
    print("table                     run        networks         own  another run  mean of others  measured")
    for file in files:
        runs = [Run.read(out / file, out.name) for out in args.out if (out / file).exists()]
        names = sorted(set.intersection(*(set(run.predicted) for run in runs)))
        for run in runs:
            others = [other.at_level_of(run, names) for other in runs if other is not run]
            mean = np.mean(others, axis=0)
            predicted, measured = (np.log([of[name] for name in names]) for of in (run.predicted, run.tests))
            another = float(np.mean([error(predicted, other) for other in others]))
            print(
                f"{file:25s} {run.name:10s} {len(names):8d} {error(predicted, measured):9.2%} {another:12.2%} "
                f"{error(predicted, mean):15.2%} {error(measured, mean):9.2%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
