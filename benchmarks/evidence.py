"""What the scripts of evidence share: searches as users start them, kept and resumed, and the statistics of pairs.

A search is a run folder under --work, of one method, space, budget, recipe and seed. The installed `hwnas` makes it and
`hwnas verify` measures its net; what is finished is read from its files, what was killed goes on where it stopped.
Of differences, paired by seed, the mean and its 95% interval by Student's t are printed; a pattern counts as seen where
the interval lies wholly on its side, else it is reported as not seen.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import t

from hwnas.devices import find_profile
from hwnas.runs import NetFolder, RunFolder, read_json
from hwnas.train.recipe import Recipe, load_recipe, recipe_from

SEEDS = 3
ALIKE = 0.05
"""Nets whose measured latencies differ by no more, in the mean, count as nets of the same latency."""
MARGIN = 1.0
"""Points of accuracy that "no worse" leaves."""
HWNAS = Path(sysconfig.get_path("scripts")) / "hwnas"
QUICK_SEEDS, QUICK_STEPS = 2, 30

Budgets = Mapping[str, str]
"""As typed: ``{"latency": "50%"}``."""


@dataclass(frozen=True, slots=True)
class Found:
    """A net that a search ended with: its folder, what the search says of it (result.json) and verify (verify.json)."""

    folder: NetFolder
    result: Mapping[str, Any]
    verified: Mapping[str, Any]

    @property
    def accuracy(self) -> float:
        """On the test images, in percent."""
        return 100 * float(self.result["accuracy"])

    @property
    def measured_ms(self) -> float:
        """At the level of the table."""
        return float(self.verified["measured_ms"])

    @property
    def macs(self) -> int:
        """Of the net."""
        return int(self.result["macs"])

    @property
    def params(self) -> int:
        """Of the net."""
        return int(self.result["params"])


@dataclass
class Bench:
    """Searches by what they depend on.

    Attributes:
        work: where their runs are kept.
        lut: the table; what it lacks of a space is measured first.
        threads: of torch.
        quick: two seeds of a few steps on a few images of noise, to see that a script works.
        first_seed: of `seeds`.
    """

    work: Path
    lut: Path
    threads: int
    quick: bool = False
    first_seed: int = 0
    profiled: set[str] = field(default_factory=set)

    @property
    def seeds(self) -> range:
        """Each pair is of one seed: of weights, order, augmentation and validation split."""
        return range(self.first_seed, self.first_seed + (QUICK_SEEDS if self.quick else SEEDS))

    @property
    def data(self) -> str:
        """As typed."""
        return f"folder:{noise(self.work / 'noise')}" if self.quick else "fashion-mnist"

    def steps(self, full: int) -> int:
        """So many, or a few."""
        return QUICK_STEPS if self.quick else full

    def find(self, method: str, space: str, budgets: Budgets, recipe: Recipe, seed: int) -> Found:
        """The net of a search that is made now, or was before.

        Raises:
            SystemExit: a command failed; it has said why.
        """
        file = self.recipe_file(recipe)
        given = [word for cost, text in budgets.items() for word in (f"--{cost}", text)]
        kind = "-".join([method, space, *(word.lstrip("-") for word in given)]).replace(":", "-").replace("%", "pct")
        run = self.work / f"{kind}-{file.stem}-s{seed}"
        if not (run / "results.json").is_file():
            self.profile(space)
            self.command("search", "--method", method, "--space", space, "--data", self.data, *given, "--lut", self.lut,
                         "--seed", seed, "--recipe", file, "--train-threads", self.threads, "--out", run)  # fmt: skip
        found = self.verified(run)
        print(f"  {method:14} {space:20} {' '.join(given):18} seed {seed}: {line_of(found)}", flush=True)
        return found

    def verified(self, run: Path) -> Found:
        """The one net of a run, measured."""
        (folder,) = RunFolder.open(run).nets()
        if not (folder.path / "verify.json").is_file():
            self.command("verify", run, "--lut", self.lut, may_miss=True)
        return Found(folder, folder.result(), read_json(folder.path / "verify.json"))

    def profile(self, space: str) -> None:
        """Sees that the table has a space."""
        if space not in self.profiled:
            self.profiled.add(space)
            device = hasty(self.work / "hasty.toml") if self.quick else "cpu"
            self.command("profile", "--device", device, "--space", space, "--lut", self.lut)

    def recipe_file(self, recipe: Recipe) -> Path:
        """A recipe as `--recipe` takes it, named by what it says."""
        data = recipe.model_dump(exclude_none=True)
        path = self.work / "recipes" / f"{gist(data)}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(tomli_w.dumps(data))
        return path

    def command(self, *words: object, may_miss: bool = False) -> None:
        """Runs `hwnas`, quietly.

        Args:
            words: its arguments.
            may_miss: whether its claim may fail (exit code 3): a net that is measured over its budget.

        Raises:
            SystemExit: it failed.
        """
        code = subprocess.run([HWNAS, *map(str, words), "--quiet"], stdout=subprocess.DEVNULL, check=False).returncode
        if code == 3 and may_miss:
            print("  OVER ITS BUDGET when measured, or its outputs differ:", *words, flush=True)
        elif code:
            raise SystemExit(f"hwnas {' '.join(map(str, words))} ended with {code}")

    def compare(self, methods: Sequence[str], space: str, budgets: Budgets, recipe: Recipe) -> dict[str, list[Found]]:
        """What several methods find with every seed."""
        return {method: [self.find(method, space, budgets, recipe, seed) for seed in self.seeds] for method in methods}


def changed(name: str, **parts: Mapping[str, Any]) -> Recipe:
    """A recipe that ships, with some of its values changed: ``changed("figs", gates={"random_nets": 10})``."""
    data = load_recipe(name).model_dump()
    for part, values in parts.items():
        data[part] = {**(data[part] or {}), **values}
    return recipe_from(data, name)


def noise(folder: Path) -> Path:
    """Images of ten classes, all of them noise."""
    if not (folder / "test/9/3.png").is_file():  # the last one
        rng = np.random.default_rng(0)
        for split, count in (("train", 16), ("val", 4), ("test", 4)):
            for label in range(10):
                (folder / split / str(label)).mkdir(parents=True, exist_ok=True)
                for number in range(count):
                    pixels = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / split / str(label) / f"{number}.png")
    return folder


def hasty(path: Path) -> Path:
    """A profile of this CPU whose measurements take next to no time and are worth as much."""
    data = find_profile("cpu").model_dump(exclude_none=True)
    data["timing"] |= {"min_passes": 2, "max_passes": 2, "runs": 1, "min_run_ms": 0.01}
    path.write_text(tomli_w.dumps(data))
    return path


def gist(words: object) -> str:
    """A short name of what a training depends on."""
    return hashlib.blake2b(repr(words).encode(), digest_size=5).hexdigest()


def line_of(found: Found) -> str:
    """A net's figures in a line."""
    shares = found.result.get("reduction")
    reduced = f", reduced {reduction_text(shares)}" if shares else ""
    return (f"{found.accuracy:.2f}%, {found.measured_ms:.4f} ms, {found.macs / 1e6:.2f}M MACs, "
            f"{found.params / 1e6:.3f}M params, trained {found.result['training_seconds']:.0f} s{reduced}")  # fmt: skip


