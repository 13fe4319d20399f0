"""The product's promise, tested: of many nets that were searched under a latency budget, how many are over it?

    python benchmarks/budget_audit.py [--lut FILE] [--space proxyless-tiny] [--nets 100] [--budgets 20] [--seed 0]

Profiles the space (unless `--lut` names a table that is there), then searches under budgets between 20% and 90% of the
way from the cheapest to the dearest architecture, several times each, with the product's own evolution and sampler.
Searching favours nets whose latency is predicted too low, which randomly drawn ones do not: this is what the promise is
about. Each found net is written as ONNX and timed by `independent_timing.py`, a process that knows nothing of hwnas.

Accuracy has a stand-in, since training a hundred nets is not what is tested: the logarithm of the MACs, the best single
guess of accuracy within a family of nets, plus an amount of its own for every choice, drawn anew for each search, so
that the searches do not all end at the same net.

A budget is kept at the level that the machine had when it was profiled. Some of the table's calibration networks are
timed again with every group of nets, and what they take now over what they took then is divided out: the normalised
verdict, which decides. The raw one, by the clock as it is now, stands beside, and so does the median of all runs, which
other work on the machine disturbs. The exit code is 3 where a net is over its budget, normalised.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from hwnas.costs import Cost, macs_cost
from hwnas.devices import DeviceProfile, find_profile
from hwnas.errors import ClaimError, HwnasError
from hwnas.latency.build import build_table
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable, MeasuredNetwork
from hwnas.measure.lock import device_lock
from hwnas.measure.onnx_models import network_to_onnx
from hwnas.measure.process import MeasuringProcess
from hwnas.progress import Progress, RichProgress, duration
from hwnas.search.evolution import Evolution, evolve
from hwnas.search.feasible import FeasibleSampler
from hwnas.spaces import get_space
from hwnas.spaces.base import Arch, Space
from hwnas.train.recipe import load_recipe

LOWEST, HIGHEST = 0.2, 0.9
"""Where the budgets lie between the upper ends of the cheapest and the dearest architecture."""

CHOICE_NOISE = 0.05
"""Spread of what the stand-in for accuracy gives a choice for itself; the MACs of a space span about 1.5 in it."""

WITNESSES = 7
GROUP = 20
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Chosen:
    """A net that a search under a budget ended with."""

    budget_ms: float
    seed: int
    arch: Arch
    predicted_ms: float
    upper_ms: float


@dataclass(frozen=True, slots=True)
class Judged:
    """What the independent process measured of one chosen net, in ms; `drift` is its group's."""

    budget_ms: float
    seed: int
    genes: str
    predicted_ms: float
    upper_ms: float
    raw_ms: float
    median_ms: float
    drift: float
    normalised_ms: float


