"""SPOS from data to nets (Guo et al. 2020): one supernet, one evolution for every budget, and the random baseline.

The steps, each of which a killed run takes up again: train the supernet by uniformly sampled single paths; for every
budget evolve architectures that meet it, scored with the supernet's weights; draw as many at random under the same
budget as the baseline; then, all choices made, fine-tune both winners, read the test split, measure, export.
Under torchrun the first process does all that, and the others train and score with it (`hwnas.search.workshop`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.costs import Prices
from hwnas.errors import HwnasError
from hwnas.progress import NullProgress, Progress, Task, duration
from hwnas.runs import EvaluationLog, RunFolder
from hwnas.search.evolution import Evolution, evolve
from hwnas.search.pareto import best_spread, check_pymoo, front
from hwnas.search.random_search import random_search
from hwnas.search.request import (
    METHODS,
    Goal,
    SearchOutcome,
    SearchRequest,
    binding,
    configuration,
    figures,
    finished,
    generator,
    make_goal,
    slot_identity,
)
from hwnas.search.result import SearchResult
from hwnas.spaces.base import Arch
from hwnas.train.ranks import SOLO, Ranks

if TYPE_CHECKING:
    from hwnas.train.checkpoint import CheckpointStore

__all__ = ["SearchOutcome", "SearchRequest", "search"]

SEARCHES: dict[str, Callable[..., SearchResult]] = {"spos": evolve, "random": random_search}


def search(request: SearchRequest, progress: Progress, ranks: Ranks = SOLO) -> SearchOutcome:
    """Runs the search, or what is left of it; of several `ranks` the first does, and the others `follow`.

    Raises:
        ClaimError: no architecture meets a budget; nothing was trained.
        HwnasError: the data, the folder or the training failed; the message says what to do.
    """
    began = time.monotonic()
    if request.method not in METHODS:
        raise ValueError(f"method {request.method!r} is not one of {METHODS}")
    if request.front:
        check_pymoo()
        if request.method != "spos" or not all(request.budgets):
            raise ValueError("a front is of the method spos, under a budget")
    goals = [make_goal(request, budgets) for budgets in request.budgets]
    if len({goal.name for goal in goals}) < len(goals):
        raise HwnasError("the same budget is given twice: give each once")
    for budget in dict.fromkeys(budget for goal in goals for budget in goal.budgets):
        if not binding([budget], request.costs):
            progress.note(f"{budget} does not bind: every architecture of {request.space.name} meets it")
    run = RunFolder.create(request.out, identity=slot_identity(request), config=configuration(request))
    with run:
        if all(_complete(run, goal, request) for goal in goals):
            progress.note(f"{run.path} holds the results already")
        else:
            _Pipeline(request, progress, run, ranks).work(goals)
        found = [[run.net(name).result() for name in _names(run, goal, request)] for goal in goals]
        results = list(itertools.chain.from_iterable(found))
        run.write_json("results.json", {"format": 1, "method": request.method, "results": results})
    evaluated = sum(int(nets[0]["evaluated"]) for nets in found)
    return SearchOutcome(run.path, request.method, request.space.name, time.monotonic() - began, evaluated, results)


def _complete(run: RunFolder, goal: Goal, request: SearchRequest) -> bool:
    """The goal's nets are there with all their files, and so is its baseline where it has one."""
    for name in _names(run, goal, request):
        folder = run.net(name)
        result = folder.result()
        baseline = result.get("baseline")
        if "baseline" not in result or not finished(folder, goal):
            return False
        if baseline and not finished(run.net(baseline["net"]), goal):
            return False
    return True


def _names(run: RunFolder, goal: Goal, request: SearchRequest) -> list[str]:
    """Names of the goal's nets: one, or those of its front, of which the first knows how many there are."""
    if not request.front:
        return [goal.name]
    size = run.net(_front_name(goal, 1)).result().get("front_size", 1)
    return [_front_name(goal, place) for place in range(1, int(size) + 1)]


def _front_name(goal: Goal, place: int) -> str:
    return f"{goal.name}-front-{place}"


