"""What MorphNet does in every step of its search (Gordon et al. 2018): the baseline of FiGS without gates."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.nn.gates import GatedNorm, GatedNorm1d
from hwnas.search.gate_training import GateTraining
from hwnas.spaces.widths import Widths


class MorphNetTraining(GateTraining):
    """An L1 penalty on the scales of the BatchNorms behind a group's layers, weighted by the same costs.

    A channel is worth the largest of its scales (Gordon et al. 2018, as morph_net ties residual channels).
    """

    def _started(self) -> None:
        self._norms: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        seen = torch.zeros(self.space.channels.count, dtype=torch.bool)
        for mask in self.space.channels.masks:
            layer = self.net.net.get_submodule(mask.layer)
            if isinstance(layer, GatedNorm | GatedNorm1d) and layer.affine:
                ids = torch.from_numpy(mask.ids)
                here = torch.nonzero(ids >= 0).flatten()
                self._norms.append((layer.weight, here, ids[here]))
                seen[ids[here]] = True
        if not bool(seen.all()):
            group = self.space.groups[int(self._group_of[int((~seen).nonzero()[0])])]
            raise HwnasError(f"morphnet needs a BatchNorm behind every layer, and {group.name} has none: use figs")

    def forward(self, images: Tensor, step: int) -> Tensor:
        del step
        scores: Tensor = self.net.net(images)
        return scores

    def _penalise(self, prices: Tensor, lr: float) -> None:
        del lr
        for weight, here, ids in self._norms:
            if weight.grad is not None:
                weight.grad[here] += prices[ids] * weight.detach()[here].sign()

    def worth(self) -> Tensor:
        found = torch.zeros(self.space.channels.count)
        for weight, here, ids in self._norms:
            found[ids] = torch.maximum(found[ids], weight.detach().abs().float().cpu()[here])
        return found

    def _alive(self) -> Tensor:
        return self.worth() > self.settings.threshold

    def sums(self) -> NDArray[np.float64]:
        return np.array([row[0] for row in self.wanted()], float)

    def wanted(self) -> Widths:
        counts = torch.zeros(len(self.space.groups), dtype=torch.int64)
        counts.index_add_(0, self._group_of, self._alive().long())
        return tuple((int(count),) for count in counts.tolist())
