"""What AtomNAS does in every step of the one training that searches and trains (Mei et al. 2020, algorithm 1)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hwnas.atom_costs import AtomCost, EqualCost
from hwnas.errors import HwnasError
from hwnas.nn.blocks import ChainNet
from hwnas.nn.shrink import BranchRef, add_atoms, branches_of, cut_to, groups_of, importances, remove_atoms, widths_of
from hwnas.search.atom_control import Controller
from hwnas.search.atom_projection import Limit, project
from hwnas.spaces.atoms import AtomSpace, Widths
from hwnas.spaces.widths import Branch
from hwnas.train.checkpoint import CheckpointStore, disk_errors, read_tensors, restore, tensors_of, write_atomically
from hwnas.train.checkpoint import write_tensors as write
from hwnas.train.ema import Ema, decay_at
from hwnas.train.loop import step_rng, torch_generator
from hwnas.train.recipe import Atoms

AHEAD = 0.03
"""Share of the training by which the controller looks ahead: importances fall for long before an atom is dead."""

COURSE_ENDS = 0.75
"""The course to the budget ends at this share of the way to where the net is projected."""


@dataclass(slots=True)
class Landing:
    """How a net came onto its budget. Costs are in the unit of the first budget.

    Attributes:
        step: when.
        before: what the supernet cost, `controlled` the net when the controller was done, `after` the net since then.
        logit_change: the largest change of an evaluated output on some images by removing what was dead, and
            `accuracy_before`, `accuracy_after` the validation accuracy around it.
    """

    step: int
    before: float
    controlled: float
    after: float
    logit_change: float | None = None

    def shares(self) -> dict[str, float]:
        """How much of the reduction came from the controller and how much from the projection."""
        whole = self.before - self.after
        if whole <= 0:
            return {"controller": 0.0, "projection": 0.0}
        by_projection = max(0.0, self.controlled - self.after) / whole
        return {"controller": 1 - by_projection, "projection": by_projection}


@dataclass(slots=True)
class Log:
    """atoms.jsonl: one line for each look at what is dead. A resume drops the lines that it makes again."""

    path: Path

    def rows(self) -> list[dict[str, Any]]:
        """The complete lines."""
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text().split("\n")[:-1]:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def resume(self, step: int) -> None:
        """Drops the lines after `step`."""
        kept = [row for row in self.rows() if row["step"] <= step]
        if self.path.is_file():
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def add(self, row: dict[str, Any]) -> None:
        """Appends a line."""
        with disk_errors(self.path), self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


@dataclass
class AtomTraining:
    """Penalty, averages, controller, removals: the hooks of one training.

    Attributes:
        space, net, optimizer: what trains.
        cost: what the penalty is in proportion to.
        limits: that the net has to meet; empty for a fixed lambda.
        settings: of the recipe.
        steps: of the training.
        seed: of atoms that are added.
        log: where each look is noted.
        probe: images [n, C, H, W] on which the change of outputs is measured; None measures none.
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
        self._excess = 1.0
        self._collect()

    # -- every step --------------------------------------------------------------------------------------------------

    def before_update(self, step: int, lr: float) -> None:
        """Adds the penalty's gradient, ``lambda * c_i * sign(alpha_i)`` (equation 5)."""
        del lr
        self.penalty = self._penalty(step)
        if self.penalty:
            signs = torch._foreach_sign([gamma.detach() for gamma in self._gammas])
            torch._foreach_mul_(signs, [self.penalty * price for price in self._prices])
            grads: list[Tensor] = [gamma.grad for gamma in self._gammas if gamma.grad is not None]
            torch._foreach_add_(grads, signs)

    def after_update(self, done: int) -> None:
        """Averages; now and then lambda, removals; once the projection."""
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

    def _penalty(self, step: int) -> float:
        progress = step / self.steps
        if not self.limits:
            ramp = min(1.0, progress / self.settings.ramp) if self.settings.ramp else 1.0
            return ramp * self.settings.penalty
        return 0.0 if self.landing is not None else self._controller.at(progress, self._excess)

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
        self._excess = max(limit.excess(limit.cost.estimate(widths), there) for limit in self.limits)
        progress = done / self.steps
        if progress >= self._controller.start:
            self._controller.update(progress + AHEAD, self._excess, self.settings.control_steps / self.steps)

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
        row: dict[str, Any] = {"removed": 0}
        if last or (waiting > 0 and waiting >= self.settings.delta * self._full_cost):
            row = self._remove(by_average if last else self._dead(by_both=True))
        self._note(done, row)

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
        row = self._remove({ref: g.detach().abs() <= threshold for ref, g in importances(self.net).items()})
        controlled = first.total(self.widths)
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
        row["projected"] = sum(int(mask.sum()) for mask in dead.values())
        remove_atoms(self.net, dead, optimizer=self.optimizer, shadows=[self.ema.shadow])
        row["added"] = self._fill(found.widths)
        self._collect()
        self.landing = Landing(
            done, first.total(self.space.full), controlled, first.total(self.widths), row.get("logit_change")
        )
        self._note(done, row)

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
        landing = self.landing
        return {
            "widths": self.widths,
            "updates": self.ema.updates,
            "log_factor": self._controller.log_factor,
            "excess": self._excess,
            "landing": None
            if landing is None
            else [landing.step, landing.before, landing.controlled, landing.after, landing.logit_change],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up a state; the net must be the supernet still, and gets the shape that the state says."""
        widths = tuple(tuple(map(int, row)) for row in state["widths"])
        cut_to(self.net, self.space.kernels, widths, optimizer=self.optimizer, shadows=[self.ema.shadow])
        self.ema.updates = int(state["updates"])
        self._controller.log_factor, self._excess = float(state["log_factor"]), float(state["excess"])
        self.landing = None if state["landing"] is None else Landing(*state["landing"])
        self._collect()


class Resumable(Protocol):
    """A method's training: what it knows beside tensors, its averages and its log."""

    log: Log | None

    @property
    def ema(self) -> Ema: ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside tensors, as JSON."""

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up a state, before the tensors are loaded."""


@dataclass(frozen=True, slots=True)
class AtomStore:
    """The checkpoints of a training that knows more than its tensors: averages, lambda, and the shape of its net."""

    files: CheckpointStore
    training: Resumable

    def save(self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
        """Writes net, optimizer, averages and what the method knows."""
        training = self.training
        text = json.dumps(training.state()).encode()
        tensors = {
            **tensors_of(module, optimizer),
            **{f"ema/{name}": tensor for name, tensor in training.ema.shadow.items()},
            "atoms/state": torch.frombuffer(bytearray(text), dtype=torch.uint8),
        }
        path = self.files.folder / f"{self.files.name}-{step:09d}.safetensors"
        write(path, tensors, step=step)
        self.files.drop_old()
        return path

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Restores the newest good checkpoint; returns its step, 0 where there is none.

        Raises:
            HwnasError: there are checkpoints and none of them can be read.
        """
        problems = []
        for path in self.files.paths():
            try:
                tensors, step = read_tensors(path)
                state = json.loads(bytes(tensors["atoms/state"].numpy()))
            except (HwnasError, KeyError, ValueError) as error:
                problems.append(str(error))
                continue
            self.training.restore(state)
            restore(tensors, module, optimizer, f"checkpoint {path}")
            shadow = self.training.ema.shadow
            for name, tensor in shadow.items():
                tensor.copy_(tensors[f"ema/{name}"])
            if self.training.log is not None:
                self.training.log.resume(step)
            return step
        if problems:
            raise HwnasError(f"{problems[0]}; no older one is left: remove {self.files.folder} to begin again")
        if self.training.log is not None:
            self.training.log.resume(0)
        return 0
