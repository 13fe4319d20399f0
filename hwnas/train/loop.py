"""The training loop: a supernet by sampled single paths, or a found net; by one process, or by several in step.

Nothing random has a state. The path, the order of the images and their augmentation are functions of the seed and the
step, so that a run killed at any moment goes on from its last checkpoint to bit for bit the same weights (on a CPU,
with the same number of threads).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.nn.blocks import Dropout
from hwnas.progress import Progress
from hwnas.train.batches import Batches
from hwnas.train.chance import step_rng, torch_generator
from hwnas.train.checkpoint import Carried, CheckpointStore, restore, tensors_of
from hwnas.train.metrics import MetricsLog
from hwnas.train.optimizers import make_optimizer, set_rates
from hwnas.train.ranks import SOLO, Ranks

if TYPE_CHECKING:
    from hwnas.nn.supernet import SinglePathSupernet
    from hwnas.train.paths import Paths

CHECKPOINT_INTERVAL_S = 20.0
LOG_STEPS = 10
"""Steps between two rows of metrics.csv; the loss is looked at, and a NaN found, then."""


class Hooks(Carried, Protocol):
    """What a method does in every step beside the loss; checkpoints and other ranks get what it knows."""

    def before_update(self, step: int, lr: float) -> None:
        """The gradients of a step (from 0) are there and can be added to."""

    def after_update(self, done: int) -> None:
        """So many steps are done; no graph refers to the parameters."""


def train(
    module: nn.Module,
    batches: Batches,
    *,
    forward: Callable[[Tensor, int], Tensor],
    progress: Progress,
    description: str,
    store: CheckpointStore | None = None,
    metrics: MetricsLog | None = None,
    stop_after: int | None = None,
    ranks: Ranks = SOLO,
    optimizer: torch.optim.Optimizer | None = None,
    hooks: Hooks | None = None,
) -> int:
    """Trains `module` to the end of the phase, from its last checkpoint where there is one.

    Several `ranks` train in step, each on its part of every batch, with the weights that the first one begins with.
    Gradients are averaged, so that all make the same update; BatchNorm sees a rank's own images, as it would in so many
    groups of one process. `store` and `metrics` are the first rank's, and what `hooks` decide is its decision.

    Args:
        module: changed in place; its parameters are moved to channels_last.
        batches: data, augmentation and the phase (steps, optimizer, schedule).
        forward: class scores of a batch in a step; a supernet chooses its path by the step.
        progress: is told of every step.
        description: of the progress.
        store: where checkpoints go, every `CHECKPOINT_INTERVAL_S` seconds and at the end; None keeps none.
        metrics: where losses go.
        stop_after: does no more than this many steps now (to time them); the schedule is not changed.
        ranks: the processes that train together.
        optimizer: None is that of the phase.
        hooks: what a method does beside the loss; it may change the module's and the optimizer's parameters.

    Returns:
        Steps done in all, those before a resume included.

    Raises:
        HwnasError: the loss is not a number any more, or no checkpoint can be read.
    """
    phase = batches.phase
    batches = batches.part(ranks) if ranks.world > 1 else batches
    module.to(batches.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = optimizer or make_optimizer(module, phase)
    first = store.load(module, optimizer, hooks) if store and ranks.leads else 0
    first = share_state(first, module, optimizer, ranks, hooks)
    seconds = metrics.resume(first) if metrics and ranks.leads else 0.0
    last = phase.steps if stop_after is None else min(phase.steps, first + stop_after)
    loss_function = nn.CrossEntropyLoss(label_smoothing=phase.label_smoothing)
    book = _Book(module, optimizer, hooks, store, metrics, ranks, seconds, f"{description}, lr {phase.lr:g}", first)
    dropouts = [part for part in module.modules() if isinstance(part, Dropout)]
    with progress.start(phase.steps, description, first) as task:
        for step in range(first, last):
            lr = set_rates(optimizer, phase, step)
            images, labels = batches.at(step)
            for place, dropout in enumerate(dropouts):
                stream = batches.of_rank(f"{batches.stream} dropout {place}")
                dropout.generator = torch_generator(step_rng(batches.seed, stream, step))
            optimizer.zero_grad(set_to_none=True)
            loss = loss_function(forward(images, step), labels)
            loss.backward()
            ranks.average_gradients(module.parameters())
            if hooks:
                hooks.before_update(step, lr)
            optimizer.step()
            book.losses.append(loss.detach())
            done = step + 1
            if hooks:
                del loss  # its graph knows the shapes of parameters that may be about to change
                hooks.after_update(done)
            if done % LOG_STEPS == 0 or done == last:
                book.keep(done, lr, ended=done == last)
            task.advance()
    return max(first, last)


def share_state(
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    carried: Carried | None = None,
) -> int:
    """Gives every rank the first one's weights, optimizer state, what it carries, and step. Returns the step."""
    if ranks.world == 1:
        return step
    shared = ranks.share(tensors_of(module, optimizer, carried) if ranks.leads else None)
    if not ranks.leads:
        restore(shared, module, optimizer, "the state of the first process", carried)
    return int(ranks.tell(step))


