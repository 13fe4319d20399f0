"""SPOS from data to nets (Guo et al. 2020): one supernet, one evolution for every budget, and the random baseline.

The steps, each of which a killed run takes up again: train the supernet by uniformly sampled single paths; for every
budget evolve architectures that meet it, scored with the supernet's weights; draw as many at random under the same
budget as the baseline; then, all choices made, fine-tune both winners, read the test split, measure, export.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import HwnasError
from hwnas.progress import NullProgress, Progress, Task, duration
from hwnas.runs import EvaluationLog, RunFolder
from hwnas.search.evolution import Evolution, evolve
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
    identity,
    make_goal,
)
from hwnas.spaces.base import Arch

if TYPE_CHECKING:
    from hwnas.nn.supernet import SinglePathSupernet
    from hwnas.train.checkpoint import CheckpointStore
    from hwnas.train.evaluate import Evaluator
    from hwnas.train.loop import Batches

__all__ = ["SearchOutcome", "SearchRequest", "search"]

SEARCHES = {"spos": evolve, "random": random_search}


def search(request: SearchRequest, progress: Progress) -> SearchOutcome:
    """Runs the search, or what is left of it.

    Raises:
        ClaimError: no architecture meets a budget; nothing was trained.
        HwnasError: the data, the folder or the training failed; the message says what to do.
    """
    began = time.monotonic()
    if request.method not in METHODS:
        raise ValueError(f"method {request.method!r} is not one of {METHODS}")
    goals = [make_goal(request, budgets) for budgets in request.budgets]
    if len({goal.name for goal in goals}) < len(goals):
        raise HwnasError("the same budget is given twice: give each once")
    for budget in dict.fromkeys(budget for goal in goals for budget in goal.budgets):
        if not binding([budget], request.costs):
            progress.note(f"{budget} does not bind: every architecture of {request.space.name} meets it")
    run = RunFolder.create(request.out, identity=identity(request), config=configuration(request))
    with run:
        if all(_complete(run, goal) for goal in goals):
            progress.note(f"{run.path} holds the results already")
        else:
            _Pipeline(request, progress, run).work(goals)
        results = [run.net(goal.name).result() for goal in goals]
        run.write_json("results.json", {"format": 1, "method": request.method, "results": results})
    evaluated = sum(int(result["evaluated"]) for result in results)
    return SearchOutcome(run.path, request.method, request.space.name, time.monotonic() - began, evaluated, results)


def _complete(run: RunFolder, goal: Goal) -> bool:
    """The goal's net is there with all its files, and so is its baseline where it has one."""
    folder = run.net(goal.name)
    baseline = folder.result().get("baseline")
    return finished(folder, goal) and (not baseline or finished(run.net(baseline["net"]), goal))