def reduction_text(shares: Mapping[str, float]) -> str:
    """Who reduced a net."""
    return f"{100 * shares['controller']:.1f}% by the controller, {100 * shares['projection']:.1f}% by the projection"


# -- statistics ----------------------------------------------------------------------------------------------------


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95% interval by Student's t."""
    data = np.asarray(values)
    half = float(t.ppf(0.975, len(data) - 1) * data.std(ddof=1) / len(data) ** 0.5)
    return float(data.mean()), float(data.mean()) - half, float(data.mean()) + half


def interval_text(values: Sequence[float], unit: str = "%", digits: int = 2) -> str:
    """Mean and interval for people."""
    mean, low, high = mean_interval(values)
    return f"{mean:.{digits}f}{unit} (95%: {low:.{digits}f} to {high:.{digits}f})"


def verdict(pattern: str, better: Sequence[float], worse: Sequence[float], unit: str = "points") -> None:
    """Prints the mean difference, and whether the pattern, a positive one, is seen."""
    mean, low, high = mean_interval(np.subtract(better, worse).tolist())
    print(f"{pattern}: {mean:+.2f} {unit} (95%: {low:+.2f} to {high:+.2f}, {len(better)} seeds): "
          f"{'seen' if low > 0 else 'NOT SEEN'}", flush=True)  # fmt: skip


