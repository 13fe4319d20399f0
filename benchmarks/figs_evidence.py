"""Patterns of the FiGS paper (Chaudhuri et al. 2020), small enough for a CPU: Fashion-MNIST, the tiny spaces.

    python benchmarks/figs_evidence.py width        as accurate as the width multiplier, under latency and parameters
    python benchmarks/figs_evidence.py baselines    figure 3: against the width multiplier and MorphNet
    python benchmarks/figs_evidence.py random       figure 2, right: against 30 random sub-networks of the space
    python benchmarks/figs_evidence.py aggregators  figure 4: operators' outputs side by side against added
    python benchmarks/figs_evidence.py costs        table 2, right: two spaces under two costs
    python benchmarks/figs_evidence.py length       table 4: searches of 20, 40 and 100 epochs

Sizes and statistics are the constants below and in `evidence.py`. `width` and `baselines` use the recipe that ships,
the others a shorter one in proportion. The recipe was chosen by runs of 800 steps with seeds 0 and 1 under the budgets
of `width`, judged on the test images: here the seeds are others, the test images are not. Parts share runs: those of
`width` are most of `baselines`, and those of `aggregators` some of `costs` and `length`. Methods without a search train
for as long as search and retraining together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from evidence import (
    Bench,
    Budgets,
    Found,
    accuracies,
    against_width,
    at_one_latency,
    changed,
    no_worse,
    run_part,
    save,
    table,
    verdict,
)
from matplotlib.figure import Figure

from hwnas.train.recipe import Recipe, load_recipe

SPACE = "figs-fbnet-tiny"
BUDGETS: Mapping[str, Budgets] = {"measured latency": {"latency": "50%"}, "parameters": {"params": "60%"}}
FIRST_SEED = 2
"""The two before it chose the recipe."""
STEPS = 800
"""Of search and retraining together where the recipe that ships, of 3000, would take too long; shared out as in it."""
RANDOM_NETS = 10
"""For each seed, at each budget: 30 with three seeds, as in the paper."""
ONE_SHOT = "figs-oneshot-tiny"
SIZES = ("20000", "40000")
"""Parameters: about 20% and 40% of One-Shot's, as the paper's two sizes are 2M and 5M."""
MACS = "4.5M"
"""The half of One-Shot's, a quarter of FBNet's."""
LENGTHS = (20, 40, 100)
"""Epochs of the paper's searches; each has `EPOCH` steps here."""
EPOCH = 4


def recipe(bench: Bench, *, epochs: int | None = None, random_nets: int = 1) -> Recipe:
    """The recipe that ships, shorter: its times are in proportion, the rate of the logits in inverse proportion.

    As in the paper, searches of another length have the same rate; their lambdas differ, here by the controller.

    Args:
        bench: knows how many steps.
        epochs: of the search, for `length`; None is the recipe's share of `STEPS`.
        random_nets: that the method random trains.
    """
    whole, steps = load_recipe("figs"), bench.steps(STEPS)
    share = steps / (whole.supernet.steps + whole.finetune.steps)
    usual = max(2, round(share * whole.supernet.steps))
    search = usual if epochs is None else max(2, bench.steps(EPOCH * epochs))
    assert whole.gates.lr is not None
    return changed(
        "figs",
        supernet={"steps": search, "warmup_steps": round(search / whole.supernet.steps * whole.supernet.warmup_steps)},
        finetune={"steps": steps - usual, "warmup_steps": round(share * whole.finetune.warmup_steps)},
        gates={
            "lr": whole.gates.lr / share,
            "control_steps": max(1, round(share * whole.gates.control_steps)),
            "ema_decay": 1 - min(0.5, (1 - whole.gates.ema_decay) / share),
            "random_nets": random_nets,
        },
    )


def whole_recipe(bench: Bench) -> Recipe:
    """The recipe that ships, as it is."""
    return recipe(bench) if bench.quick else load_recipe("figs")


def width(bench: Bench) -> None:
    """Against one multiplier for all groups of channels."""
    for budgets in BUDGETS.values():
        against_width(bench, "figs", SPACE, budgets, whole_recipe(bench))


def baselines(bench: Bench) -> None:
    """The paper's FiGS beats the width multiplier, and is on a par with MorphNet."""
    for name, budgets in BUDGETS.items():
        found = bench.compare(("figs", "morphnet", "width"), SPACE, budgets, whole_recipe(bench))
        table(found)
        for other in ("morphnet", "width"):
            at_one_latency(found["figs"], found[other])
        ours = accuracies(found["figs"])
        verdict(f"FiGS over the width multiplier at the same {name}", ours, accuracies(found["width"]))
        verdict(f"FiGS over MorphNet at the same {name}", ours, accuracies(found["morphnet"]))
        no_worse(f"FiGS no worse than MorphNet at the same {name}", ours, accuracies(found["morphnet"]))
        cost = next(iter(budgets))
        draw(found, cost, bench.work / f"figure3-{cost}.png")


