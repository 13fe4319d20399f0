"""What FiGS does in every step of its architecture learning (Chaudhuri et al. 2020, section 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwnas.search.atom_control import COURSE_ENDS
from hwnas.search.gate_training import GateTraining
from hwnas.spaces.widths import Widths
from hwnas.train.chance import step_rng, torch_generator

DRIFT = 3.0
"""Under a budget lambda begins where the dearest logits would fall by so much in a search if the task had no say."""


class FigsTraining(GateTraining):
    """Masks are drawn in every step, for all ranks the same ones; the penalty is the expected or the sampled cost's."""

    def _started(self) -> None:
        settings: dict[str, Any] = {"params": [self.net.logits], "weight_decay": 0.0}
        if "eps" in self.optimizer.defaults:
            settings["eps"] = settings["own_eps"] = 1.0
        self.optimizer.add_param_group(settings)

    def _first_penalty(self) -> float:
        sums = self.sums()
        prices = torch.from_numpy(self.cost.slopes(sums) / self._whole)[self._group_of]
        chance = float(torch.sigmoid(torch.tensor(self.settings.start)))
        rate = self.settings.lr or float(self.optimizer.param_groups[0]["lr"])
        return DRIFT / (rate * self.steps * COURSE_ENDS * chance * (1 - chance) * float(prices.max()))

    def forward(self, images: Tensor, step: int) -> Tensor:
        self.net.set_masks(self.net.sample(torch_generator(step_rng(self.seed, "gates", step))))
        try:
            scores: Tensor = self.net(images)
        finally:
            self.net.set_masks(None)
        return scores

    def _penalise(self, prices: Tensor, lr: float) -> None:
        del lr
        if self.settings.lr is not None:
            self.optimizer.param_groups[-1]["lr"] = self.settings.lr
        logits = self.net.logits
        if self.settings.form == "expected":
            chances = torch.sigmoid(logits.detach())
            slope = chances * (1 - chances)
        else:
            slope = self.net.last_slope()
        assert logits.grad is not None
        logits.grad.add_(prices * slope)

    def worth(self) -> Tensor:
        return self.net.chances().detach()

    def sums(self) -> NDArray[np.float64]:
        values = self.net.last_masks() if self.settings.form == "sampled" else self.net.chances().detach()
        found = torch.zeros(len(self.space.groups), dtype=torch.float64)
        found.index_add_(0, self._group_of, values.double().cpu())
        result: NDArray[np.float64] = found.numpy()
        return result

    def wanted(self) -> Widths:
        if self.settings.export == "expected":
            return tuple((width,) for width in self.net.expected())
        counts = torch.zeros(len(self.space.groups), dtype=torch.int64)
        counts.index_add_(0, self._group_of, self.net.alive().cpu().long())
        return tuple((int(count),) for count in counts.tolist())
