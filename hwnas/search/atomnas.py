"""AtomNAS from data to nets (Mei et al. 2020): one training searches and trains, for every budget its own.

Methods: ``atomnas``; ``atomnas-equal``, all atoms penalised alike (the baseline of table 2); ``width``, the supernet
with one multiplier on all numbers of atoms, trained as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from hwnas.atom_costs import AtomCost, EqualCost
from hwnas.progress import NullProgress, duration
from hwnas.runs import NetFolder, RunFolder
from hwnas.search.atom_training import AtomTraining
from hwnas.search.baselines import multiplied
from hwnas.search.looks import Log
from hwnas.search.width_search import AtomGoal
from hwnas.search.width_work import WidthShop, WidthWork
from hwnas.spaces.atoms import AtomSpace
from hwnas.spaces.widths import AtomArch
from hwnas.train.chance import step_rng, torch_generator
from hwnas.train.checkpoint import CheckpointStore
from hwnas.train.evaluate import accuracy
from hwnas.train.finish import accuracy_at_last, write_net
from hwnas.train.loop import train
from hwnas.train.metrics import MetricsLog
from hwnas.train.optimizers import make_optimizer
from hwnas.train.ranks import SOLO, Ranks
from hwnas.train.recalibrate import recalibrate

PROBE = 64
"""Images on which it is measured how much a removal changes the outputs."""


class AtomShop(WidthShop):
    """Trainings on a space of atoms."""

    def work(self, run: RunFolder) -> AtomWork:
        return AtomWork(self, run)

    def orders(self) -> dict[str, Callable[[dict[str, Any]], None]]:
        return {"train": lambda order: self.train(self.training(self.goal(order), self.ranks))}

    def training(
        self, goal: AtomGoal, ranks: Ranks = SOLO, log: Log | None = None, probe: Tensor | None = None
    ) -> AtomTraining:
        """The training for a net, as it begins; `log` and `probe` are the first rank's."""
        request, recipe, space = self.request, self.request.recipe, self.request.space
        assert isinstance(space, AtomSpace)
        arch, settings, limits = space.supernet_arch, recipe.atoms, goal.limits
        if request.method == "width":
            arch = AtomArch(space.name, multiplied(space, goal.limits))
            settings, limits = settings.model_copy(update={"penalty": 0.0, "threshold": 1e-30}), ()
        net = space.build(arch, generator=torch_generator(step_rng(request.seed, "weights", 0)))
        net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return AtomTraining(
            space,
            net,
            make_optimizer(net, recipe.supernet),
            self._penalised(goal),
            limits,
            settings,
            recipe.supernet.steps,
            request.seed,
            log,
            probe,
            ranks,
        )

    def _penalised(self, goal: AtomGoal) -> AtomCost:
        """What the penalty is in proportion to: the first budget's cost; MACs, as in the paper, without a budget."""
        if self.request.method == "atomnas-equal":
            return EqualCost(self.request.space)
        return goal.limits[0].cost if goal.limits else self.request.costs["macs"]

    def train(self, training: AtomTraining, **options: Any) -> None:
        """Trains, with the ranks of `training`; `options` are those of `hwnas.train.loop.train`."""
        net = training.net
        train(
            net,
            self.batches(self.request.recipe.supernet, "supernet"),
            forward=lambda images, _: net(images),
            description="steps",
            optimizer=training.optimizer,
            hooks=training,
            ranks=training.ranks,
            **{"progress": NullProgress(), **options},
        )


class AtomWork(WidthWork):
    """The work on a space of atoms: one training for each net."""

    def __init__(self, shop: AtomShop, run: RunFolder) -> None:
        super().__init__(shop, run)
        self.shop = shop

    def make(self, goal: AtomGoal) -> None:
        request, folder = self.request, self.run.net(goal.name)
        for stale in ("result.json", "verify.json"):
            (folder.path / stale).unlink(missing_ok=True)
        self.progress.stage(f"Training for {goal.name}")
        self._expect(goal)
        folder.path.mkdir(parents=True, exist_ok=True)
        store = CheckpointStore(self.run.checkpoints, f"{request.method}-{goal.key}")
        metrics = MetricsLog(folder.path / "metrics.csv")
        self.order("train", goal)
        probe = next(iter(self.calibration.images()))[:PROBE]
        training = self.shop.training(goal, self.ranks, Log(folder.path / "atoms.jsonl"), probe)
        self.shop.train(training, store=store, metrics=metrics, progress=self.progress)
        result = self._finish(goal, folder, training)
        seconds = float(metrics.rows()[-1][3]) if metrics.rows() else 0.0
        folder.write_json("result.json", {**result, "training_seconds": seconds})
        for path in store.paths():
            path.unlink(missing_ok=True)

    def _expect(self, goal: AtomGoal) -> None:
        """Says how long the training will take at most: a supernet only gets faster."""
        steps = 4
        training = self.shop.training(goal)
        self.shop.train(training, stop_after=1)
        began = time.monotonic()
        self.shop.train(training, stop_after=steps)
        seconds = (time.monotonic() - began) / steps * self.request.recipe.supernet.steps
        self.progress.note(f"expected duration: at most about {duration(seconds)} for {goal.name}")

    def _finish(self, goal: AtomGoal, folder: NetFolder, training: AtomTraining) -> dict[str, Any]:
        """The averaged weights with statistics of their own: tested, written."""
        request, net = self.request, training.net
        arch = AtomArch(request.space.name, training.widths)
        with training.ema.inside(net):
            before = accuracy(net, self.splits.val, self.splits.normalisation, device=self.device)
            recalibrate(net, net, self.calibration.images())
            searched = accuracy(net, self.splits.val, self.splits.normalisation, device=self.device)
            tested, split = accuracy_at_last(net, self.splits, self.device)
            write_net(folder, request.space, arch, net, self.splits)
        landing = training.landing
        return {
            **self.figures(goal, arch),
            "net": goal.name,
            "method": request.method,
            "arch": request.space.to_json(arch),
            "accuracy": tested,
            "accuracy_split": split,
            "search_accuracy": searched,
            "search_accuracy_without_recalibration": before,
            "evaluated": 1,
            "baseline": None,
            "reduction": landing.shares() if landing is not None else None,
            "landing": asdict(landing) if landing is not None else None,
            "normalisation": asdict(self.splits.normalisation),
            "key": goal.key,
        }
