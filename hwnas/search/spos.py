"""SPOS from data to nets (Guo et al. 2020): one supernet, one evolution for every budget, and the random baseline.

The steps, each of which a killed run takes up again: train the supernet by uniformly sampled single paths; for every
budget evolve architectures that meet it, scored with the supernet's weights; draw as many at random under the same budget
as the baseline; then, all choices made, fine-tune both winners, read the test split, measure, export.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.budget import Budget, format_cost
from hwnas.costs import Cost, macs_cost, params_cost
from hwnas.errors import HwnasError
from hwnas.progress import Progress, duration
from hwnas.runs import EvaluationLog, NetFolder, RunFolder
from hwnas.search.feasible import FeasibleSampler
from hwnas.spaces.base import Arch, Space
from hwnas.train.recipe import Recipe

METHODS = ("spos", "random")


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A search, fully resolved.

    Attributes:
        space: of the data's image size and number of classes.
        data: ``fashion-mnist``, ``folder:DIR`` or ``torchvision:NAME:DIR``.
        budgets: one inner list for each net that is wanted, all of whose budgets it must meet; an empty inner list is
            a search without a limit.
        costs: by name, of `space`; those that the budgets name, and `latency` where there is a table.
        recipe: training, scoring, evolution, fine-tuning.
        out: the run folder.
        seed: of everything random.
        threads: of torch.
        method: ``spos``, or ``random``: the baseline alone.
        device: of torch.
        baseline: searches at random under the same budgets too (method spos).
        notes: anything else to keep in run.toml, such as the latency table and its fingerprint.
    """

    space: Space
    data: str
    budgets: Sequence[Sequence[Budget]]
    costs: Mapping[str, Cost]
    recipe: Recipe
    out: Path
    seed: int = 0
    threads: int = 1
    method: str = "spos"
    device: str = "cpu"
    baseline: bool = True
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """What a search found: the JSON of ``hwnas search``."""

    run: Path
    method: str
    space: str
    seconds: float
    evaluated: int
    results: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """As `hwnas search --json` prints it."""
        return {**asdict(self), "run": str(self.run)}


@dataclass(frozen=True, slots=True)
class _Goal:
    """One net that is wanted, with everything that judges it."""

    name: str
    budgets: tuple[Budget, ...]
    sampler: FeasibleSampler
    key: str

    @property
    def text(self) -> str:
        return " and ".join(map(str, self.budgets)) or "no budget"


def search(request: SearchRequest, progress: Progress) -> SearchOutcome:
    """Runs the search, or what is left of it.

    Raises:
        ClaimError: no architecture meets a budget; nothing was trained.
        HwnasError: the data, the folder or the training failed; the message says what to do.
    """
    began = time.monotonic()
    if request.method not in METHODS:
        raise ValueError(f"method {request.method!r} is not one of {METHODS}")
    goals = [_goal(request, budgets) for budgets in request.budgets]
    if len({goal.name for goal in goals}) < len(goals):
        raise HwnasError("the same budget is given twice: give each once")
    for goal in goals:
        if not _binding(goal.budgets, request.costs):
            progress.note(f"{goal.text} does not bind: every architecture of {request.space.name} meets it")
    run = RunFolder.create(request.out, identity=_identity(request), config=_config(request))
    with run:
        if all(_finished(run.net(goal.name), goal) for goal in goals):
            progress.note(f"{run.path} holds the results already")
        else:
            _Pipeline(request, progress, run).work(goals)
        results = [run.net(goal.name).result() for goal in goals]
        run.write_json("results.json", {"format": 1, "method": request.method, "results": results})
    evaluated = sum(int(result["evaluated"]) for result in results)
    return SearchOutcome(run.path, request.method, request.space.name, time.monotonic() - began, evaluated, results)


