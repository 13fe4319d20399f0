"""How well a fresh table predicts networks that took no part in its calibration.

    python benchmarks/prediction.py [--quick] [--space NAME]... [--threads N]... [--batch N]... [--networks 200]
                                    [--visits N] [--go-on]

For each setting: measures what `hwnas profile` does and test networks of another seed, in the same passes, and prints
one line of figures of the test networks: predictions are calibrated on the 30 calibration networks alone. Beside them
stands what a naive table says: operators timed alone one after the other, the median, no calibration. Coverage is over
200 random splits of all networks into 30 to calibrate on and the rest, "least" that of the worst of them. "profiled" is
the time that went into what a profile measures, "noise" the standard error of a test network's own measurement: no
error can be seen to be smaller; "spread" is how much a kernel differs from one network to the next, "by size" the share
of that (of its variance) that goes with how long the network takes: what a kernel finds in the cache. Of spaces of
atoms and of gated channels the test networks have operators that no network of the table has: coverage is that of the
predictions themselves then, not of splits.

`--quick` is one thread, batch 1, three spaces, and fewer visits of each network, `--visits` for slow ones. Tables with
the raw samples, and plots of predicted against measured (the extra `plot`), are kept under `--out`; `--go-on` adds to
those of a run that was killed what they lack. Exit code 3 where a bound is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau
from splits import LEAST, Networks, split_coverage

from hwnas.devices import DeviceProfile, find_profile
from hwnas.errors import UsageError
from hwnas.latency import atoms
from hwnas.latency.build import build_table
from hwnas.latency.levels import SHORTEST_MS
from hwnas.latency.model import LatencyModel, Prediction
from hwnas.latency.plan import CALIBRATION_NETWORKS, calibration_archs
from hwnas.latency.table import LatencyTable, MeasuredNetwork
from hwnas.latency.widths import NORMAL_90
from hwnas.measure.lock import device_lock
from hwnas.measure.onnx_models import op_to_onnx
from hwnas.measure.process import MeasuringProcess, Subject
from hwnas.network import Network
from hwnas.progress import NullProgress, RichProgress
from hwnas.spaces import find_space
from hwnas.spaces.base import Space
from hwnas.spaces.widths import WidthSpace

SPACES = ("proxyless", "spos-shufflenet", "fbnet")
TEST = "test"
QUICK_VISITS = 12
"""Of each network with `--quick`: three spaces in seven minutes on a server's two cores; more lower the noise."""

QUICK_TARGET = 0.04
"""Half-width of the interval of a network that is visited no more with `--quick`."""

NAIVE_RUNS = 15
NAIVE_S = 0.02

BOUNDS = {1: 0.01, 2: 0.02}
"""Mean error on one thread, and on more."""

NO_PLOT = "matplotlib is not installed: pip install 'hwnas[plot]'"

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """The figures of one setting."""

    space: str
    batch: int
    threads: int
    profile_s: float
    measured: Vector
    predicted: Vector
    coverage: Vector
    naive_error: float
    noise: float
    spread: float | None
    by_size: float | None

    @property
    def errors(self) -> Vector:
        """Relative, without their sign."""
        return np.abs(self.predicted / self.measured - 1)

    @property
    def tau(self) -> float:
        """Rank agreement."""
        return float(kendalltau(self.predicted, self.measured).statistic)

    def misses(self) -> list[str]:
        """The bounds that are not met."""
        errors, spread = self.errors, self.measured.max() / self.measured.min()
        checks = {
            f"mean error above {BOUNDS[min(self.threads, 2)]:.0%}": errors.mean() <= BOUNDS[min(self.threads, 2)],
            "fewer than 99% within 5%": (errors <= 0.05).mean() >= 0.99,
            "one beyond 10%": errors.max() <= 0.10,
            "tau below 0.95": self.tau >= 0.95 or spread < 2,
            "mean coverage outside 88 to 93%": 0.88 <= self.coverage.mean() <= 0.93,
            f"a split's coverage below {LEAST:.0%}": self.coverage.min() >= LEAST,
        }
        return [name for name, held in checks.items() if not held]

    def text(self) -> str:
        """One row of the table."""
        errors = self.errors
        spread, by_size = ("-" if share is None else f"{share:.1%}" for share in (self.spread, self.by_size))
        least = f"{self.coverage.min():.1%}" if len(self.coverage) > 1 else "-"
        columns = [
            f"{self.space:16s} {self.batch:5d} {self.threads:7d} {self.profile_s:7.0f} s {len(errors):8d}",
            f"{self.measured.min():8.3f} to {self.measured.max():7.3f} {errors.mean():10.2%}",
            f"{(errors <= 0.05).mean():9.1%} {(errors <= 0.10).mean():10.1%} {errors.max():6.1%} {self.tau:5.3f}",
            f"{self.noise:6.2%} {spread:>6s} {by_size:>7s} {self.coverage.mean():8.1%} {least:>6s}",
            f"{self.naive_error:11.1%}",
        ]
        return " ".join(columns)