def no_worse(claim: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
    """Prints the mean difference, and whether it is above minus `MARGIN`: itself, and with its interval."""
    mean, low, high = mean_interval(np.subtract(ours, theirs).tolist())
    holds = "holds" if mean >= -MARGIN else "FAILS"
    sure = "seen" if low >= -MARGIN else "NOT SEEN"
    print(f"{claim}, less {MARGIN:g} point: {mean:+.2f} points (95%: {low:+.2f} to {high:+.2f}, {len(ours)} seeds): "
          f"the mean {holds}, the interval: {sure}", flush=True)  # fmt: skip


def accuracies(nets: Sequence[Found]) -> list[float]:
    """In percent."""
    return [net.accuracy for net in nets]


def table(rows: Mapping[str, Sequence[Found]]) -> None:
    """Prints means over seeds, a method a line."""
    for name, nets in rows.items():
        costs = [np.mean([pick(net) for net in nets]) for pick in (lambda n: n.measured_ms, lambda n: n.macs / 1e6,
                                                                   lambda n: n.params / 1e6)]  # fmt: skip
        print(f"  {name:32} {interval_text(accuracies(nets))}, {costs[0]:.4f} ms measured, {costs[1]:.2f}M MACs, "
              f"{costs[2]:.3f}M params", flush=True)  # fmt: skip


def at_one_latency(ours: Sequence[Found], theirs: Sequence[Found]) -> None:
    """Prints how far the measured latencies of pairs are apart, and whether they count as the same."""
    ratios = [100 * (a.measured_ms / b.measured_ms - 1) for a, b in zip(ours, theirs, strict=True)]
    alike = abs(float(np.mean(ratios))) <= 100 * ALIKE
    print(f"  measured latencies, pair by pair: {interval_text(ratios, digits=1)} apart: "
          f"{'the same' if alike else 'NOT THE SAME'} within {100 * ALIKE:g}%", flush=True)  # fmt: skip


def against_width(bench: Bench, method: str, space: str, budgets: Budgets, recipe: Recipe) -> None:
    """A method is no worse than the width multiplier under the same budget and as long a training, less a margin."""
    found = bench.compare((method, "width"), space, budgets, recipe)
    table(found)
    at_one_latency(found[method], found["width"])
    shares = [net.result["reduction"] for net in found[method]]
    most = max(abs(row["projection"]) for row in shares)
    mean = {key: float(np.mean([row[key] for row in shares])) for key in shares[0]}
    print(f"  reduced {reduction_text(mean)} (at most {100 * most:.1f}%, of 10% allowed: "
          f"{'kept' if most <= 0.1 else 'BROKEN'})", flush=True)  # fmt: skip
    typed = " ".join(f"--{cost} {text}" for cost, text in budgets.items())
    no_worse(f"{method} no worse than the width multiplier, {typed}", *map(accuracies, found.values()))


def save(figure: Figure, path: Path) -> None:
    """Writes a picture and says where."""
    figure.savefig(path, dpi=150)
    print(f"  drawn: {path}", flush=True)


# -- the command line of a script ----------------------------------------------------------------------------------


def run_part(doc: str, functions: Sequence[Callable[[Bench], None]], work: Path, first_seed: int = 0) -> None:
    """Prints one piece of evidence, by the name of its function, as the command line says."""
    parts = {function.__name__: function for function in functions}
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--work", type=Path, default=work)
    parser.add_argument("--lut", type=Path, help="the latency table, filled where it lacks something  [WORK/cpu.lut]")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of training")
    parser.add_argument("--quick", action="store_true", help="only see that it works: its figures mean nothing")
    options = parser.parse_args()
    folder = options.work / "quick" if options.quick else options.work
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # takes the running command along
    began = time.monotonic()
    lut = folder / "hasty.lut" if options.quick else options.lut or folder / "cpu.lut"
    parts[options.part](Bench(folder, lut, options.threads, options.quick, first_seed))
    print(f"took {time.monotonic() - began:.0f} s")
    if options.quick:
        print(f"QUICK: {QUICK_STEPS} steps, {QUICK_SEEDS} seeds: the script works, and its figures mean nothing")
