"""FiGS from data to nets (Chaudhuri et al. 2020), and its baselines, on spaces of gated channels.

Two phases for each net: the architecture is learned (``figs``: gates; ``morphnet``: an L1 penalty on BatchNorm
scales), brought onto its budget and cut out; then it is retrained. ``width`` (one multiplier) and ``random`` (random
operators and one multiplier) have no first phase and are trained as long as both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from hwnas.errors import HwnasError
from hwnas.gate_costs import GateCost
from hwnas.nn.gates import GatedNet
from hwnas.progress import NullProgress, duration
from hwnas.runs import NetFolder, RunFolder
from hwnas.search.baselines import multiplied, random_arch
from hwnas.search.figs_training import FigsTraining
from hwnas.search.gate_training import Died, GateTraining
from hwnas.search.looks import Log
from hwnas.search.morphnet import MorphNetTraining
from hwnas.search.width_search import AtomGoal
from hwnas.search.width_work import WidthShop, WidthWork
from hwnas.spaces.gated import GateSpace
from hwnas.spaces.own import COPY, source_of
from hwnas.spaces.widths import AtomArch, Widths
from hwnas.train.chance import step_rng, torch_generator
from hwnas.train.checkpoint import CheckpointStore, write_atomically
from hwnas.train.ema import Averaging
from hwnas.train.evaluate import accuracy
from hwnas.train.finish import accuracy_at_last, write_net
from hwnas.train.loop import train
from hwnas.train.metrics import MetricsLog
from hwnas.train.optimizers import make_optimizer
from hwnas.train.ranks import SOLO, Ranks
from hwnas.train.recalibrate import recalibrate

TIMED = 3
"""Steps that a duration is estimated from."""

KINDS: dict[str, type[GateTraining]] = {"figs": FigsTraining, "morphnet": MorphNetTraining}
"""Methods with a first phase, and what they do in it."""


class GateShop(WidthShop):
    """Trainings on a space of gates: of a whole net with its gates, and of a net that was cut out."""

    @property
    def space(self) -> GateSpace:
        """Of the request."""
        space = self.request.space
        assert isinstance(space, GateSpace)
        return space

    def work(self, run: RunFolder) -> GateWork:
        return GateWork(self, run)

    def orders(self) -> dict[str, Callable[[dict[str, Any]], None]]:
        def retrain(order: dict[str, Any]) -> None:
            widths = tuple(tuple(map(int, row)) for row in order["widths"])
            self.retrain(self.space.build(AtomArch(self.space.name, widths)), order["steps"])

        return {"search": lambda order: self.search(self.training(self.goal(order), self.ranks)), "retrain": retrain}

    def training(self, goal: AtomGoal, ranks: Ranks = SOLO, log: Log | None = None) -> GateTraining:
        """The first phase for a net, as it begins; `log` is the first rank's."""
        request, gates, space = self.request, self.request.recipe.gates, self.space
        plain = space.supernet(generator=torch_generator(step_rng(request.seed, "weights", 0)))
        net = GatedNet(
            plain, space.input_shape, tau=gates.tau, start=gates.start, backward_tau=gates.backward_tau,
            readable=space.readable,
        )  # fmt: skip
        net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        cost = goal.limits[0].cost if goal.limits else request.costs[gates.cost]
        assert isinstance(cost, GateCost)
        phase = request.recipe.supernet
        optimizer = make_optimizer(net.net, phase)
        kind = KINDS[request.method]
        return kind(space, net, optimizer, cost, goal.limits, gates, phase.steps, request.seed, log, ranks)

    def search(self, training: GateTraining, **options: Any) -> None:
        """Trains net and gates, with the ranks of `training`; `options` are those of `hwnas.train.loop.train`."""
        train(
            training.net,
            self.batches(self.request.recipe.supernet, "supernet"),
            forward=training.forward,
            description="search steps",
            optimizer=training.optimizer,
            hooks=training,
            ranks=training.ranks,
            **{"progress": NullProgress(), **options},
        )

    def retrain(self, net: nn.Module, steps: int, **options: Any) -> None:
        """Trains a plain net with all ranks and gives it its averaged weights."""
        recipe = self.request.recipe
        net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # averages begin there
        hooks = Averaging(net, recipe.gates.ema_decay)
        train(
            net,
            self.batches(recipe.finetune.model_copy(update={"steps": steps}), "retrain"),
            forward=lambda images, _: net(images),
            description="retraining steps" if self.request.method in KINDS else "steps",
            hooks=hooks,
            ranks=self.ranks,
            **{"progress": NullProgress(), **options},
        )
        hooks.ema.write(net)