HEAD = (
    "space            batch threads  profiled networks       range in ms  mean error within 5% within 10%  worst   tau "
    " noise spread by size coverage  least naive error"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--space", action="append")
    parser.add_argument("--threads", action="append", type=int)
    parser.add_argument("--batch", action="append", type=int)
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--visits", type=int, default=QUICK_VISITS, help="of each network with --quick  [%(default)s]")
    parser.add_argument("--go-on", action="store_true", help="with the tables that --out has")
    parser.add_argument("--out", type=Path, default=Path("runs/prediction"))
    args = parser.parse_args()
    if min(args.visits, args.networks, *(args.threads or [1]), *(args.batch or [1])) < 1:
        parser.error("--visits, --networks, --threads and --batch are 1 or more")
    try:
        spaces = [find_space(name) for name in args.space or SPACES]
    except UsageError as error:
        parser.error(str(error))
    if not args.quick and not (args.space or args.threads or args.batch):
        args.threads = [1, 2]
    args.out.mkdir(parents=True, exist_ok=True)
    plots = can_plot()
    if not plots:
        print(f"no plots: {NO_PLOT}", file=sys.stderr)
    started = time.monotonic()
    print(HEAD, flush=True)
    missed = []
    for batch in args.batch or [1]:
        for threads in args.threads or [1]:
            profile = find_profile(args.device).override(threads=threads, batch_size=batch)
            if args.quick:
                profile = _quicker(profile, args.visits)
            for space in spaces:
                name = space.name
                line = measure(profile, space, args.networks, args.out, go_on=args.go_on)
                print(line.text(), flush=True)
                if plots:
                    plot(line, table_path(args.out, name, profile).with_suffix(".png"))
                missed += [f"{name}, batch {batch}, {threads} thread(s): {miss}" for miss in line.misses()]
    print(f"{time.monotonic() - started:.0f} s in all; tables with raw samples{' and plots' * plots} are in {args.out}")
    for miss in missed:
        print(f"missed: {miss}")
    sys.exit(3 if missed else 0)


def _quicker(profile: DeviceProfile, visits: int) -> DeviceProfile:
    """Fewer visits, and half as many more at most of networks that are uncertain by `QUICK_TARGET`."""
    quick = {"min_passes": visits, "max_passes": visits + visits // 2, "target_error": QUICK_TARGET}
    return profile.model_copy(update={"timing": profile.timing.model_copy(update=quick)})


def measure(profile: DeviceProfile, space: Space | WidthSpace, count: int, out: Path, *, go_on: bool = False) -> Line:
    """Profiles the space with test networks beside it, and judges the predictions."""
    path = table_path(out, space.name, profile)
    if not go_on:
        path.unlink(missing_ok=True)
    tests = {f"{TEST} #{i}": network for i, network in enumerate(unseen_networks(space, count))}
    build_table(profile, path, spaces=[space], whole=tests, progress=RichProgress(quiet=True))
    with LatencyTable.open(path) as table:
        model = LatencyModel(table, calibrate_on=lambda name: not name.startswith(TEST))
        networks = table.networks()
        measured = {net.name: net for net in networks if net.name.startswith(TEST)}
        known = [replace(net.network, space=space.name) for net in measured.values() if net.network]
        predicted = [model.predict(network) for network in known]
        if isinstance(space, WidthSpace):
            coverage = np.array([own_coverage(predicted, list(measured.values()))])
        else:
            coverage = split_coverage(Networks.of(LatencyModel(table, calibrate_on=lambda _: False), networks))
        profile_s = table.seconds(lambda name: not name.startswith(TEST))
        spread = mean_spread(model, known)
        by_size = size_share(table.by_network())
    naive = naive_table(profile, tests)
    times = np.array([net.measured.latency_ms for net in measured.values()])
    sums = np.array([sum(naive[op.key] for op in net.network.ops) for net in measured.values() if net.network])
    return Line(
        space.name,
        profile.batch_size,
        profile.thread_count,
        profile_s,
        times,
        np.array([found.latency_ms for found in predicted], float),
        coverage,
        float(np.abs(sums / times - 1).mean()),
        float(np.median([net.measured.relative_error for net in measured.values()])) / NORMAL_90,
        spread,
        by_size,
    )


def unseen_networks(space: Space | WidthSpace, count: int) -> list[Network]:
    """Networks from small to large ones, drawn as those to calibrate on are, but with another seed; none of these."""
    if isinstance(space, WidthSpace):
        widths = set(atoms.calibration_archs(space, CALIBRATION_NETWORKS))
        return [space.network(arch) for arch in atoms.calibration_archs(space, count, seed=1) if arch not in widths]
    known = set(calibration_archs(space, CALIBRATION_NETWORKS))
    return [space.network(arch) for arch in calibration_archs(space, count, seed=1) if arch not in known]


def own_coverage(predicted: Sequence[Prediction], measured: Sequence[MeasuredNetwork]) -> float:
    """The share of networks whose measurement is in the interval of their prediction."""
    pairs = zip(predicted, measured, strict=True)
    return float(np.mean([(p.low_ms or 0) <= net.measured.latency_ms <= (p.high_ms or 0) for p, net in pairs]))


def mean_spread(model: LatencyModel, networks: list[Network]) -> float | None:
    """How much kernels differ from one network to the next, relative, weighted by the time they take."""
    kernels = [model.operators.get(op.key) for net in networks for op in model.lower(net)]
    known = [(kernel.latency_ms, kernel.spread) for kernel in kernels if kernel and kernel.spread is not None]
    total = sum(taken for taken, _ in known)
    return sum(taken * spread for taken, spread in known) / total if total else None


def size_share(by_network: Mapping[str, Mapping[str, Sequence[float]]]) -> float | None:
    """Of how kernels differ between networks (variance, weighted by the time they take) what a line through the size of
    the network explains, one for each kernel, less what it would by chance (adjusted R squared). The size is the
    logarithm of what all kernels of the network take."""
    levels = {
        key: {net: max(SHORTEST_MS, float(np.median(ms))) for net, ms in by.items()} for key, by in by_network.items()
    }
    sizes: Counter[str] = Counter()
    for by in levels.values():
        sizes.update(by)
    total = left = 0.0
    for by in levels.values():
        count, size = len(by), np.log([sizes[net] for net in by])
        if count > 3 and np.ptp(size):
            taken = np.array(list(by.values()))
            about, across = taken - taken.mean(), size - size.mean()
            squares, weight = about @ about, count / taken.mean()
            total += weight * squares / (count - 1)
            left += weight * (squares - (across @ about) ** 2 / (across @ across)) / (count - 2)
    return 1 - left / total if total else None


def naive_table(profile: DeviceProfile, networks: Mapping[str, Network]) -> dict[str, float]:
    """Operators alone, one after the other, the median: how tables are usually made."""
    ops = {op.key: op for network in networks.values() for op in network.ops}
    found = {}
    with device_lock(profile.device, NullProgress()), MeasuringProcess(profile) as process:
        for key, op in ops.items():
            subject = Subject(
                key,
                "network",
                lambda op=op: op_to_onnx(op, batch_size=profile.batch_size),  # type: ignore[misc]
            )
            samples: list[float] = []
            began = time.monotonic()
            while len(samples) < NAIVE_RUNS or time.monotonic() - began < NAIVE_S:
                samples += process.time_ms(subject, NAIVE_RUNS)[1]
            found[key] = float(np.median(samples))
    return found


def table_path(out: Path, space: str, profile: DeviceProfile) -> Path:
    """Where the table of one setting is kept."""
    return out / f"{space}-b{profile.batch_size}-t{profile.thread_count}.lut"


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot(line: Line, path: Path) -> None:
    """Predicted against measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    ends = [line.measured.min(), line.measured.max()]
    axes.plot(ends, ends, color="0.7")
    axes.plot(line.measured, line.predicted, ".", markersize=4)
    axes.set_xlabel("measured, ms")
    axes.set_ylabel("predicted, ms")
    axes.set_title(f"{line.space}, batch {line.batch}, {line.threads} thread(s): mean error {line.errors.mean():.2%}")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