class _Pipeline:
    """The work between goals and results. Data and supernet are loaded here, once it is known that they are needed."""

    def __init__(self, request: SearchRequest, progress: Progress, run: RunFolder) -> None:
        import torch

        from hwnas.train.data import load_data

        torch.set_num_threads(request.threads)
        self.request, self.progress, self.run = request, progress, run
        progress.stage("Data")
        self.splits = load_data(
            request.data,
            image_size=request.space.input_shape[1],
            seed=request.seed,
            on_skip=lambda path: progress.note(f"skipped, cannot be read: {path}"),
        )
        if self.splits.num_classes != request.space.num_classes:
            raise HwnasError(
                f"{request.data} has {self.splits.num_classes} classes, the space {request.space.num_classes}: "
                "make the space for the data"
            )
        self._same_data()

    def _same_data(self) -> None:
        """Refuses images that are not those the run began with."""
        path = self.run.path / "data.json"
        fingerprint = self.splits.fingerprint()
        if not path.is_file():
            self.run.write_json(
                "data.json",
                {
                    "data": self.request.data,
                    "fingerprint": fingerprint,
                    "train_images": len(self.splits.train),
                    "val_images": len(self.splits.val),
                    "classes": list(self.splits.class_names),
                    "normalisation": asdict(self.splits.normalisation),
                    "skipped": list(self.splits.skipped),
                },
            )
        elif json.loads(path.read_text()).get("fingerprint") != fingerprint:
            raise HwnasError(f"the images of {self.request.data} changed since {self.run.path} began: another --out")

    # -- the steps ---------------------------------------------------------------------------------------------------

    def work(self, goals: Sequence[_Goal]) -> None:
        request = self.request
        open_goals = [goal for goal in goals if not _finished(self.run.net(goal.name), goal)]
        self._expect(open_goals)
        self._train()
        log = self.run.evaluations(self._fingerprint())
        choices: list[tuple[_Goal, str, str, Arch, int]] = []
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
            figures = [self._finish(goal, method, name, arch, n, log) for _, method, name, arch, n in reversed(mine)]
            result = figures[-1]
            result["baseline"] = figures[0] if len(figures) > 1 else None
            result["evaluated"] = sum(figure["evaluations"] for figure in figures)
            self.run.net(goal.name).write_json("result.json", result)

    def _expect(self, goals: Sequence[_Goal]) -> None:
        """Says how long all this will take, from a few steps on a throw-away supernet."""
        from hwnas.progress import NullProgress
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
        began = time.monotonic()
        evaluator(genes)
        evaluation_s = time.monotonic() - began
        nets = len(goals) * (2 if self.request.method == "spos" and self.request.baseline else 1)
        left = max(0, recipe.supernet.steps - self._done_steps())
        scale = recipe.finetune.batch_size / recipe.supernet.batch_size
        parts = {
            f"supernet of {left} steps": left * step_s,
            f"scoring {nets * planned_evaluations(recipe)} architectures": nets
            * planned_evaluations(recipe)
            * evaluation_s,
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

    def _choose(self, goal: _Goal, method: str, log: EvaluationLog) -> tuple[Arch, int]:
        raise NotImplementedError

    def _finish(
        self, goal: _Goal, method: str, name: str, arch: Arch, evaluations: int, log: EvaluationLog
    ) -> dict[str, Any]:
        """Fine-tunes, tests and writes one net. Returns its figures; those of a finished one are read back."""
        from hwnas.train.finish import Finisher, write_net

        request, folder = self.request, self.run.net(name)
        if (done := folder.result()).get("key") == goal.key and done.get("genes") == list(arch.genes):
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
            **_figures(request, goal, arch),
            "net": name,
            "method": method,
            "arch": request.space.to_json(arch),
            "genes": list(arch.genes),
            "accuracy": accuracy,
            "accuracy_split": split,
            "search_accuracy": log.scores[arch.genes],
            "evaluations": evaluations,
            "evaluated": evaluations,
            "finetune_steps": request.recipe.finetune.steps,
            "normalisation": asdict(self.splits.normalisation),
            "key": goal.key,
        }
        if name != goal.name:  # the winner's is written when its baseline is in it
            folder.write_json("result.json", result)
        finisher.forget(arch, log.fingerprint)
        return result

    # -- what they are made of ---------------------------------------------------------------------------------------

    def _fresh(self) -> Any:
        from hwnas.train.loop import step_rng, torch_generator

        generator = torch_generator(step_rng(self.request.seed, "weights", 0))
        return self.request.space.supernet(
            generator=generator, zero_init_residual=self.request.recipe.zero_init_residual
        )

    def _batches(self) -> Any:
        from hwnas.train.loop import Batches

        request = self.request
        phase = request.recipe.supernet
        return Batches(self.splits.train, self.splits.normalisation, phase, request.seed, "supernet", request.device)

    def _evaluator(self, supernet: Any) -> Any:
        from hwnas.train.evaluate import Evaluator

        request = self.request
        return Evaluator(supernet, self.splits, request.recipe.scoring, seed=request.seed, device=request.device)

    def _store(self) -> Any:
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


def planned_evaluations(recipe: Recipe) -> int:
    """Architectures that an evolution scores, and its baseline too: a population for every generation and the first."""
    return recipe.evolution.population * recipe.evolution.generations
