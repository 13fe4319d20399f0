"""Who works on a search for widths: `WidthShop`, in every process, trains; `WidthWork` makes the nets of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from hwnas.errors import ClaimError, HwnasError
from hwnas.progress import Progress
from hwnas.runs import RunFolder
from hwnas.search.data import keep_data, load_splits
from hwnas.search.width_search import AtomGoal, AtomRequest, make_goal
from hwnas.spaces.widths import AtomArch
from hwnas.train.batches import Batches
from hwnas.train.evaluate import recalibration_images
from hwnas.train.process import prepare_process
from hwnas.train.ranks import SOLO, Ranks
from hwnas.train.recipe import Phase


class WidthShop(ABC):
    """Reads the images; then trains on them, in step with the other ranks.

    Raises:
        HwnasError: the data is unusable, has other classes than the space, or is not the same for all ranks.
    """

    def __init__(self, request: AtomRequest, progress: Progress, ranks: Ranks) -> None:
        prepare_process(request.threads)
        self.request, self.progress, self.ranks = request, progress, ranks
        self.device = request.device if ranks is SOLO else ranks.device
        self.splits = load_splits(request, progress, ranks)

    def batches(self, phase: Phase, stream: str) -> Batches:
        """This rank's part of the batches of a training."""
        whole = Batches(self.splits.train, self.splits.normalisation, phase, self.request.seed, stream, self.device)
        return whole.part(self.ranks) if self.ranks.world > 1 else whole

    def goal(self, order: dict[str, Any]) -> AtomGoal:
        """The net that an order of the first rank is about.

        Raises:
            HwnasError: it depends on other prices here.
        """
        goal = make_goal(self.request, self.request.budgets[order["goal"]])
        if goal.key != order["key"]:
            raise HwnasError("the processes of torchrun have different prices or recipes: give all the same")
        return goal

    @abstractmethod
    def work(self, run: RunFolder) -> WidthWork:
        """What makes the nets of a run, with this shop."""

    @abstractmethod
    def orders(self) -> dict[str, Callable[[dict[str, Any]], None]]:
        """What the ranks but the first do at a word."""


class WidthWork(ABC):
    """The first rank's work between the wanted nets and their files, whatever the space."""

    def __init__(self, shop: WidthShop, run: RunFolder) -> None:
        self.run, self.request, self.progress = run, shop.request, shop.progress
        self.ranks, self.device, self.splits = shop.ranks, shop.device, shop.splits
        keep_data(self.request, run, self.splits)
        scoring, seed = self.request.recipe.scoring, self.request.seed
        self.calibration = recalibration_images(self.splits, scoring, seed=seed, device=self.device)

    @abstractmethod
    def make(self, goal: AtomGoal) -> None:
        """Trains, tests and writes one net."""

    def order(self, what: str, goal: AtomGoal) -> None:
        """Tells the other ranks what they do for a net; `WidthShop.goal` understands it."""
        budgets = [tuple(row) for row in self.request.budgets]
        self.ranks.order(what, goal=budgets.index(goal.budgets), key=goal.key)

    def figures(self, goal: AtomGoal, arch: AtomArch) -> dict[str, Any]:
        """What the net costs, and how much of its budgets it uses.

        Raises:
            ClaimError: it is over a budget.
        """
        request = self.request
        network = request.space.network(arch)
        latency = request.costs.get("latency")
        ends = latency.ends(arch.widths) if latency is not None else None
        upper = {"latency": ends[1] if ends else None, **network.counts}
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
            **network.counts,
            "bitops": None,
            "atoms": arch.atoms,
            "budgets": [asdict(budget) for budget in goal.budgets],
            "budget_used": max(used) if used else None,
            "binding": any(not limit.met(request.space.full) for limit in goal.limits),
        }
