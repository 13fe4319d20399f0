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
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.costs import Prices
from hwnas.errors import HwnasError
from hwnas.progress import NullProgress, Progress, Task, duration
from hwnas.runs import EvaluationLog, RunFolder
from hwnas.search.evolution import Evolution, evolve
from hwnas.search.pareto import best_spread, check_pymoo, front, front_level
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
    size = run.net(_front_name(goal.name, 1)).result().get("front_size", 1)
    return [_front_name(goal.name, place) for place in range(1, int(size) + 1)]


def _front_name(name: str, place: int) -> str:
    return f"{name}-front-{place}"


@dataclass(frozen=True)
class _Choice:
    """What one method found for one goal.

    Attributes:
        name: of its net, or what the names of its front begin with.
        archs: one, or a front's, the cheapest first.
        evaluated: how many it scored.
        level: of a front, see `front_level`.
    """

    method: str
    name: str
    archs: tuple[Arch, ...]
    evaluated: int
    level: float | None = None


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
        methods = [request.method, "random"] if request.has_baseline else [request.method]
        self.progress.stage("Search")
        choices = [[self._choose(goal, method, log) for method in methods] for goal in open_goals]
        self.progress.stage("Fine-tuning what was found")  # all choices are made: from here the test split may be read
        for goal, (mine, *rivals) in zip(open_goals, choices, strict=True):
            beside = [net for rival in rivals for net in self._finish_all(goal, rival, log)]  # the baseline comes first
            nets = self._finish_all(goal, mine, log)
            told: dict[str, Any] = {"evaluated": sum(choice.evaluated for choice in (mine, *rivals))}
            if request.front:
                told |= {"front_size": len(nets), "front_accuracy": mine.level}
                told["baseline_front_accuracy"] = rivals[0].level if rivals else None
            for net in reversed(nets):  # the first, which tells how many there are, comes last
                told["baseline"] = self._rival(goal, net, beside)
                self.run.net(net["net"]).write_json("result.json", {**net, **told})

    def _finish_all(self, goal: Goal, choice: _Choice, log: EvaluationLog) -> list[dict[str, Any]]:
        """Fine-tunes, tests and writes what a method found; clears away what is left of an earlier, larger front."""
        names = [choice.name]
        if self.request.front:
            names = [_front_name(choice.name, place) for place in range(1, len(choice.archs) + 1)]
            for place in itertools.count(len(names) + 1):
                stale = self.run.net(_front_name(choice.name, place))
                if not stale.path.is_dir():
                    break
                for file in ("result.json", "verify.json"):
                    (stale.path / file).unlink(missing_ok=True)
        return [
            self._finish(goal, choice.method, name, arch, choice.evaluated, log)
            for name, arch in zip(names, choice.archs, strict=True)
        ]

    def _rival(self, goal: Goal, net: dict[str, Any], beside: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """The baseline of a net: of a front's the one that scored best among those that cost no more, if any does."""
        if not self.request.front:
            return beside[0] if beside else None
        prices = self._front_prices(goal)
        cost = prices.total_of(tuple(net["genes"]))
        within = [rival for rival in beside if prices.total_of(tuple(rival["genes"])) <= cost]
        return max(within, key=lambda rival: float(rival["search_accuracy"]), default=None)

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
        scoring = recipe.scoring
        image_s = evaluation_s * world / (scoring.recalibrate_images + scoring.val_images)
        searches = len(goals) * (2 if self.request.has_baseline else 1)
        nets = searches * max(1, self.request.front)
        left = max(0, recipe.supernet.steps - self._done_steps())
        scale = recipe.finetune.batch_size / recipe.supernet.batch_size
        scored = searches * evolution_settings(self.request).evaluations
        parts = {
            f"supernet of {left} steps": left * step_s,
            f"scoring {scored} architectures": scored * evaluation_s,
            f"fine-tuning {nets} nets": nets * recipe.finetune.steps * step_s * scale,
            f"testing them on {self.splits.last_count} images": nets * self.splits.last_count * image_s,
        }
        total = sum(parts.values())
        detail = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items())
        self.progress.note(f"expected duration: about {duration(total)} ({detail})")

    def _train(self) -> None:
        from hwnas.train.metrics import MetricsLog

        self.progress.stage("Supernet")
        self.ranks.order("supernet")
        self.shop.train(self._store(), MetricsLog(self.run.metrics))

    def _choose(self, goal: Goal, method: str, log: EvaluationLog) -> _Choice:
        """The best architecture that a method finds, or those of its front. Known scores are read from the log."""
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
            if self.request.front and method == self.request.method:
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
        name = goal.name if method == self.request.method else f"{goal.name}-random"
        done = len(result.evaluated)
        if not self.request.front:
            return _Choice(method, name, (result.best,), done)
        prices = self._front_prices(goal)
        level = front_level(result.evaluated, prices, goal.budgets[0].limit)
        return _Choice(method, name, tuple(front(result.evaluated, prices, self.request.front)), done, level)

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
        write_net(folder, request.space, arch, module, self.splits)
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
