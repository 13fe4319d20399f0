"""`WidthWork`: the work between the wanted nets of a search for widths and their files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hwnas.errors import ClaimError
from hwnas.progress import Progress
from hwnas.runs import RunFolder
from hwnas.search.width_search import AtomGoal, AtomRequest
from hwnas.spaces.widths import AtomArch

if TYPE_CHECKING:
    from hwnas.train.loop import Batches


class WidthWork(ABC):
    """What makes the nets of one request, whatever the space; the data is loaded here."""

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

    @abstractmethod
    def make(self, goal: AtomGoal) -> None:
        """Trains, tests and writes one net."""

    def _batches(self) -> Batches:
        from hwnas.train.loop import Batches

        request = self.request
        phase = request.recipe.supernet
        return Batches(self.splits.train, self.splits.normalisation, phase, request.seed, "supernet", request.device)

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
