"""AtomNAS from data to nets (Mei et al. 2020): one training searches and trains, for every budget its own.

Methods: ``atomnas``; ``atomnas-equal``, all atoms penalised alike (the baseline of table 2); ``width``, the supernet
with one multiplier on all numbers of atoms, trained as long. A killed run goes on from its last checkpoint to the same
net.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.atom_costs import AtomCost, EqualCost, cheapest
from hwnas.budget import Budget, format_cost
from hwnas.errors import ClaimError, HwnasError
from hwnas.progress import NullProgress, Progress, duration
from hwnas.runs import NetFolder, RunFolder
from hwnas.search.atom_projection import Limit
from hwnas.search.request import SearchOutcome, configuration, finished, identity, net_name
from hwnas.spaces.atoms import AtomSpace
from hwnas.spaces.gated import GateSpace
from hwnas.spaces.widths import STAIRS, AtomArch, Widths, WidthSpace, multiplied_by
from hwnas.train.recipe import Recipe

if TYPE_CHECKING:
    from hwnas.search.atom_training import AtomTraining
    from hwnas.train.loop import Batches

METHODS = ("atomnas", "atomnas-equal", "width")
GATE_METHODS = ("figs", "morphnet", "width", "random")
"""Methods on spaces of gates (`hwnas.search.figs`)."""

PROBE = 64
"""Images on which it is measured how much a removal changes the outputs."""


@dataclass(frozen=True, slots=True)
class AtomRequest:
    """A search among atoms or gated channels, resolved; its parts are those of `hwnas.search.request.SearchRequest`."""

    space: WidthSpace
    data: str
    budgets: Sequence[Sequence[Budget]]
    costs: Mapping[str, AtomCost]
    recipe: Recipe
    out: Path
    seed: int = 0
    threads: int = 1
    method: str = "atomnas"
    device: str = "cpu"
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AtomGoal:
    """One net that is wanted: its budgets as limits, and a key that changes with whatever it depends on."""

    name: str
    budgets: tuple[Budget, ...]
    limits: tuple[Limit, ...]
    key: str


def make_goal(request: AtomRequest, budgets: Sequence[Budget]) -> AtomGoal:
    """The net that meets `budgets`; with none, the one that a fixed lambda leads to.

    Raises:
        ClaimError: no architecture does; it says what the cheapest one costs.
        HwnasError: a budget limits a cost that the request has no prices of.
    """
    limits, space = [], request.space
    for budget in budgets:
        if budget.cost not in request.costs:
            raise HwnasError(f"a budget for {budget.cost} needs its prices: profile the device first (hwnas profile)")
        cost = request.costs[budget.cost]
        least = cost.upper(cheapest(space, cost))
        if least > budget.limit:
            text = format_cost(budget.cost, least)
            raise ClaimError(f"no architecture of {space.name} meets {budget}: the cheapest one's upper end is {text}")
        limits.append(Limit(cost, budget.limit))
    facts = [
        identity(request),
        request.recipe.model_dump(),
        [(b.cost, b.limit) for b in budgets],
        [[cost.name, cost.upper(space.full), sorted(cost.per_atom(space.full).items())] for cost in _priced(request)],
    ]
    key = hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
    return AtomGoal(net_name(budgets), tuple(budgets), tuple(limits), key)


def _priced(request: AtomRequest) -> list[AtomCost]:
    return [request.costs[name] for name in sorted(request.costs)]


def search_atoms(request: AtomRequest, progress: Progress) -> SearchOutcome:
    """Runs the search, or what is left of it.

    Raises:
        ClaimError: no architecture meets a budget; nothing was trained.
        HwnasError: the data, the folder or the training failed; the message says what to do.
    """
    began = time.monotonic()
    gated = isinstance(request.space, GateSpace)
    if request.method not in (GATE_METHODS if gated else METHODS):
        raise ValueError(f"method {request.method!r} is not one of {GATE_METHODS if gated else METHODS}")
    goals = [make_goal(request, budgets) for budgets in request.budgets]
    if len({goal.name for goal in goals}) < len(goals):
        raise HwnasError("the same budget is given twice: give each once")
    for goal in goals:
        for budget, limit in zip(goal.budgets, goal.limits, strict=True):
            if limit.met(request.space.full):
                progress.note(f"{budget} does not bind: every architecture of {request.space.name} meets it")
    recipe = request.recipe
    settings = {**identity(request), **(
        {"gates": recipe.gates.model_dump(), "finetune": recipe.finetune.identity()} if gated
        else {"atoms": recipe.atoms.model_dump()}
    )}  # fmt: skip
    run = RunFolder.create(request.out, identity=settings, config=configuration(request))
    with run:
        if all(finished(run.net(goal.name), goal) for goal in goals):
            progress.note(f"{run.path} holds the results already")
        else:
            work = _work(request, progress, run)
            for goal in goals:
                if not finished(run.net(goal.name), goal):
                    work.make(goal)
        results = [run.net(goal.name).result() for goal in goals]
        run.write_json("results.json", {"format": 1, "method": request.method, "results": results})
    return SearchOutcome(run.path, request.method, request.space.name, time.monotonic() - began, len(results), results)


def _work(request: AtomRequest, progress: Progress, run: RunFolder) -> Work:
    if isinstance(request.space, GateSpace):
        from hwnas.search.figs import GateWork

        return GateWork(request, progress, run)
    return Work(request, progress, run)


def multiplied(space: WidthSpace, limits: Sequence[Limit]) -> Widths:
    """The widest net with one multiplier on all branches that meets every limit (by bisection)."""
    stairs = any(limit.cost.in_stairs for limit in limits)

    def at(factor: float) -> Widths:
        rows = multiplied_by(space.full, factor)
        if stairs:
            rows = tuple(
                tuple(max(s for s in space.stairs(block, place) if s <= atoms) for place, atoms in enumerate(row))
                for block, row in enumerate(rows)
            )
        return space.revived(rows, {branch: -branch[1] for branch in space.branches()}, STAIRS[0][1] if stairs else 1)

    low, high = 0.0, 1.0
    if all(limit.met(at(1.0)) for limit in limits):
        return at(1.0)
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if all(limit.met(at(middle)) for limit in limits) else (low, middle)
    return at(low)


class Work:
    """The work between goals and results; the data is loaded here."""

    def __init__(self, request: AtomRequest, progress: Progress, run: RunFolder) -> None:
        import torch

        from hwnas.search.data import keep_data, load_splits
        from hwnas.train.evaluate import recalibration_images

        torch.set_num_threads(request.threads)
        self.request, self.progress, self.run = request, progress, run
        progress.stage("Data")
        self.splits = load_splits(request, progress)
        keep_data(request, run, self.splits)
        self.calibration = recalibration_images(
            self.splits, request.recipe.scoring, seed=request.seed, device=request.device
        )

    def make(self, goal: AtomGoal) -> None:
        """Trains, tests and writes one net."""
        from hwnas.search.atom_training import AtomStore
        from hwnas.train.checkpoint import CheckpointStore
        from hwnas.train.loop import MetricsLog

        request, folder = self.request, self.run.net(goal.name)
        for stale in ("result.json", "verify.json"):
            (folder.path / stale).unlink(missing_ok=True)
        self.progress.stage(f"Training for {goal.name}")
        self._expect(goal)
        folder.path.mkdir(parents=True, exist_ok=True)
        training = self._training(goal, folder.path / "atoms.jsonl")
        files = CheckpointStore(self.run.checkpoints, f"{request.method}-{goal.key}")
        metrics = MetricsLog(folder.path / "metrics.csv")
        self._train(training, store=AtomStore(files, training), metrics=metrics, progress=self.progress)
        result = self._finish(goal, folder, training)
        seconds = float(metrics.rows()[-1][3]) if metrics.rows() else 0.0
        folder.write_json("result.json", {**result, "training_seconds": seconds})
        for path in files.paths():
            path.unlink(missing_ok=True)

    def _expect(self, goal: AtomGoal) -> None:
        """Says how long the training will take at most: a supernet only gets faster."""
        steps = 4
        training = self._training(goal, None)
        self._train(training, progress=NullProgress(), stop_after=1)
        began = time.monotonic()
        self._train(training, progress=NullProgress(), stop_after=steps)
        seconds = (time.monotonic() - began) / steps * self.request.recipe.supernet.steps
        self.progress.note(f"expected duration: at most about {duration(seconds)} for {goal.name}")

    def _training(self, goal: AtomGoal, log: Path | None) -> AtomTraining:
        import torch

        from hwnas.search.atom_training import AtomTraining, Log
        from hwnas.train.loop import make_optimizer, step_rng, torch_generator

        request, recipe = self.request, self.request.recipe
        space = request.space
        assert isinstance(space, AtomSpace)
        arch, settings, limits = space.supernet_arch, recipe.atoms, goal.limits
        if request.method == "width":
            arch = AtomArch(space.name, multiplied(space, goal.limits))
            settings, limits = settings.model_copy(update={"penalty": 0.0, "threshold": 1e-30}), ()
        net = space.build(arch, generator=torch_generator(step_rng(request.seed, "weights", 0)))
        net.to(request.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return AtomTraining(
            space,
            net,
            make_optimizer(net, recipe.supernet),
            self._penalised(goal),
            limits,
            settings,
            recipe.supernet.steps,
            request.seed,
            Log(log) if log is not None else None,
            next(iter(self.calibration.images()))[:PROBE],
        )

    def _penalised(self, goal: AtomGoal) -> AtomCost:
        """What the penalty is in proportion to: the first budget's cost; MACs, as in the paper, without a budget."""
        if self.request.method == "atomnas-equal":
            return EqualCost(self.request.space)
        return goal.limits[0].cost if goal.limits else self.request.costs["macs"]

    def _train(self, training: AtomTraining, **options: Any) -> None:
        from hwnas.train.loop import train

        net = training.net
        train(
            net,
            self._batches(),
            forward=lambda images, _: net(images),
            description="steps",
            optimizer=training.optimizer,
            hooks=training,
            **options,
        )

    def _batches(self) -> Batches:
        from hwnas.train.loop import Batches

        request = self.request
        phase = request.recipe.supernet
        return Batches(self.splits.train, self.splits.normalisation, phase, request.seed, "supernet", request.device)

    def _finish(self, goal: AtomGoal, folder: NetFolder, training: AtomTraining) -> dict[str, Any]:
        """The averaged weights with statistics of their own: tested, written."""
        from hwnas.train.evaluate import accuracy
        from hwnas.train.finish import accuracy_at_last, write_net
        from hwnas.train.recalibrate import recalibrate

        request, net = self.request, training.net
        arch = AtomArch(request.space.name, training.widths)
        with training.ema.inside(net):
            before = accuracy(net, self.splits.val, self.splits.normalisation, device=request.device)
            recalibrate(net, net, self.calibration.images())
            searched = accuracy(net, self.splits.val, self.splits.normalisation, device=request.device)
            tested, split = accuracy_at_last(net, self.splits, request.device)
            write_net(folder, request.space, arch, net)
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

    def figures(self, goal: AtomGoal, arch: AtomArch) -> dict[str, Any]:
        """What the net costs, and how much of its budgets it uses.

        Raises:
            ClaimError: it is over a budget.
        """
        request = self.request
        network = request.space.network(arch)
        latency = request.costs.get("latency")
        ends = latency.ends(arch.widths) if latency is not None else None
        upper = {"latency": ends[1] if ends else None, "macs": network.macs, "params": network.params}
        used = []
        for budget in goal.budgets:
            value = upper[budget.cost]
            if value is None or value > budget.limit:
                raise ClaimError(
                    f"the net that was found is over {budget}: this is a defect of hwnas, please report it"
                )
            used.append(value / budget.limit)
        return {
            "predicted_ms": ends[0] if ends else None,
            "high_ms": ends[1] if ends else None,
            "macs": network.macs,
            "params": network.params,
            "bitops": None,
            "atoms": arch.atoms,
            "budgets": [asdict(budget) for budget in goal.budgets],
            "budget_used": max(used) if used else None,
            "binding": any(not limit.met(request.space.full) for limit in goal.limits),
        }