class GateWork(WidthWork):
    """The work on a space of gates."""

    def __init__(self, shop: GateShop, run: RunFolder) -> None:
        super().__init__(shop, run)
        self.shop, self.space = shop, shop.space

    @property
    def searches(self) -> bool:
        """Whether there is a first phase."""
        return self.request.method in KINDS

    def make(self, goal: AtomGoal) -> None:
        folder = self.run.net(goal.name)
        for stale in ("result.json", "verify.json"):
            (folder.path / stale).unlink(missing_ok=True)
        report = self.space.channels.report()
        write_atomically(self.run.path / "channels.txt", "".join(f"{line}\n" for line in report).encode())
        for file, text in source_of(self.space.name).items():
            write_atomically(self.run.path / COPY / file, text)
        for line in report:
            if line.startswith("not gated"):
                self.progress.note(line)
        tied = sum(len(group.layers) > 1 for group in self.space.groups)
        self.progress.note(f"{self.space.channels.count} channels in {len(self.space.groups)} groups can go, {tied} of "
                           f"which tie several layers: {self.run.path / 'channels.txt'}")  # fmt: skip
        self.progress.stage(f"{'Searching' if self.searches else 'Training'} for {goal.name}")
        folder.path.mkdir(parents=True, exist_ok=True)
        self._say_how_long(goal)
        name = f"{self.request.method}-{goal.key}"
        if self.searches:
            training, widths, plain = self._search(goal, folder, name)
            steps = self.request.recipe.finetune.steps
            net, seconds = self._retrain(folder, f"{name}-retrain", widths, plain, steps)
            shares = training.landing.shares() if training.landing is not None and goal.limits else None
            landing = asdict(training.landing) if training.landing is not None else None
            scores: list[float] = []
        else:
            widths, net, seconds, scores = self._baseline(goal, folder, name)
            shares = landing = None
        result = self._tested(goal, folder, widths, net)
        self._say_what_it_takes(result)
        more: dict[str, Any] = {"reduction": shares, "landing": landing, "training_seconds": seconds}
        if scores:
            more["search_accuracies"] = scores
        folder.write_json("result.json", {**result, **more})
        for path in self.run.checkpoints.glob(f"{name}*"):
            path.unlink(missing_ok=True)

    # -- the first phase ---------------------------------------------------------------------------------------------

    def _search(self, goal: AtomGoal, folder: NetFolder, name: str) -> tuple[GateTraining, Widths, nn.Module]:
        """The trained gates, the widths they came to, and the net cut out of them."""
        self.order("search", goal)
        training = self.shop.training(goal, self.ranks, Log(folder.path / "gates.jsonl"))
        store, metrics = CheckpointStore(self.run.checkpoints, name), MetricsLog(folder.path / "metrics.csv")
        try:
            self.shop.search(training, store=store, metrics=metrics, progress=self.progress)
        except Died as died:
            if not died.step:
                raise
            raise HwnasError(
                f"{died}; its state after step {died.step} is kept: {store.keep(died.step, died.tensors)}"
            ) from None
        widths, keep = training.land()
        if not self.request.recipe.gates.inherit:
            generator = torch_generator(step_rng(self.request.seed, "weights", 1))
            return training, widths, self.space.build(AtomArch(self.space.name, widths), generator=generator)
        with training.ema.inside(training.net):
            return training, widths, training.net.cut(keep)

    # -- the second phase --------------------------------------------------------------------------------------------

    def _retrain(
        self, folder: NetFolder, name: str, widths: Widths, net: nn.Module, steps: int, log: str = "retrain.csv"
    ) -> tuple[nn.Module, float]:
        """Trains a net on; returns it with its averaged weights and how long all its trainings took."""
        if steps:
            self.ranks.order("retrain", widths=widths, steps=steps)
            store, metrics = CheckpointStore(self.run.checkpoints, name), MetricsLog(folder.path / log)
            self.shop.retrain(net, steps, store=store, metrics=metrics, progress=self.progress)
        rows = [MetricsLog(folder.path / file).rows() for file in ("metrics.csv", log)]
        return net, sum(float(found[-1][3]) for found in rows if found)

    def _baseline(self, goal: AtomGoal, folder: NetFolder, name: str) -> tuple[Widths, nn.Module, float, list[float]]:
        """The net of a baseline, trained as long as both phases; of several random ones the best by validation.

        Also how long all trainings took, and the validation accuracies of several.
        """
        request, recipe = self.request, self.request.recipe
        steps = recipe.supernet.steps + recipe.finetune.steps
        if request.method == "width":
            found = [multiplied(self.space, goal.limits)]
        else:
            found = [random_arch(self.space, goal.limits, request.seed, n) for n in range(recipe.gates.random_nets)]
        best: tuple[float, Widths, nn.Module] | None = None
        seconds, scores = 0.0, list[float]()
        for number, widths in enumerate(found):
            generator = torch_generator(step_rng(request.seed, "weights", number))
            net = self.space.build(AtomArch(self.space.name, widths), generator=generator)
            log = f"retrain-{number}.csv" if len(found) > 1 else "retrain.csv"
            net, spent = self._retrain(folder, f"{name}-{number}", widths, net, steps, log)
            seconds += spent
            if len(found) > 1:
                recalibrate(net, net, self.calibration.images())
                scores.append(accuracy(net, self.splits.val, self.splits.normalisation, device=self.device))
                self.progress.note(f"random net {number + 1} of {len(found)}: {100 * scores[-1]:.2f}% of validation")
            if best is None or scores[-1] > best[0]:
                best = (scores[-1] if scores else 0.0, widths, net)
        assert best is not None
        return best[1], best[2], seconds, scores

    # -- the end -----------------------------------------------------------------------------------------------------

    def _tested(self, goal: AtomGoal, folder: NetFolder, widths: Widths, net: nn.Module) -> dict[str, Any]:
        request, arch = self.request, AtomArch(self.space.name, widths)
        recalibrate(net, net, self.calibration.images())
        searched = accuracy(net, self.splits.val, self.splits.normalisation, device=self.device)
        tested, split = accuracy_at_last(net, self.splits, self.device)
        write_net(folder, self.space, arch, net, self.splits)
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

    def _say_what_it_takes(self, result: dict[str, Any]) -> None:
        latency, predicted_ms = self.request.costs.get("latency"), result["predicted_ms"]
        if latency is None:
            self.progress.note("no latency: no table was named, or is there, that covers the space")
        elif predicted_ms is None:
            net = self.run.net(result["net"]).path
            self.progress.note(f"no latency: the table lacks operators; 'hwnas predict {net} --measure' fills it")
        elif (whole := latency.ends(self.space.full)) is not None and predicted_ms > whole[0]:
            self.progress.note(
                f"{result['net']} is slower ({predicted_ms:.3g} ms) than the whole net ({whole[0]:.3g} ms): few "
                "channels can take longer than more of them; a --latency budget avoids that"
            )

    def _say_how_long(self, goal: AtomGoal) -> None:
        """An upper end: the retrained net is cheaper than the whole one."""
        if not self.searches:
            return
        training = self.shop.training(goal)
        self.shop.search(training, stop_after=1)
        began = time.monotonic()
        self.shop.search(training, stop_after=TIMED)
        recipe = self.request.recipe
        seconds = (time.monotonic() - began) / TIMED * (recipe.supernet.steps + recipe.finetune.steps)
        self.progress.note(f"expected duration of the training: at most about {duration(seconds)} for {goal.name}")