@dataclass(slots=True)
class _Book:
    """What a training looks at and writes every `LOG_STEPS` steps."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    carried: Carried | None
    store: CheckpointStore | None
    metrics: MetricsLog | None
    ranks: Ranks
    seconds: float
    description: str
    saved_step: int
    losses: list[Tensor] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    def keep(self, done: int, lr: float, *, ended: bool) -> None:
        """A row of the log, and a checkpoint where one is due.

        Raises:
            HwnasError: a loss, or a weight that is to be saved, is not a number.
        """
        losses = self.ranks.mean(torch.stack(self.losses)).tolist()  # the same on all ranks: so is the judgement
        self.losses.clear()
        for step, loss in enumerate(losses, done - len(losses) + 1):
            if not math.isfinite(loss):
                raise self._broken(f"the loss became {loss} at step {step}")
        if not self.ranks.leads:
            return
        now = time.monotonic()
        mean = math.fsum(losses) / len(losses)
        if self.metrics:
            self.metrics.add(done, mean, lr, self.seconds + now - self.began)
        # Only here, where the loss was just seen to be a number and no row lies between log and checkpoint.
        if self.store and (ended or now - self.saved >= CHECKPOINT_INTERVAL_S):
            if not all(bool(norm.isfinite()) for norm in torch._foreach_norm(list(self.module.parameters()))):
                raise self._broken(f"a weight is not a number after step {done}")
            self.store.save(done, self.module, self.optimizer, self.carried)
            self.saved, self.saved_step = time.monotonic(), done

    def _broken(self, what: str) -> HwnasError:
        kept = f"the checkpoint of step {self.saved_step} is kept" if self.saved_step else "it has no checkpoint yet"
        return HwnasError(
            f"{what} ({self.description}): lower its learning rates in the recipe and choose another --out; {kept}"
        )


def train_supernet(
    supernet: SinglePathSupernet,
    batches: Batches,
    *,
    progress: Progress,
    paths: Paths | None = None,
    store: CheckpointStore | None = None,
    metrics: MetricsLog | None = None,
    stop_after: int | None = None,
    ranks: Ranks = SOLO,
) -> int:
    """Trains a supernet, one path a step, sampled uniformly where `paths` says nothing else; see `train`."""
    from hwnas.train.paths import uniform_paths

    taken = paths or uniform_paths(supernet.space, batches.seed)

    warm_up = batches.phase.widening * batches.phase.steps

    def forward(images: Tensor, step: int) -> Tensor:
        scores: Tensor = supernet(images, supernet.space.widened(taken(step), step / warm_up if warm_up else 1.0))
        return scores

    return train(
        supernet,
        batches,
        forward=forward,
        progress=progress,
        description="supernet steps",
        store=store,
        metrics=metrics,
        stop_after=stop_after,
        ranks=ranks,
    )
