"""What AtomNAS does in every step of the one training that searches and trains (Mei et al. 2020, algorithm 1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from hwnas.atom_costs import AtomCost, EqualCost
from hwnas.errors import HwnasError
from hwnas.nn.blocks import ChainNet
from hwnas.nn.shrink import BranchRef, add_atoms, branches_of, cut_to, groups_of, importances, remove_atoms, widths_of
from hwnas.search.atom_control import COURSE_ENDS, Controller, Landing
from hwnas.search.atom_projection import Limit, project
from hwnas.search.looks import Log
from hwnas.spaces.atoms import AtomSpace, Widths
from hwnas.spaces.widths import Branch
from hwnas.train.chance import step_rng, torch_generator
from hwnas.train.ema import Ema, decay_at
from hwnas.train.ranks import SOLO, Ranks
from hwnas.train.recipe import Atoms

AHEAD = 0.03
"""Share of the training by which the controller looks ahead: importances fall for long before an atom is dead."""

NOTHING = 1e-12
"""What is left of an importance that has come to zero."""


@dataclass
class AtomTraining:
    """Penalty, averages, controller, removals: the hooks of one training.

    Of several `ranks` that train in step the first decides what lambda answers to and which atoms go.

    Attributes:
        space, net, optimizer: what trains.
        cost: what the penalty is in proportion to.
        limits: that the net has to meet; empty for a fixed lambda.
        settings: of the recipe.
        steps: of the training.
        seed: of atoms that are added.
        log: where each look is noted.
        probe: images [n, C, H, W] on which the change of outputs is measured; None measures none.
        ranks: the processes that train together.
    """

    space: AtomSpace
    net: ChainNet
    optimizer: torch.optim.Optimizer
    cost: AtomCost
    limits: tuple[Limit, ...]
    settings: Atoms
    steps: int
    seed: int = 0
    log: Log | None = None
    probe: Tensor | None = None
    ranks: Ranks = SOLO
    ema: Ema = field(init=False)
    penalty: float = field(init=False, default=0.0)
    landing: Landing | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.ema = Ema(self.net, self.settings.ema_decay)
        full, per_atom = self.space.full, self.cost.per_atom(self.space.full)
        total = sum(full[b][p] * price for (b, p), price in per_atom.items())
        self._normaliser = total / sum(map(sum, full)) if self.settings.normaliser == "mean" else total
        self._full_cost = self.cost.estimate(full)
        self._controller = Controller(self.settings.penalty, self.settings.ramp, self.settings.land * COURSE_ENDS)
        self._excess, self._met = 1.0, False
        self._sides: list[Tensor] = []
        self._collect()

    # -- every step --------------------------------------------------------------------------------------------------

    def before_update(self, step: int, lr: float) -> None:
        """Adds the penalty's gradient, ``lambda * c_i * sign(alpha_i)`` (equation 5)."""
        del lr
        self.penalty = self._penalty(step)
        if self.penalty:
            self._sides = [
                torch.where(gamma.detach().abs() > NOTHING, gamma.detach().sign(), -gamma.grad.sign())
                for gamma in self._gammas
                if gamma.grad is not None
            ]
            pushes = torch._foreach_mul(self._sides, [self.penalty * price for price in self._prices])
            grads: list[Tensor] = [gamma.grad for gamma in self._gammas if gamma.grad is not None]
            torch._foreach_add_(grads, pushes)

    def after_update(self, done: int) -> None:
        """Averages; now and then lambda, removals; once the projection."""
        self._stop_at_zero()
        self.ema.update(self.net)
        land = max(1, round(self.settings.land * self.steps))
        if self.limits and self.landing is None:
            if done % self.settings.control_steps == 0:
                self._control(done)
            if done == land:
                self._land(done)
        if self.landing is not None:
            return  # what dies now stays: the net is on its stairs, and within its budget
        last = done == self.steps
        if done % self.settings.check_steps == 0 or last:
            self._look(done, last=last)

    def _stop_at_zero(self) -> None:
        """An importance that the step took across zero stops there; from there it goes where the loss wants it.

        Else the penalty, whose gradient is as large at zero as anywhere, throws it from side to side, the further the
        larger lambda is: with a large one nothing would ever be below the threshold. The paper and its code let it.
        """
        if self.penalty:
            gammas: list[Tensor] = [gamma.detach() for gamma in self._gammas]
            torch._foreach_mul_(gammas, self._sides)
            torch._foreach_clamp_min_(gammas, NOTHING)
            torch._foreach_mul_(gammas, self._sides)

    def _penalty(self, step: int) -> float:
        progress = step / self.steps
        if not self.limits:
            ramp = min(1.0, progress / self.settings.ramp) if self.settings.ramp else 1.0
            return ramp * self.settings.penalty
        return 0.0 if self._met else self._controller.at(progress, self._excess)

    def penalty_value(self) -> float:
        """The penalty term of the loss now."""
        norms = [float(gamma.detach().abs().sum()) for gamma in self._gammas]
        return self.penalty * sum(price * norm for price, norm in zip(self._prices, norms, strict=True))

    def _collect(self) -> None:
        """Importance factors and their coefficients, after each change of the net.

        The normaliser stays that of the supernet, so that lambda keeps its meaning.
        """
        per_atom = self.cost.per_atom(self.widths)
        found = importances(self.net)
        self._gammas = list(found.values())
        self._prices = [per_atom[self._branch(ref)] / self._normaliser for ref in found]

    def _branch(self, ref: BranchRef) -> Branch:
        return ref.block, self.space.kernels.index(int(ref.kernel[1:]))

    @property
    def widths(self) -> Widths:
        """The atoms that are there."""
        return widths_of(self.net, self.space.kernels)

    # -- control -----------------------------------------------------------------------------------------------------

    def _averages(self) -> dict[BranchRef, Tensor]:
        groups = groups_of(self.net)
        return {ref: self.ema.shadow[group.importance] for ref, group in groups.items()}

    def _control(self, done: int) -> None:
        decay = decay_at(self.ema.decay, self.ema.updates)
        left = self.settings.land * self.steps - done  # what dies after the projection is of no use
        ahead = min(AHEAD * self.steps, left) * (1 - decay)  # in lags of the average, whose distance tells how it falls
        averages = self._averages()
        expected: dict[Branch, int] = {}
        for ref, gamma in importances(self.net).items():
            now, before = gamma.detach().abs(), averages[ref].abs()
            later = now - ahead * (before - now).clamp_min(0)
            expected[self._branch(ref)] = int((later > self.settings.threshold).sum())
        widths = tuple(
            tuple(expected.get((block, place), 0) for place in range(len(spec.kernels)))
            for block, spec in enumerate(self.space.blocks)
        )
        there = self.widths
        excess = max(limit.excess(limit.cost.estimate(widths), there) for limit in self.limits)
        self._excess, self._met = self.ranks.tell((excess, self._within()))
        progress = done / self.steps
        if progress >= self._controller.start:
            self._controller.update(progress + AHEAD, self._excess, self.settings.control_steps / self.steps)

    def _within(self) -> bool:
        """Whether the net meets its limits as it is: it may not lose more."""
        widths = self.widths
        return all(limit.cost.estimate(widths) <= limit.most and limit.met(widths) for limit in self.limits)

    # -- removals ----------------------------------------------------------------------------------------------------

    def _dead(self, *, by_both: bool) -> dict[BranchRef, Tensor]:
        """What is dead: by the average, and by the importance itself where `by_both`."""
        threshold, averages = self.settings.threshold, self._averages()
        found = {}
        for ref, gamma in importances(self.net).items():
            mask = averages[ref].abs() <= threshold
            found[ref] = mask & (gamma.detach().abs() <= threshold) if by_both else mask
        return found

    def _look(self, done: int, *, last: bool) -> None:
        """Removes what is dead where the trigger is reached; at the end whatever the average says is dead."""
        by_average = self._dead(by_both=False)
        per_atom = self.cost.per_atom(self.widths)
        waiting = sum(per_atom[self._branch(ref)] * int(mask.sum()) for ref, mask in by_average.items())
        due = last or (waiting > 0 and waiting >= self.settings.delta * self._full_cost)
        dead = (by_average if last else self._dead(by_both=True)) if due else {}
        self._note(done, self._remove(self._of_the_first(dead)))

    def _of_the_first(self, marks: dict[BranchRef, Tensor]) -> dict[BranchRef, Tensor]:
        """The first rank's marks of atoms (bool [atoms] of a branch), whatever the others made out."""
        if self.ranks.world == 1:
            return marks
        here = {f"{ref.block} {ref.kernel}": (ref, gamma) for ref, gamma in importances(self.net).items()}
        mine = {name: marks[ref] for name, (ref, _) in here.items() if ref in marks}
        told = self.ranks.share(mine if self.ranks.leads else None)
        return {ref: told[name].to(gamma.device) for name, (ref, gamma) in here.items() if name in told}

    def _remove(self, dead: dict[BranchRef, Tensor]) -> dict[str, Any]:
        if not any(bool(mask.any()) for mask in dead.values()):
            return {"removed": 0}
        before = self._outputs()
        removed = remove_atoms(self.net, dead, optimizer=self.optimizer, shadows=[self.ema.shadow])
        after = self._outputs()
        self._collect()
        change = None if before is None or after is None else float((after - before).abs().max())
        return {"removed": removed, "logit_change": change}

    @torch.no_grad()
    def _outputs(self) -> Tensor | None:
        """What the net says of the probe, in inference; its state is left as it was."""
        if self.probe is None:
            return None
        training = self.net.training
        result: Tensor = self.net.eval()(self.probe)
        self.net.train(training)
        return result

    def _land(self, done: int) -> None:
        """Removes what is dead, then what does not fit; fills stairs. From here on the net only trains."""
        first = self.limits[0].cost
        threshold = self.settings.threshold
        dead = {ref: g.detach().abs() <= threshold for ref, g in importances(self.net).items()}
        row = self._remove(self._of_the_first(dead))
        controlled = first.total(first.deployed(self.widths))
        dead, widths = self._projected() if self.ranks.leads else ({}, ())
        dead = self._of_the_first(dead)
        row["projected"] = sum(int(mask.sum()) for mask in dead.values())
        remove_atoms(self.net, dead, optimizer=self.optimizer, shadows=[self.ema.shadow])
        row["added"] = self._fill(self.ranks.tell(widths))
        self._collect()
        self._met = True
        self.landing = Landing(
            done, first.total(self.space.full), controlled, first.total(self.widths), row.get("logit_change")
        )
        self._note(done, row)

    def _projected(self) -> tuple[dict[BranchRef, Tensor], Widths]:
        """The atoms that must go for the limits to be met, and the widths that branches are then filled up to.

        Raises:
            HwnasError: no removal meets the limits.
        """
        values = {
            self._branch(ref): gamma.detach().abs().double().cpu().numpy()
            for ref, gamma in importances(self.net).items()
        }
        found = project(self.space, values, self.limits, equal=isinstance(self.cost, EqualCost))
        if not found.met:
            raise HwnasError("the budget cannot be met by removing atoms: give a larger one")
        dead = {}
        for ref, gamma in importances(self.net).items():
            order = gamma.detach().abs().argsort(descending=True, stable=True)
            mask = torch.ones_like(gamma, dtype=torch.bool)
            mask[order[: found.keep[self._branch(ref)]]] = False
            dead[ref] = mask
        return dead, found.widths

    def _fill(self, widths: Widths) -> int:
        """Adds fresh atoms up to `widths`."""
        generator, added = torch_generator(step_rng(self.seed, "fill", 0)), 0
        for ref, branch in branches_of(self.net).items():
            block, place = self._branch(ref)
            more = widths[block][place] - branch.atoms
            if more > 0:
                add_atoms(self.net, ref, more, generator, optimizer=self.optimizer, shadows=[self.ema.shadow])
                added += more
        return added

    def _note(self, done: int, row: dict[str, Any]) -> None:
        if self.log is not None:
            widths = self.widths
            costs = {limit.cost.name: limit.cost.total(widths) for limit in self.limits}
            common = {"step": done, "atoms": sum(map(sum, widths)), "penalty": self.penalty, "excess": self._excess}
            self.log.add({**common, self.cost.name: self.cost.estimate(widths), **costs, **row})

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside tensors."""
        return {
            "widths": self.widths,
            "updates": self.ema.updates,
            "log_factor": self._controller.log_factor,
            "excess": self._excess,
            "met": self._met,
            "landing": None if self.landing is None else asdict(self.landing),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up a state; the net must be the supernet still, and gets the shape that the state says."""
        widths = tuple(tuple(map(int, row)) for row in state["widths"])
        cut_to(self.net, self.space.kernels, widths, optimizer=self.optimizer, shadows=[self.ema.shadow])
        self.ema.updates = int(state["updates"])
        self._controller.log_factor, self._excess = float(state["log_factor"]), float(state["excess"])
        self._met = bool(state["met"])
        self.landing = None if state["landing"] is None else Landing(**state["landing"])
        self._collect()

    def resumed(self, step: int) -> None:
        """Drops what was noted after `step`."""
        if self.log is not None:
            self.log.resume(step)