def main() -> int:
    args = _arguments()
    space = get_space(args.space)
    progress = RichProgress()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hwnas-audit-") as name:
        folder = Path(name)
        profile, path = _table(args, space, folder, progress)
        profiled = time.monotonic()
        with LatencyTable.open(path) as table:
            cost = LatencyModel(table).cost(space)
            witnesses = pick_witnesses(table, space)
        chosen = choose(space, cost, args, progress)
        searched = time.monotonic()
        files, beside = _write(folder, space, chosen, witnesses, profile.batch_size)
        with device_lock(profile.device, progress):
            progress.stage(f"Timing {len(set(files))} different nets in a process of its own")
            timed = _time(files, beside, profile.thread_count, args.seconds)
    judged, drifts = judge(chosen, files, timed, dict(zip(beside, witnesses, strict=True)))
    took = [profiled - began, searched - profiled, time.monotonic() - searched]
    if args.out:
        _save(args.out, judged)
    setting = f"{args.space}, batch {profile.batch_size}, threads: {profile.thread_count}"
    print(f"{setting}; profiled in {duration(took[0])}, searched in {duration(took[1])}, timed in {duration(took[2])}")
    return report(judged, drifts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lut", type=Path, help="the table; made where there is none  [a temporary one]")
    parser.add_argument("--space", default="proxyless-tiny")
    parser.add_argument("--nets", type=int, default=100, help="searches")
    parser.add_argument("--budgets", type=int, default=20, help="different budgets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipe", default="quickstart", help="whose evolution settings to search with")
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long to time each net")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="write every net's figures there")
    args = parser.parse_args()
    if min(args.nets, args.budgets) < 1 or args.seconds <= 0:
        parser.error("--nets, --budgets and --seconds must be above zero")
    return args


def _table(args: argparse.Namespace, space: Space, folder: Path, progress: Progress) -> tuple[DeviceProfile, Path]:
    """The table to audit, made where there is none, and the profile it is bound to."""
    profile = find_profile("cpu").override(threads=args.threads)
    path = args.lut or folder / "audit.lut"
    if not path.exists():
        build_table(profile, path, spaces=[space], progress=progress)
        return profile, path
    with LatencyTable.open(path) as table:
        profile = profile.override(threads=table.header["threads"], batch_size=table.header["batch_size"])
        with MeasuringProcess(profile) as process:
            table.check_bound_to(profile, process.describe)
    return profile, path


def pick_witnesses(table: LatencyTable, space: Space) -> list[MeasuredNetwork]:
    """Calibration networks of the space's input shape, from the fastest to the slowest.

    Raises:
        HwnasError: the table has none.
    """
    known = [net for net in table.networks() if net.input_shape == space.input_shape and net.network is not None]
    if not known:
        raise HwnasError(f"{table.path} has no calibration networks of {space.name}: give another --lut, or none")
    known.sort(key=lambda net: net.measured.latency_ms)
    return [known[index] for index in sorted({round(place) for place in np.linspace(0, len(known) - 1, WITNESSES)})]


def choose(space: Space, cost: Cost, args: argparse.Namespace, progress: Progress) -> list[Chosen]:
    """`args.nets` searches under `args.budgets` budgets."""
    evolution = load_recipe(args.recipe).evolution
    settings = Evolution(evolution.population, evolution.generations, evolution.topk, evolution.mutation)
    least, most = (cost.upper.total_of(genes) for genes in (cost.upper.cheapest(), cost.upper.dearest()))
    limits = least + np.linspace(LOWEST, HIGHEST, args.budgets) * (most - least)
    found = []
    with progress.start(args.nets, "searches") as task:
        for number in range(args.nets):
            limit, seed = float(limits[number % args.budgets]), number // args.budgets
            sampler = FeasibleSampler([cost], [limit], space=space.name, min_use=evolution.budget_use)
            score = StandIn(space, np.random.default_rng([args.seed, number, 0]))
            result = evolve(space, sampler, score, np.random.default_rng([args.seed, number, 1]), settings=settings)
            genes = result.best.genes
            found.append(Chosen(limit, seed, result.best, cost.prices.total_of(genes), cost.upper.total_of(genes)))
            task.advance()
    return found


class StandIn:
    """Scores in the place of accuracies: the logarithm of the MACs and, for every choice, an amount of its own."""

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        self.macs = macs_cost(space).prices
        self.noise = CHOICE_NOISE * rng.standard_normal(self.macs.choices.shape)

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        genes = np.array([arch.genes for arch in archs])
        own = self.noise[np.arange(genes.shape[1]), genes].sum(axis=1)
        return [float(score) for score in np.log(self.macs.total(genes)) + own]


def _write(
    folder: Path, space: Space, chosen: Sequence[Chosen], witnesses: Sequence[MeasuredNetwork], batch: int
) -> tuple[list[str], list[str]]:
    """ONNX files of the chosen nets (equal nets share one) and of the witnesses."""
    files, beside = {}, []
    for net in chosen:
        if net.arch not in files:
            path = folder / f"net{len(files)}.onnx"
            path.write_bytes(network_to_onnx(space.network(net.arch), batch_size=batch))
            files[net.arch] = str(path)
    for index, witness in enumerate(witnesses):
        assert witness.network is not None
        path = folder / f"witness{index}.onnx"
        path.write_bytes(network_to_onnx(witness.network, batch_size=batch))
        beside.append(str(path))
    return [files[net.arch] for net in chosen], beside


def _time(files: Sequence[str], beside: Sequence[str], threads: int, seconds: float) -> list[dict[str, float | str]]:
    """Runs the independent process; its figures, one entry a file and group."""
    script = Path(__file__).with_name("independent_timing.py")
    command = [sys.executable, str(script), *dict.fromkeys(files), "--threads", str(threads), "--seconds", str(seconds)]
    command += ["--group", str(GROUP), "--rounds", str(ROUNDS)]
    for path in beside:
        command += ["--beside", path]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise HwnasError(f"the independent timing failed: {done.stderr.strip().splitlines()[-1]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def judge(
    chosen: Sequence[Chosen],
    files: Sequence[str],
    timed: Sequence[Mapping[str, float | str]],
    witnesses: Mapping[str, MeasuredNetwork],
) -> tuple[list[Judged], list[float]]:
    """Every chosen net with its measured times, and the drift of each group: the witnesses' time now over then."""
    ratios: dict[int, list[float]] = {}
    for entry in timed:
        if entry["file"] in witnesses:
            then = witnesses[str(entry["file"])].measured.latency_ms
            ratios.setdefault(int(entry["group"]), []).append(float(entry["fastest_ms"]) / then)
    drifts = {group: float(np.median(found)) for group, found in ratios.items()}
    figures = {str(entry["file"]): entry for entry in timed if entry["file"] not in witnesses}
    judged = []
    for net, file in zip(chosen, files, strict=True):
        raw, median = float(figures[file]["fastest_ms"]), float(figures[file]["median_ms"])
        drift = drifts[int(figures[file]["group"])]
        genes = "-".join(map(str, net.arch.genes))
        times = (net.predicted_ms, net.upper_ms, raw, median, drift, raw / drift)
        judged.append(Judged(net.budget_ms, net.seed, genes, *times))
    return judged, [drifts[group] for group in sorted(drifts)]


def report(judged: Sequence[Judged], drifts: Sequence[float]) -> int:
    """Prints the audit. Returns the exit code: 3 where the promise is broken."""
    budgets = np.array([net.budget_ms for net in judged])
    print(f"{len(judged)} searched nets, {len({net.genes for net in judged})} different ones, "
          f"{len(set(budgets))} budgets from {budgets.min():.4g} to {budgets.max():.4g} ms")  # fmt: skip
    print(f"{'':34}nets over budget  median use  largest use")
    uses = {}
    for name, title in (
        ("upper_ms", "predicted, the upper end"),
        ("normalised_ms", "at the level when profiled"),
        ("raw_ms", "by the clock, undisturbed"),
        ("median_ms", "by the clock, median of all runs"),
    ):
        use = uses[name] = np.array([getattr(net, name) for net in judged]) / budgets
        over = f"{int((use > 1).sum())} of {len(use)}"
        print(f"{title:34}{over:>16}{np.median(use):>12.1%}{use.max():>13.1%}")
    errors = np.array([net.predicted_ms / net.normalised_ms - 1 for net in judged])
    print(f"predictions are off by {np.abs(errors).mean():.1%} on average, {errors.mean():+.1%} with their sign")
    print(f"the machine's time now over then: {min(drifts):.3f} to {max(drifts):.3f} (groups of nets: {len(drifts)})")
    broken = [net for net in judged if net.normalised_ms > net.budget_ms]
    for net in sorted(broken, key=lambda net: net.budget_ms / net.normalised_ms):
        print(f"over by {net.normalised_ms / net.budget_ms - 1:.1%}: budget {net.budget_ms:.4g} ms, predicted "
              f"{net.predicted_ms:.4g} ms, measured {net.normalised_ms:.4g} ms, choices {net.genes}")  # fmt: skip
    if broken:
        worst = uses["normalised_ms"].max() - 1
        print(f"the promise is BROKEN: {len(broken)} of {len(judged)} nets are over their budget, by up to {worst:.1%}")
        return ClaimError.exit_code
    print(f"the promise holds: none of {len(judged)} nets is over its budget")
    return 0


def _save(path: Path, judged: Sequence[Judged]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Judged)])
        writer.writeheader()
        writer.writerows(asdict(net) for net in judged)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HwnasError as error:
        print(f"budget_audit: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
