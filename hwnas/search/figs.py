"""FiGS from data to nets (Chaudhuri et al. 2020), and its baselines, on spaces of gated channels.

Two phases for each net: the architecture is learned (``figs``: gates; ``morphnet``: an L1 penalty on BatchNorm
scales), brought onto its budget and cut out; then it is retrained. ``width`` (one multiplier) and ``random`` (random
operators and one multiplier) have no first phase and are trained as long as both. A killed run goes on from its last
checkpoint to the same net.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import ClaimError
from hwnas.gate_costs import GateCost
from hwnas.progress import NullProgress, duration
from hwnas.runs import NetFolder
from hwnas.search.atom_projection import Limit
from hwnas.search.atomnas import AtomGoal, Work, multiplied
from hwnas.spaces.gated import GateSpace
from hwnas.spaces.widths import STAIRS, AtomArch, Widths
from hwnas.train.recipe import Phase

if TYPE_CHECKING:
    from torch import nn

    from hwnas.search.gate_training import GateTraining

TIMED = 3
"""Steps that a duration is estimated from."""


def random_arch(space: GateSpace, limits: Sequence[Limit], seed: int, number: int) -> Widths:
    """The random sub-network `number` of a seed, as wide as the limits allow.

    Raises:
        ClaimError: none that was drawn can meet them.
    """
    from hwnas.search.gate_training import random_widths

    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xF165, number]))
    stairs = any(limit.cost.in_stairs for limit in limits)
    least = STAIRS[0][1] if stairs else 1
    for _, (empty, factor) in zip(range(100), random_widths(space, rng), strict=False):

        def at(scale: float, empty: frozenset[tuple[int, int]] = empty) -> Widths:
            rows = tuple(
                (0 if (number, 0) in empty else min(row[0], max(least, int(scale * row[0]))),)
                for number, row in enumerate(space.full)
            )
            if stairs:
                rows = tuple((max(s for s in space.stairs(n, 0) if s <= row[0]),) for n, row in enumerate(rows))
            return space.revived(rows, {}, least)

        if not limits:
            return at(factor)
        low, high = 0.0, 1.0
        if not all(limit.met(at(low)) for limit in limits):
            continue
        if all(limit.met(at(high)) for limit in limits):
            return at(high)
        for _ in range(16):
            middle = (low + high) / 2
            low, high = (middle, high) if all(limit.met(at(middle)) for limit in limits) else (low, middle)
        return at(low)
    raise ClaimError(f"none of 100 random nets of {space.name} meets the budget: give a larger one")


class GateWork(Work):
    """The work between goals and results on a space of gates."""

    @property
    def space(self) -> GateSpace:
        """Of the request."""
        space = self.request.space
        assert isinstance(space, GateSpace)
        return space

    @property
    def searches(self) -> bool:
        """Whether there is a first phase."""
        return self.request.method in ("figs", "morphnet")

    def make(self, goal: AtomGoal) -> None:
        """Searches, retrains, tests and writes one net."""
        from hwnas.train.checkpoint import CheckpointStore

        folder = self.run.net(goal.name)
        for stale in ("result.json", "verify.json"):
            (folder.path / stale).unlink(missing_ok=True)
        for line in self.space.channels.report():
            if line.startswith("not gated"):
                self.progress.note(line)
        self.progress.stage(f"{'Searching' if self.searches else 'Training'} for {goal.name}")
        folder.path.mkdir(parents=True, exist_ok=True)
        self._say_how_long(goal)
        name = f"{self.request.method}-{goal.key}"
        if self.searches:
            files = CheckpointStore(self.run.checkpoints, name)
            training, widths, plain = self._search(goal, folder, files)
            net, seconds = self._retrain(folder, f"{name}-retrain", plain, self.request.recipe.finetune)
            shares = training.landing.shares() if training.landing is not None and goal.limits else None
            landing = asdict(training.landing) if training.landing is not None else None
            scores: list[float] = []
        else:
            widths, net, seconds, scores = self._baseline(goal, folder, name)
            shares = landing = None
        result = self._tested(goal, folder, widths, net)
        more: dict[str, Any] = {"reduction": shares, "landing": landing, "training_seconds": seconds}
        if scores:
            more["search_accuracies"] = scores
        folder.write_json("result.json", {**result, **more})
        for path in self.run.checkpoints.glob(f"{name}*"):
            path.unlink(missing_ok=True)

    # -- the first phase ---------------------------------------------------------------------------------------------

    def _training(self, goal: AtomGoal, log: Path | None) -> GateTraining:  # type: ignore[override]
        import torch

        from hwnas.nn.gates import GatedNet
        from hwnas.search.atom_training import Log
        from hwnas.search.gate_training import FigsTraining, MorphNetTraining
        from hwnas.train.loop import make_optimizer, step_rng, torch_generator

        request, gates, space = self.request, self.request.recipe.gates, self.space
        plain = space.supernet(generator=torch_generator(step_rng(request.seed, "weights", 0)))
        net = GatedNet(
            plain, space.input_shape, tau=gates.tau, start=gates.start, backward_tau=gates.backward_tau,
            readable=space.readable,
        )  # fmt: skip
        net.to(request.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        cost = goal.limits[0].cost if goal.limits else request.costs["macs"]
        assert isinstance(cost, GateCost)
        kind = FigsTraining if request.method == "figs" else MorphNetTraining
        steps = request.recipe.supernet.steps
        optimizer = make_optimizer(net.net, request.recipe.supernet)
        return kind(
            space, net, optimizer, cost, goal.limits, gates, steps, request.seed, Log(log) if log is not None else None
        )

    def _train_gates(self, training: GateTraining, **options: Any) -> None:
        from hwnas.train.loop import train

        train(
            training.net,
            self._batches(),
            forward=training.forward,
            description="search steps",
            optimizer=training.optimizer,
            hooks=training,
            **options,
        )

    def _search(self, goal: AtomGoal, folder: NetFolder, files: Any) -> tuple[GateTraining, Widths, nn.Module]:
        """The trained gates, the widths they came to, and the net cut out of them."""
        from hwnas.search.atom_training import AtomStore
        from hwnas.train.loop import MetricsLog, step_rng, torch_generator

        training = self._training(goal, folder.path / "gates.jsonl")
        metrics = MetricsLog(folder.path / "metrics.csv")
        self._train_gates(training, store=AtomStore(files, training), metrics=metrics, progress=self.progress)
        widths, keep = training.land()
        if not self.request.recipe.gates.inherit:
            generator = torch_generator(step_rng(self.request.seed, "weights", 1))
            return training, widths, self.space.build(AtomArch(self.space.name, widths), generator=generator)
        with training.ema.inside(training.net):
            return training, widths, training.net.cut(keep)

    # -- the second phase --------------------------------------------------------------------------------------------

    def _retrain(self, folder: NetFolder, name: str, net: nn.Module, phase: Phase) -> tuple[nn.Module, float]:
        """Trains a net on; returns it with its averaged weights and how long all its trainings took."""
        from hwnas.search.atom_training import AtomStore
        from hwnas.search.gate_training import Averaging
        from hwnas.train.checkpoint import CheckpointStore
        from hwnas.train.loop import Batches, MetricsLog, train

        request = self.request
        if not phase.steps:
            return net, self._seconds(folder)
        batches = Batches(self.splits.train, self.splits.normalisation, phase, request.seed, "retrain", request.device)
        hooks = Averaging(net, request.recipe.gates.ema_decay)
        train(
            net,
            batches,
            forward=lambda images, _: net(images),
            progress=self.progress,
            description="retraining steps" if self.searches else "steps",
            store=AtomStore(CheckpointStore(self.run.checkpoints, name), hooks),
            metrics=MetricsLog(folder.path / "retrain.csv"),
            hooks=hooks,
        )
        hooks.ema.write(net)
        return net, self._seconds(folder)

    @staticmethod
    def _seconds(folder: NetFolder) -> float:
        from hwnas.train.loop import MetricsLog

        rows = [MetricsLog(folder.path / name).rows() for name in ("metrics.csv", "retrain.csv")]
        return sum(float(found[-1][3]) for found in rows if found)

    def _baseline(self, goal: AtomGoal, folder: NetFolder, name: str) -> tuple[Widths, nn.Module, float, list[float]]:
        """The net of a baseline, trained as long as both phases; of several random ones the best by validation.

        Also how long all trainings took, and the validation accuracies of several.
        """
        from hwnas.train.evaluate import accuracy
        from hwnas.train.loop import step_rng, torch_generator
        from hwnas.train.recalibrate import recalibrate

        request, recipe = self.request, self.request.recipe
        phase = recipe.finetune.model_copy(update={"steps": recipe.supernet.steps + recipe.finetune.steps})
        if request.method == "width":
            found = [multiplied(self.space, goal.limits)]
        else:
            found = [random_arch(self.space, goal.limits, request.seed, n) for n in range(recipe.gates.random_nets)]
        best: tuple[float, Widths, nn.Module] | None = None
        seconds, scores = 0.0, list[float]()
        for number, widths in enumerate(found):
            generator = torch_generator(step_rng(request.seed, "weights", number))
            net = self.space.build(AtomArch(self.space.name, widths), generator=generator)
            (folder.path / "retrain.csv").unlink(missing_ok=True) if number else None
            net, spent = self._retrain(folder, f"{name}-{number}", net, phase)
            seconds += spent
            if len(found) > 1:
                recalibrate(net, net, self.calibration.images())
                scores.append(accuracy(net, self.splits.val, self.splits.normalisation, device=request.device))
                self.progress.note(f"random net {number + 1} of {len(found)}: {100 * scores[-1]:.2f}% of validation")
            if best is None or scores[-1] > best[0]:
                best = (scores[-1] if scores else 0.0, widths, net)
        assert best is not None
        return best[1], best[2], seconds, scores

    # -- the end -----------------------------------------------------------------------------------------------------

    def _tested(self, goal: AtomGoal, folder: NetFolder, widths: Widths, net: nn.Module) -> dict[str, Any]:
        from hwnas.train.evaluate import accuracy
        from hwnas.train.finish import accuracy_at_last, write_net
        from hwnas.train.recalibrate import recalibrate

        request, arch = self.request, AtomArch(self.space.name, widths)
        recalibrate(net, net, self.calibration.images())
        searched = accuracy(net, self.splits.val, self.splits.normalisation, device=request.device)
        tested, split = accuracy_at_last(net, self.splits, request.device)
        write_net(folder, self.space, arch, net)
        return {
            **self.figures(goal, arch),
            "net": goal.name,
            "method": request.method,
            "arch": self.space.to_json(arch),
            "accuracy": tested,
            "accuracy_split": split,
            "search_accuracy": searched,
            "evaluated": 1 if request.method != "random" else request.recipe.gates.random_nets,
            "baseline": None,
            "normalisation": asdict(self.splits.normalisation),
            "key": goal.key,
        }

    def _say_how_long(self, goal: AtomGoal) -> None:
        """An upper end: the retrained net is cheaper than the whole one."""
        if not self.searches:
            return
        training = self._training(goal, None)
        self._train_gates(training, progress=NullProgress(), stop_after=1)
        began = time.monotonic()
        self._train_gates(training, progress=NullProgress(), stop_after=TIMED)
        recipe = self.request.recipe
        seconds = (time.monotonic() - began) / TIMED * (recipe.supernet.steps + recipe.finetune.steps)
        self.progress.note(f"expected duration: at most about {duration(seconds)} for {goal.name}")
