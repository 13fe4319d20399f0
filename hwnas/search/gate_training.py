"""What a search for the channels that stay does in every step, whatever a channel's worth is told by."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwnas.atom_costs import AtomCost, cheaper, cheapest
from hwnas.errors import HwnasError
from hwnas.gate_costs import GateCost
from hwnas.nn.gates import GatedNet
from hwnas.search.atom_control import COURSE_ENDS, Controller, Landing
from hwnas.search.atom_projection import Limit, project
from hwnas.search.looks import Log
from hwnas.spaces.gated import GateSpace
from hwnas.spaces.widths import Branch, Widths, with_number
from hwnas.train.checkpoint import tensors_of
from hwnas.train.ema import Ema
from hwnas.train.ranks import SOLO, Ranks
from hwnas.train.recipe import Gates

AHEAD = 0.08
"""Share of a search by which the controller looks ahead, along the way the cost has gone since its last look: logits
fall for some time before channels go, and without it lambda would swing."""

UNDER = 0.97
"""A net that uses less of its budget than this is filled up again with the worthiest of the channels that went."""


class Died(HwnasError):
    """Lambda left nothing of the net.

    Attributes:
        step: after which there still was a net, 0 where there was none.
        tensors: the state of then, as checkpoints have it.
    """

    def __init__(self, message: str, step: int, tensors: dict[str, Tensor]) -> None:
        super().__init__(message)
        self.step, self.tensors = step, tensors


@dataclass
class GateTraining(ABC):
    """Penalty, averages and controller: the hooks of one search; at its end the net is brought onto its budget.

    Of several `ranks` that search in step the first decides what lambda answers to, and brings the net onto its budget.

    Attributes:
        space, net, optimizer: what trains.
        cost: what the penalty is in proportion to.
        limits: that the net has to meet; empty for a fixed lambda.
        settings: of the recipe.
        steps: of the search.
        seed: of the noise.
        log: where lambda and the cost are noted.
        ranks: the processes that search together.
    """

    space: GateSpace
    net: GatedNet
    optimizer: torch.optim.Optimizer
    cost: GateCost
    limits: tuple[Limit, ...]
    settings: Gates
    steps: int
    seed: int = 0
    log: Log | None = None
    ranks: Ranks = SOLO
    ema: Ema = field(init=False)
    penalty: float = field(init=False, default=0.0)
    landing: Landing | None = field(init=False, default=None)
    _good: tuple[int, dict[str, Tensor]] = field(init=False, default=(0, {}))

    def __post_init__(self) -> None:
        self.ema = Ema(self.net, self.settings.ema_decay)
        self._group_of = torch.from_numpy(self.space.channels.group_of())
        self._whole = self.cost.estimate(self.space.full)
        self._started()
        self._controller = Controller(self._first_penalty(), self.settings.ramp, COURSE_ENDS)
        self._fall, self._first, self._excess = 0.0, 1.0, 1.0
        if self.limits:  # gates begin a little closed: the course begins where they are
            self._first = max(0.05, self._over())
            self._excess = self._over() / self._first

    # -- what the methods differ in ----------------------------------------------------------------------------------

    @abstractmethod
    def _started(self) -> None:
        """Prepares what a method needs."""

    def _first_penalty(self) -> float:
        """Where the controller begins."""
        return self.settings.penalty

    @abstractmethod
    def forward(self, images: Tensor, step: int) -> Tensor:
        """Class scores of a batch in a step."""

    @abstractmethod
    def _penalise(self, prices: Tensor, lr: float) -> None:
        """Adds the penalty's gradient; `prices` are lambda times what each channel costs [channels]."""

    @abstractmethod
    def worth(self) -> Tensor:
        """How much each channel is wanted, float [channels]: what goes first is worth least."""

    @abstractmethod
    def sums(self) -> NDArray[np.float64]:
        """How many channels each group has now, or will have [groups]."""

    @abstractmethod
    def wanted(self) -> Widths:
        """The widths that the search has come to."""

    # -- every step --------------------------------------------------------------------------------------------------

    def before_update(self, step: int, lr: float) -> None:
        """Adds the penalty's gradient."""
        self.penalty = self._penalty(step)
        prices = self.penalty / self._whole * self.cost.slopes(self.sums()) if self.penalty else None
        if prices is not None:
            self._penalise(torch.from_numpy(prices).float()[self._group_of].to(self.net.logits.device), lr)
        else:
            self._penalise(torch.zeros_like(self.net.logits), lr)

    def after_update(self, done: int) -> None:
        """Averages; now and then lambda; at the end the net is brought onto its budget.

        Raises:
            Died: nothing is left of the net.
            HwnasError: what channels are worth is not a number any more.
        """
        if not bool(torch.isfinite(self.worth()).all()):
            raise HwnasError(
                f"what channels are worth is not a number after step {done}: lower lr in [supernet] or [gates] of the "
                "recipe and choose another --out"
            )
        self.ema.update(self.net)
        if done % self.settings.control_steps == 0:
            self._control(done)
        if done % (2 * self.settings.control_steps) == 0 or done == self.steps:
            self._note(done)

    def _penalty(self, step: int) -> float:
        progress = step / self.steps
        if not self.limits:
            ramp = min(1.0, progress / self.settings.ramp) if self.settings.ramp else 1.0
            return ramp * self.settings.penalty
        return self._controller.at(progress, self._excess) if self._excess > 0 else 0.0

    def _control(self, done: int) -> None:
        if not self.limits:
            if not self.space.viable(self.space.empty_of(self.wanted())):
                raise Died(
                    f"all channels that the image needs to reach the output died by step {done}: a penalty of "
                    f"{self.settings.penalty:g} is too strong; lower gates.penalty in the recipe and choose another "
                    "--out, or give a budget",
                    *self._good,
                )
            state = tensors_of(self.net, self.optimizer, self)
            self._good = done, {name: tensor.detach().clone() for name, tensor in state.items()}
            return
        before, passed = self._excess, self.settings.control_steps / self.steps
        self._excess = self.ranks.tell(self._over(done / self.steps) / self._first)
        self._fall += (self._excess - before - self._fall) * 0.5
        progress = done / self.steps
        if progress >= self._controller.start:
            expected = self._excess + AHEAD * self._fall / passed
            self._controller.update(progress + AHEAD, expected, passed)

    def _over(self, progress: float = 0.0) -> float:
        """What the net costs now above its limits, as a share of what the whole net does.

        While the course lasts, what the net would be if it were cut now takes the place of the expected sums: stairs
        that are filled up cost more than these.
        """
        sums, wanted = self.sums(), self.wanted()
        share = self._controller.gone(progress)

        def over(limit: Limit) -> float:
            cost = _of(limit)
            expected, cut = float(cost.smooth(sums)), cost.estimate(cost.deployed(wanted))
            return limit.excess(expected + share * (cut - expected))

        return max(map(over, self.limits))

    def _note(self, done: int) -> None:
        if self.log is not None:
            sums = self.sums()
            row = {"step": done, "penalty": self.penalty, "excess": self._excess, "channels": float(sums.sum())}
            costs = {limit.cost.name: float(_of(limit).smooth(sums)) for limit in self.limits}
            self.log.add({**row, self.cost.name: float(self.cost.smooth(sums)), **costs})

    # -- the end -----------------------------------------------------------------------------------------------------

    def land(self) -> tuple[Widths, Tensor]:
        """The widths of the net that was found, and which channels it keeps [channels].

        Raises:
            HwnasError: no net of the space meets the limits.
        """
        worth = self.worth().double().cpu()
        widths = self.space.revived(self.wanted(), self._best(worth))
        first = self.limits[0].cost if self.limits else self.cost
        before, controlled = self._costs(first, self.space.full), self._costs(first, widths)
        if self.limits:
            widths = self._projected(widths, worth)
        self.landing = Landing(self.steps, before, controlled, self._costs(first, widths))
        return widths, self._keep(widths, worth)

    @staticmethod
    def _costs(cost: AtomCost, widths: Widths) -> float:
        """What the deployed net costs; about, where the table lacks an operator of it."""
        deployed = cost.deployed(widths)
        exact = cost.total(deployed)
        return exact if math.isfinite(exact) else cost.estimate(deployed)

    def _projected(self, widths: Widths, worth: Tensor) -> Widths:
        found = project(self.space, self._importance(widths, worth), self.limits)
        used = max(limit.cost.upper(found.widths) / limit.most for limit in self.limits) if found.met else 0.0
        if not found.met or used < UNDER:  # too much went, or what is left does not fit: from the whole net down
            again = project(self.space, self._importance(self.space.full, worth), self.limits)
            found = again if again.met else found
        if not found.met:  # worth says little where so little can stay
            least = (self._least(limit) for limit in self.limits)
            met = next((net for net in least if all(limit.met(net) for limit in self.limits)), None)
            if met is None:
                raise HwnasError("the budgets cannot be met together by removing channels: give larger ones")
            return self._filled(met, worth)
        if not any(limit.cost.in_stairs for limit in self.limits):
            return found.widths
        return self._filled(found.widths, worth)

    def _least(self, limit: Limit) -> Widths:
        cost = limit.cost
        return cost.deployed(cheaper(self.space, cost, cheapest(self.space, cost), limit.most))

    def _filled(self, widths: Widths, worth: Tensor) -> Widths:
        """Stairs that still fit are taken back, the worthiest for what they cost first: the last one down was high."""
        values = self._importance(self.space.full, worth)
        cost = _of(self.limits[0])
        while True:
            best: tuple[float, Widths] | None = None
            for branch in self.space.branches():
                now = widths[branch[0]][0]
                higher = self.space.next_stair(branch, now)
                if higher is None or not now:
                    continue
                more = with_number(widths, branch, higher)
                gain = float(values[branch][now:higher].sum()) / cost.saved(widths, branch, higher, now)
                if (best is None or gain > best[0]) and all(limit.met(more) for limit in self.limits):
                    best = gain, more
            if best is None:
                return widths
            widths = best[1]

    def _importance(self, widths: Widths, worth: Tensor) -> dict[Branch, NDArray[np.float64]]:
        found = {}
        for number, (group, (width,)) in enumerate(zip(self.space.groups, widths, strict=True)):
            part = worth[group.first : group.first + group.size]
            found[number, 0] = part.sort(descending=True, stable=True).values[:width].numpy()
        return found

    def _best(self, worth: Tensor) -> dict[Branch, float]:
        return {
            (number, 0): float(worth[group.first : group.first + group.size].max())
            for number, group in enumerate(self.space.groups)
        }

    def _keep(self, widths: Widths, worth: Tensor) -> Tensor:
        keep = torch.zeros(len(worth), dtype=torch.bool)
        for group, (width,) in zip(self.space.groups, widths, strict=True):
            part = worth[group.first : group.first + group.size]
            keep[group.first + part.argsort(descending=True, stable=True)[:width]] = True
        return keep

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside tensors."""
        return {
            "updates": self.ema.updates,
            "log_factor": self._controller.log_factor,
            "excess": self._excess,
            "fall": self._fall,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up a state."""
        self.ema.updates = int(state["updates"])
        self._controller.log_factor = float(state["log_factor"])
        self._excess, self._fall = float(state["excess"]), float(state["fall"])

    def resumed(self, step: int) -> None:
        """Drops what was noted after `step`."""
        if self.log is not None:
            self.log.resume(step)


def _of(limit: Limit) -> GateCost:
    assert isinstance(limit.cost, GateCost)
    return limit.cost
