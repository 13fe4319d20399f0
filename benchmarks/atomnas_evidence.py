"""Patterns of the AtomNAS paper (Mei et al. 2020), small enough for a CPU: Fashion-MNIST, `atomnas-tiny`.

    python benchmarks/atomnas_evidence.py width          as accurate as the width multiplier, under latency and MACs
    python benchmarks/atomnas_evidence.py aware          table 2: penalties by cost against equal ones
    python benchmarks/atomnas_evidence.py latency        priced in ms against MACs, at the same measured latency
    python benchmarks/atomnas_evidence.py recalibration  table 3: with and without new statistics of BatchNorm
    python benchmarks/atomnas_evidence.py architectures  figures 5 and 6: what was found, drawn
    python benchmarks/atomnas_evidence.py shrinking      figure 2: MACs and step time while the net shrinks

Sizes and statistics are the constants below and in `evidence.py`, fixed before the first run. Parts share runs: those
of `width` are the half of `aware` and of `latency`. The paper retrains nothing, and neither is anything here.
"""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
from evidence import (
    Bench,
    Found,
    accuracies,
    against_width,
    at_one_latency,
    changed,
    interval_text,
    run_part,
    save,
    table,
    verdict,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from hwnas.search.looks import Log
from hwnas.spaces import AtomSpace, find_space
from hwnas.spaces.widths import Widths
from hwnas.train.metrics import MetricsLog
from hwnas.train.recipe import Recipe, load_recipe

SPACE = "atomnas-tiny"
STEPS = 900
BUDGET = "50%"
SIZES = ("30%", BUDGET, "70%")
"""Of the supernet's MACs: three nets, as AtomNAS-A, -B and -C are three."""
PAPER_SIZE = "24%"
"""AtomNAS-C's share of its supernet: 360 of 1521 million MACs."""
PAPER_EXTRA = 17.2
"""Percent that search and training cost more than training the final net (section 3.3)."""
COLOURS = {3: "tab:blue", 5: "tab:orange", 7: "tab:cyan"}


def recipe(bench: Bench, **atoms: float) -> Recipe:
    """The recipe that ships, shorter, with every time in it in proportion."""
    whole = load_recipe("atomnas")
    steps = bench.steps(STEPS)
    share = steps / whole.supernet.steps

    def times(count: int) -> int:
        return max(1, round(share * count))

    return changed(
        "atomnas",
        supernet={"steps": steps, "warmup_steps": times(whole.supernet.warmup_steps)},
        atoms={
            "check_steps": times(whole.atoms.check_steps),
            "control_steps": times(whole.atoms.control_steps),
            "ema_decay": 1 - min(0.5, (1 - whole.atoms.ema_decay) / share),
            **atoms,
        },
        train={**whole.supernet.model_dump(), "steps": steps},
    )


# -- accuracy ------------------------------------------------------------------------------------------------------


def width(bench: Bench) -> None:
    """Against one multiplier for all branches, trained as long."""
    for cost in ("latency", "macs"):
        against_width(bench, "atomnas", SPACE, {cost: BUDGET}, recipe(bench))


def aware(bench: Bench) -> None:
    """Both under one budget, whose controllers find a lambda for either."""
    for cost in ("macs", "latency"):
        found = bench.compare(("atomnas", "atomnas-equal"), SPACE, {cost: BUDGET}, recipe(bench))
        table(found)
        if cost == "latency":
            at_one_latency(found["atomnas"], found["atomnas-equal"])
        verdict(f"penalties by cost over equal ones at the same {cost}", *map(accuracies, found.values()))


def latency(bench: Bench) -> None:
    """What the net of a MACs budget is measured to take is the budget of the latency-aware search."""
    pairs: dict[str, list[Found]] = {"priced in MACs": [], "priced in ms": []}
    for seed in bench.seeds:
        by_macs = bench.find("atomnas", SPACE, {"macs": BUDGET}, recipe(bench), seed)
        budget = {"latency": f"{by_macs.measured_ms:.4f}ms"}
        pairs["priced in MACs"].append(by_macs)
        pairs["priced in ms"].append(bench.find("atomnas", SPACE, budget, recipe(bench), seed))
    table(pairs)
    at_one_latency(pairs["priced in ms"], pairs["priced in MACs"])
    ours, theirs = (accuracies(pairs[name]) for name in ("priced in ms", "priced in MACs"))
    verdict("latency-aware over MACs-aware at the same measured latency", ours, theirs)


def recalibration(bench: Bench) -> None:
    """Validation accuracy of the same nets, with the running statistics of training and with new ones."""
    for size in SIZES:
        nets = [bench.find("atomnas", SPACE, {"macs": size}, recipe(bench), seed) for seed in bench.seeds]
        with_new, without = (
            [100 * float(net.result[key]) for net in nets]
            for key in ("search_accuracy", "search_accuracy_without_recalibration")
        )
        print(f"  {size} of the MACs: {np.mean(without):.2f}% without, {np.mean(with_new):.2f}% with recalibration")
        verdict(f"recalibrated over not, {size} of the MACs", with_new, without)


# -- architectures -------------------------------------------------------------------------------------------------


def atom_space(net: Found) -> AtomSpace:
    """The space that a net is of."""
    arch = net.result["arch"]
    space = find_space(arch["space"], image_size=arch["input_shape"][1], num_classes=arch["num_classes"])
    assert isinstance(space, AtomSpace)
    return space


def widths_of(net: Found) -> Widths:
    """Atoms of each kernel of each block."""
    return tuple(tuple(map(int, row)) for row in net.result["arch"]["widths"])


def kept(net: Found, *, early: bool) -> float:
    """Percent of the atoms of the first half of the blocks that are alive, or of the second half."""
    full, alive = atom_space(net).full, widths_of(net)
    half = len(full) // 2
    part = slice(None, half) if early else slice(half, None)
    return 100 * sum(map(sum, alive[part])) / sum(map(sum, full[part]))


def architectures(bench: Bench) -> None:
    """Where each method keeps atoms; the nets of the first seed are drawn."""
    found = bench.compare(("atomnas", "atomnas-equal"), SPACE, {"macs": BUDGET}, recipe(bench))
    for method, nets in found.items():
        space = atom_space(nets[0])
        print(f"{method}, seed 0: atoms of kernel {', '.join(map(str, space.kernels))} of those in the supernet")
        for block, (row, full) in enumerate(zip(widths_of(nets[0]), space.full, strict=True)):
            print(f"  block {block + 1}: " + ", ".join(f"{n} of {m}" for n, m in zip(row, full, strict=True)))
        mixed = [sum(all(row) for row in widths_of(net)) for net in nets]
        print(f"  blocks with all kernel sizes, by seed: {mixed} of {len(space.full)}")
    ours, equal = found["atomnas"], found["atomnas-equal"]
    for method, nets in found.items():
        draw_architecture(nets[0], bench.work / f"figure5-{method}.png")
    draw_shares({"by cost": ours[0], "equal penalties": equal[0]}, bench.work / "figure6.png")
    early, late = ([kept(net, early=first) for net in ours] for first in (True, False))
    verdict("by cost: a larger share of the atoms of later blocks is kept than of earlier ones", late, early)
    verdict("equal penalties keep more of the atoms of earlier blocks than penalties by cost",
            [kept(net, early=True) for net in equal], early)  # fmt: skip


def draw_architecture(net: Found, path: Path) -> None:
    """Figure 5: a column for each block, as high as its atoms for each input channel."""
    space = atom_space(net)
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    axes = figure.subplots()
    for block, (row, spec) in enumerate(zip(widths_of(net), space.blocks, strict=True)):
        bottom = 0.0
        for kernel, atoms in zip(space.kernels, row, strict=True):
            axes.bar(block + 1, atoms / spec.cin, bottom=bottom, color=COLOURS[kernel], width=0.7)
            bottom += atoms / spec.cin
    axes.set(xlabel="block", ylabel="atoms for each input channel", xticks=range(1, len(space.blocks) + 1))
    legend(axes, space)
    save(figure, path)


def draw_shares(nets: dict[str, Found], path: Path) -> None:
    """Figure 6: for each block, the shares of atoms that are alive, by kernel, and of those that are dead."""
    space = atom_space(next(iter(nets.values())))
    figure = Figure(figsize=(1.3 * len(space.full), 1.7 * len(nets) + 0.5), layout="constrained")
    rows = figure.subplots(len(nets), len(space.full), squeeze=False)
    for (name, net), line in zip(nets.items(), rows, strict=True):
        for block, (row, full, axes) in enumerate(zip(widths_of(net), space.full, line, strict=True)):
            colours = [*(COLOURS[kernel] for kernel in space.kernels), "lightgrey"]
            axes.pie([*row, sum(full) - sum(row)], colors=colours)
            axes.set_title(f"{block + 1}: {sum(full)}", fontsize=8)
        line[0].set_ylabel(name)
    legend(rows[-1][-1], space)
    save(figure, path)


def legend(axes: Axes, space: AtomSpace) -> None:
    """Which colour is which kernel."""
    patches = [Rectangle((0, 0), 1, 1, color=COLOURS[kernel]) for kernel in space.kernels]
    axes.legend(patches, [f"{kernel}x{kernel}" for kernel in space.kernels], fontsize=7)


# -- shrinking -----------------------------------------------------------------------------------------------------


def macs_by_step(net: Found) -> NDArray[np.float64]:
    """What each step of a training computed for an image, in MACs of one forward pass."""
    space, rows = atom_space(net), MetricsLog(net.folder.path / "metrics.csv").rows()
    values = np.full(int(rows[-1][0]), float(space.network(space.supernet_arch).macs))
    for look in Log(net.folder.path / "atoms.jsonl").rows():
        values[look["step"] :] = look["macs"]
    return values


def step_times(net: Found) -> tuple[list[int], list[float]]:
    """Where a training stood, and ms of a step since the row before."""
    rows = [(int(row[0]), float(row[3])) for row in MetricsLog(net.folder.path / "metrics.csv").rows()]
    pairs = list(pairwise(rows))
    return [b[0] for _, b in pairs], [1e3 * (b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs]


def final_alone(bench: Bench, net: Found, seed: int) -> Found:
    """The final net, trained from scratch for as many steps: a copy of its run, trained by `hwnas train`."""
    run = net.folder.path.parent.parent
    copy = run.with_name(f"{run.name}-scratch")
    if not copy.exists():
        unfinished = run.with_name(f"{run.name}-copy")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(run, unfinished)
        unfinished.rename(copy)
    bench.command("train", copy, "--from", "scratch", "--seed", seed, "--train-threads", bench.threads)
    return bench.verified(copy)


def shrinking(bench: Bench) -> None:
    """The same search with and without removals before its end, and the final net's training."""
    saved: dict[str, list[float]] = {"MACs": [], "seconds": []}
    extra: dict[str, list[float]] = {"MACs": [], "seconds": []}
    for seed in bench.seeds:
        shrunk = bench.find("atomnas", SPACE, {"macs": PAPER_SIZE}, recipe(bench), seed)
        whole = bench.find("atomnas", SPACE, {"macs": PAPER_SIZE}, recipe(bench, delta=0.999, land=1.0), seed)
        alone = final_alone(bench, shrunk, seed)
        macs = macs_by_step(shrunk)
        seconds = [float(shrunk.result["training_seconds"]), float(whole.result["training_seconds"]),
                   float(alone.result["trained"]["seconds"])]  # fmt: skip
        saved["MACs"].append(100 * float(1 - macs.mean() / macs[0]))
        extra["MACs"].append(100 * float(macs.mean() / macs[-1] - 1))
        saved["seconds"].append(100 * (1 - seconds[0] / seconds[1]))
        extra["seconds"].append(100 * (seconds[0] / seconds[2] - 1))
        print(f"  seed {seed}: {seconds[0]:.0f} s; without shrinking {seconds[1]:.0f} s, the final net alone "
              f"{seconds[2]:.0f} s; trained from scratch it reaches {alone.accuracy:.2f}%", flush=True)  # fmt: skip
        if seed == 0:
            draw_shrinking(macs, {"shrinking": shrunk, "not shrinking": whole, "final net alone": alone},
                           bench.work / "figure2.png")  # fmt: skip
    for unit in saved:
        print(f"of the training's {unit}, shrinking saves {interval_text(saved[unit], digits=1)}; search and training "
              f"cost {interval_text(extra[unit], digits=1)} more than training the final net "
              f"(the paper's net: {PAPER_EXTRA}%)")  # fmt: skip
    verdict("shrinking saves computation", saved["seconds"], [0.0] * len(saved["seconds"]), "% of the seconds")


def draw_shrinking(macs: NDArray[np.float64], trainings: dict[str, Found], path: Path) -> None:
    """Figure 2, and the time of a step beside it."""
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, values = np.arange(len(macs)), macs / 1e6
    left.fill_between(steps, values, values[0], facecolor="none", edgecolor="grey", hatch="xx", label="saved")
    left.fill_between(steps, values[-1], values, color="gold", label="extra over the final net")
    left.axhline(values[-1], color="red", linestyle="dashed", label="final net")
    left.set(xlabel="step", ylabel="million MACs", ylim=(0, None))
    for name, net in trainings.items():
        right.plot(*step_times(net), label=name)
    right.set(xlabel="step", ylabel="ms a step", ylim=(0, None))
    for axes in (left, right):
        axes.legend(fontsize=7)
    save(figure, path)


if __name__ == "__main__":
    parts = (width, aware, latency, recalibration, architectures, shrinking)
    run_part(__doc__ or "", parts, Path("runs/atomnas-evidence"))