class _Pipeline:
    """The work between goals and results. Data and supernet are loaded here, once it is known that they are needed."""

    def __init__(self, request: SearchRequest, progress: Progress, run: RunFolder, ranks: Ranks) -> None:
        from hwnas.search.data import keep_data
        from hwnas.search.workshop import Workshop

        self.request, self.progress, self.run, self.ranks = request, progress, run, ranks
        progress.stage("Data")
        ranks.order("begin")
        self.shop = Workshop(request, progress, ranks)
        self.splits = self.shop.splits
        keep_data(request, run, self.splits)

    # -- the steps ---------------------------------------------------------------------------------------------------

    def work(self, goals: Sequence[Goal]) -> None:
        request = self.request
        open_goals = [goal for goal in goals if not _complete(self.run, goal, request)]
        self._expect(open_goals)
        self._train()
        log = self.run.evaluations(self.shop.fingerprint())
        choices: list[tuple[Goal, str, str, Arch, int]] = []
        self.progress.stage("Search")
        for goal in open_goals:
            for method in [request.method, "random"] if request.has_baseline else [request.method]:
                archs, evaluated = self._choose(goal, method, log)
                for place, arch in enumerate(archs, 1):
                    name = goal.name if method == request.method else f"{goal.name}-random"
                    name = _front_name(goal, place) if request.front else name
                    choices.append((goal, method, name, arch, evaluated))
        self.progress.stage("Fine-tuning what was found")  # all choices are made: from here the test split may be read
        for goal in open_goals:
            mine = [choice for choice in choices if choice[0] is goal]
            nets = [self._finish(goal, method, name, arch, n, log) for _, method, name, arch, n in reversed(mine)]
            if request.front:
                self._tell_front(goal, nets)
                continue
            result = nets[-1]  # the baseline comes first
            result["baseline"] = nets[0] if len(nets) > 1 else None
            result["evaluated"] = sum(net["evaluations"] for net in nets)
            self.run.net(goal.name).write_json("result.json", result)

    def _tell_front(self, goal: Goal, nets: Sequence[dict[str, Any]]) -> None:
        """Completes the results of a front; that of its first net, which tells how many there are, comes last."""
        for place in itertools.count(len(nets) + 1):  # of an earlier, larger front
            stale = self.run.net(_front_name(goal, place))
            if not stale.path.is_dir():
                break
            for name in ("result.json", "verify.json"):
                (stale.path / name).unlink(missing_ok=True)
        for net in nets:
            told = {"baseline": None, "evaluated": net["evaluations"], "front_size": len(nets)}
            self.run.net(net["net"]).write_json("result.json", {**net, **told})

    def _expect(self, goals: Sequence[Goal]) -> None:
        """Says how long all this will take, from a few steps on a throw-away supernet."""
        from hwnas.train.loop import train_supernet

        recipe, shop, world = self.request.recipe, self.shop, self.ranks.world
        supernet = shop.fresh()
        # So small a learning rate breaks nothing: a loss that is no number is the training's to find.
        batches = replace(shop.batches(), phase=recipe.supernet.model_copy(update={"lr": 1e-12}))
        batches = batches.part(self.ranks) if world > 1 else batches
        train_supernet(supernet, batches, progress=NullProgress(), stop_after=2)
        steps = 6
        began = time.monotonic()
        train_supernet(supernet, batches, progress=NullProgress(), stop_after=steps)
        step_s = (time.monotonic() - began) / steps
        evaluator = shop.judge(supernet)
        genes = self.request.space.sample(np.random.default_rng(0)).genes
        evaluator(genes)  # fills the cache of images
        began = time.monotonic()
        list(evaluator.scores([genes] * shop.threads, shop.threads))
        evaluation_s = (time.monotonic() - began) / shop.threads / world
        searches = len(goals) * (2 if self.request.has_baseline else 1)
        nets = searches * max(1, self.request.front)
        left = max(0, recipe.supernet.steps - self._done_steps())
        scale = recipe.finetune.batch_size / recipe.supernet.batch_size
        scored = searches * evolution_settings(self.request).evaluations
        parts = {
            f"supernet of {left} steps": left * step_s,
            f"scoring {scored} architectures": scored * evaluation_s,
            f"fine-tuning {nets} nets": nets * recipe.finetune.steps * step_s * scale,
        }
        total = sum(parts.values())
        detail = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items())
        self.progress.note(f"expected duration: about {duration(total)} ({detail})")

    def _train(self) -> None:
        from hwnas.train.loop import MetricsLog

        self.progress.stage("Supernet")
        self.ranks.order("supernet")
        self.shop.train(self._store(), MetricsLog(self.run.metrics))

    def _choose(self, goal: Goal, method: str, log: EvaluationLog) -> tuple[list[Arch], int]:
        """The best architecture that a method finds, or those of its front, and how many it scored.

        Known scores are read from the log.
        """
        space, settings = self.request.space, evolution_settings(self.request)

        def evaluate(archs: list[Arch], task: Task) -> list[float]:
            unknown = [arch.genes for arch in archs if arch.genes not in log.scores]
            task.advance(len(archs) - len(unknown))
            for genes, score in zip(unknown, self.shop.scores(unknown), strict=True):
                log.add(genes, score)
                task.advance()
            return [log.scores[arch.genes] for arch in archs]

        with self.progress.start(settings.evaluations, f"{method} for {goal.text}") as task:
            search_method = SEARCHES[method]
            if self.request.front:
                prices = self._front_prices(goal)
                search_method = partial(evolve, select=lambda book, count: best_spread(book, prices, count))
            result = search_method(
                space,
                goal.sampler,
                lambda archs: evaluate(archs, task),
                generator(self.request, goal, method),
                settings=settings,
            )
        if not result.complete:
            self.progress.note(f"{method} for {goal.text}: {result.message}")
        found = [result.best]
        if self.request.front:
            found = front(result.evaluated, self._front_prices(goal), self.request.front)
        return found, len(result.evaluated)

    def _front_prices(self, goal: Goal) -> Prices:
        """What the accuracy of a front is held against: the first budget's cost."""
        return self.request.costs[goal.budgets[0].cost].prices

    def _finish(
        self, goal: Goal, method: str, name: str, arch: Arch, evaluations: int, log: EvaluationLog
    ) -> dict[str, Any]:
        """Fine-tunes, tests and writes one net. Returns its figures; those of a finished one are read back."""
        from hwnas.train.finish import Finisher, write_net

        request, folder = self.request, self.run.net(name)
        if finished(folder, goal) and (done := folder.result()).get("genes") == list(arch.genes):
            return done
        for stale in ("result.json", "verify.json"):
            (folder.path / stale).unlink(missing_ok=True)
        finisher = Finisher(
            self.run,
            self.shop.supernet,
            self.splits,
            self.shop.evaluator,
            request.recipe.finetune,
            request.seed,
            self.progress,
            self.ranks,
        )
        module = finisher.fine_tune(name, arch, log.fingerprint)
        accuracy, split = finisher.test_accuracy(module)
        write_net(folder, request.space, arch, module)
        result = {
            **figures(request, goal, arch),
            "net": name,
            "method": method,
            "arch": request.space.to_json(arch),
            "genes": list(arch.genes),
            "accuracy": accuracy,
            "accuracy_split": split,
            "search_accuracy": log.scores[arch.genes],
            "evaluations": evaluations,
            "finetune_steps": request.recipe.finetune.steps,
            "normalisation": asdict(self.splits.normalisation),
            "key": goal.key,
        }
        if name != goal.name:  # the winner's is written when its baseline is in it
            folder.write_json("result.json", result)
        finisher.forget(arch, log.fingerprint)
        return result

    def _store(self) -> CheckpointStore:
        from hwnas.train.checkpoint import CheckpointStore

        return CheckpointStore(self.run.checkpoints, "supernet")

    def _done_steps(self) -> int:
        paths = self._store().paths()
        return int(paths[0].stem.rpartition("-")[2]) if paths else 0


def evolution_settings(request: SearchRequest) -> Evolution:
    """The recipe's numbers as `hwnas.search.evolution` takes them."""
    numbers = request.recipe.evolution
    return Evolution(numbers.population, numbers.generations, numbers.topk, numbers.mutation)