class _Pipeline:
    """The work between goals and results. Data and supernet are loaded here, once it is known that they are needed."""

    def __init__(self, request: SearchRequest, progress: Progress, run: RunFolder) -> None:
        import torch

        from hwnas.search.data import open_data

        torch.set_num_threads(request.threads)
        self.request, self.progress, self.run = request, progress, run
        self.splits = open_data(request, run, progress)

    # -- the steps ---------------------------------------------------------------------------------------------------

    def work(self, goals: Sequence[Goal]) -> None:
        request = self.request
        open_goals = [goal for goal in goals if not _complete(self.run, goal)]
        self._expect(open_goals)
        self._train()
        log = self.run.evaluations(self._fingerprint())
        choices: list[tuple[Goal, str, str, Arch, int]] = []
        self.progress.stage("Search")
        for goal in open_goals:
            methods = [request.method, "random"] if request.method == "spos" and request.baseline else [request.method]
            for method in methods:
                arch, evaluated = self._choose(goal, method, log)
                name = goal.name if method == request.method else f"{goal.name}-random"
                choices.append((goal, method, name, arch, evaluated))
        self.progress.stage("Fine-tuning what was found")  # all choices are made: from here the test split may be read
        for goal in open_goals:
            mine = [choice for choice in choices if choice[0] is goal]
            nets = [self._finish(goal, method, name, arch, n, log) for _, method, name, arch, n in reversed(mine)]
            result = nets[-1]  # the baseline comes first
            result["baseline"] = nets[0] if len(nets) > 1 else None
            result["evaluated"] = sum(net["evaluations"] for net in nets)
            self.run.net(goal.name).write_json("result.json", result)

    def _expect(self, goals: Sequence[Goal]) -> None:
        """Says how long all this will take, from a few steps on a throw-away supernet."""
        from hwnas.train.loop import train_supernet

        recipe = self.request.recipe
        supernet = self._fresh()
        batches = self._batches()
        train_supernet(supernet, batches, progress=NullProgress(), stop_after=2)
        steps = 6
        began = time.monotonic()
        train_supernet(supernet, batches, progress=NullProgress(), stop_after=steps)
        step_s = (time.monotonic() - began) / steps
        evaluator = self._evaluator(supernet)
        genes = self.request.space.sample(np.random.default_rng(0)).genes
        evaluator(genes)  # fills the cache of images
        threads = self.request.threads
        began = time.monotonic()
        list(evaluator.scores([genes] * threads, threads))
        evaluation_s = (time.monotonic() - began) / threads
        nets = len(goals) * (2 if self.request.method == "spos" and self.request.baseline else 1)
        left = max(0, recipe.supernet.steps - self._done_steps())
        scale = recipe.finetune.batch_size / recipe.supernet.batch_size
        scored = nets * evolution_settings(self.request).evaluations
        parts = {
            f"supernet of {left} steps": left * step_s,
            f"scoring {scored} architectures": scored * evaluation_s,
            f"fine-tuning {nets} nets": nets * recipe.finetune.steps * step_s * scale,
        }
        total = sum(parts.values())
        detail = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items())
        self.progress.note(f"expected duration: about {duration(total)} ({detail})")

    def _train(self) -> None:
        from hwnas.train.loop import MetricsLog, train_supernet

        self.progress.stage("Supernet")
        self.supernet = self._fresh()
        train_supernet(
            self.supernet,
            self._batches(),
            progress=self.progress,
            store=self._store(),
            metrics=MetricsLog(self.run.metrics),
        )
        self.evaluator = self._evaluator(self.supernet)

    def _choose(self, goal: Goal, method: str, log: EvaluationLog) -> tuple[Arch, int]:
        """The best architecture that a method finds, and how many it scored; known scores are read from the log."""
        space, settings = self.request.space, evolution_settings(self.request)

        def evaluate(archs: list[Arch], task: Task) -> list[float]:
            unknown = [arch.genes for arch in archs if arch.genes not in log.scores]
            task.advance(len(archs) - len(unknown))
            for genes, score in zip(unknown, self.evaluator.scores(unknown, self.request.threads), strict=True):
                log.add(genes, score)
                task.advance()
            return [log.scores[arch.genes] for arch in archs]

        with self.progress.start(settings.evaluations, f"{method} for {goal.text}") as task:
            result = SEARCHES[method](
                space,
                goal.sampler,
                lambda archs: evaluate(archs, task),
                generator(self.request, goal, method),
                settings=settings,
            )
        if not result.complete:
            self.progress.note(f"{method} for {goal.text}: {result.message}")
        return result.best, len(result.evaluated)

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
            self.supernet,
            self.splits,
            self.evaluator,
            request.recipe.finetune,
            request.seed,
            request.device,
            self.progress,
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

    # -- what they are made of ---------------------------------------------------------------------------------------

    def _fresh(self) -> SinglePathSupernet:
        from hwnas.train.loop import step_rng, torch_generator

        weights = torch_generator(step_rng(self.request.seed, "weights", 0))
        return self.request.space.supernet(generator=weights, zero_init_residual=self.request.recipe.zero_init_residual)

    def _batches(self) -> Batches:
        from hwnas.train.loop import Batches

        request = self.request
        phase = request.recipe.supernet
        return Batches(self.splits.train, self.splits.normalisation, phase, request.seed, "supernet", request.device)

    def _evaluator(self, supernet: SinglePathSupernet) -> Evaluator:
        from hwnas.train.evaluate import Evaluator

        request = self.request
        return Evaluator(supernet, self.splits, request.recipe.scoring, seed=request.seed, device=request.device)

    def _store(self) -> CheckpointStore:
        from hwnas.train.checkpoint import CheckpointStore

        return CheckpointStore(self.run.checkpoints, "supernet")

    def _done_steps(self) -> int:
        paths = self._store().paths()
        return int(paths[0].stem.rpartition("-")[2]) if paths else 0

    def _fingerprint(self) -> str:
        """Of everything that a score depends on beside the genes: weights, images, how many of them."""
        digest = hashlib.blake2b(digest_size=8)
        for name, parameter in self.supernet.named_parameters():
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().numpy().data)
        digest.update(self.splits.fingerprint().encode())
        digest.update(repr((self.request.seed, self.request.recipe.scoring)).encode())
        return digest.hexdigest()


def evolution_settings(request: SearchRequest) -> Evolution:
    """The recipe's numbers as `hwnas.search.evolution` takes them."""
    numbers = request.recipe.evolution
    return Evolution(numbers.population, numbers.generations, numbers.topk, numbers.mutation)