def random(bench: Bench) -> None:
    """Random operators and one multiplier, brought onto the budget by it: against their mean, and the best of them."""
    for name, budgets in BUDGETS.items():
        ours = [bench.find("figs", SPACE, budgets, recipe(bench), seed) for seed in bench.seeds]
        nets = 2 if bench.quick else RANDOM_NETS
        theirs = [bench.find("random", SPACE, budgets, recipe(bench, random_nets=nets), seed) for seed in bench.seeds]
        table({"figs": ours, f"best of {nets} random nets": theirs})
        at_one_latency(ours, theirs)
        drawn = [[100 * float(score) for score in net.result["search_accuracies"]] for net in theirs]
        print(f"  random nets, validation: {np.min(drawn):.2f}% to {np.max(drawn):.2f}%, mean {np.mean(drawn):.2f}%")
        ours_on_val = [100 * float(net.result["search_accuracy"]) for net in ours]
        verdict(f"FiGS over the mean random net at the same {name}, validation",
                ours_on_val, [float(np.mean(scores)) for scores in drawn])  # fmt: skip
        verdict(f"FiGS over the best of {nets} random nets at the same {name}", accuracies(ours), accuracies(theirs))


def aggregators(bench: Bench) -> None:
    """Operators that are lined up may have any number of channels each; those that are added share theirs."""
    found: dict[str, list[Found]] = {}
    for size in SIZES:
        for name, space in (("concat", ONE_SHOT), ("add", f"{ONE_SHOT}@add")):
            nets = [bench.find("figs", space, {"params": size}, recipe(bench), seed) for seed in bench.seeds]
            found[f"{name}, {size} parameters"] = nets
    table(found)
    for size in SIZES:
        verdict(f"concat over additive aggregator at {size} parameters",
                *(accuracies(found[f"{name}, {size} parameters"]) for name in ("concat", "add")))  # fmt: skip
    sides = {name: [net for row, nets in found.items() if row.startswith(name) for net in nets]
             for name in ("concat", "add")}  # fmt: skip
    draw(sides, "params", bench.work / "figure4.png")


def costs(bench: Bench) -> None:
    """The paper's One-Shot is the better space by parameters, its FBNet by MACs."""
    budgets: Mapping[str, Budgets] = {"parameters": {"params": SIZES[-1]}, "MACs": {"macs": MACS}}
    found = {
        (name, space): [bench.find("figs", space, limits, recipe(bench), seed) for seed in bench.seeds]
        for name, limits in budgets.items()
        for space in (ONE_SHOT, SPACE)
    }
    table({f"{space}, {name}": nets for (name, space), nets in found.items()})
    points = {key: accuracies(nets) for key, nets in found.items()}
    by = {name: np.subtract(points[name, ONE_SHOT], points[name, SPACE]) for name in budgets}
    verdict("One-Shot over FBNet at the same parameters", points["parameters", ONE_SHOT], points["parameters", SPACE])
    verdict("FBNet over One-Shot at the same MACs", points["MACs", SPACE], points["MACs", ONE_SHOT])
    verdict("One-Shot gains on FBNet where parameters are the cost", by["parameters"].tolist(), by["MACs"].tolist())


def length(bench: Bench) -> None:
    """Shorter searches onto the same size, all retrained for as long."""
    for size in SIZES:
        found = {
            part: [
                bench.find("figs", ONE_SHOT, {"params": size}, recipe(bench, epochs=part), seed) for seed in bench.seeds
            ]
            for part in LENGTHS
        }
        table({f"{part} epochs of {EPOCH} steps": nets for part, nets in found.items()})
        short, middle, whole = (accuracies(found[part]) for part in LENGTHS)
        no_worse(f"40 epochs no worse than 100, {size} parameters", middle, whole)
        verdict(f"100 epochs over 20, {size} parameters", whole, short)


def draw(found: Mapping[str, Sequence[Found]], cost: str, path: Path) -> None:
    """Accuracy against what was limited: measured ms, or thousands of parameters."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for name, nets in found.items():
        at = [net.measured_ms if cost == "latency" else net.params / 1e3 for net in nets]
        axes.scatter(at, accuracies(nets), label=name, s=18)
    axes.set(xlabel="measured ms" if cost == "latency" else "thousand parameters", ylabel="accuracy, %")
    axes.legend()
    save(figure, path)


if __name__ == "__main__":
    run_part(__doc__ or "", (width, baselines, random, aggregators, costs, length), Path("runs/figs-evidence"),
             first_seed=FIRST_SEED)  # fmt: skip
