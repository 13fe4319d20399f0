"""The training loop: a supernet by sampled single paths, or a found net; by one process, or by several in step.

Nothing random has a state. The path, the order of the images and their augmentation are functions of the seed and the
step, so that a run killed at any moment goes on from its last checkpoint to bit for bit the same weights (on a CPU,
with the same number of threads).
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.nn.blocks import Dropout
from hwnas.progress import Progress
from hwnas.train.augment import augmented
from hwnas.train.chance import step_rng as step_rng
from hwnas.train.chance import torch_generator as torch_generator
from hwnas.train.checkpoint import Carried, CheckpointStore, disk_errors, restore, tensors_of, write_atomically
from hwnas.train.data import Images, Normalisation
from hwnas.train.ranks import SOLO, Ranks
from hwnas.train.recipe import Phase
from hwnas.train.rmsprop import RMSProp

if TYPE_CHECKING:
    from hwnas.nn.supernet import SinglePathSupernet
    from hwnas.train.paths import Paths

CHECKPOINT_INTERVAL_S = 20.0
LOG_STEPS = 10
"""Steps between two rows of metrics.csv; the loss is looked at, and a NaN found, then."""


def learning_rate(phase: Phase, step: int) -> float:
    """Learning rate of a step (from 0): linear warm-up to the peak, then decay; linear and cosine end at 0."""
    if step < phase.warmup_steps:
        return phase.lr * (step + 1) / (phase.warmup_steps + 1)
    if phase.schedule == "staircase":
        return float(phase.lr * phase.decay ** ((step - phase.warmup_steps) // phase.decay_steps))
    if phase.schedule == "exponential":
        return float(phase.lr * phase.decay ** ((step - phase.warmup_steps) / phase.decay_steps))
    progress = (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps)
    left = 1 - progress if phase.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return phase.lr * left


def set_rates(optimizer: torch.optim.Optimizer, phase: Phase, step: int) -> float:
    """Sets an optimizer's learning rates for a step, and Adam's epsilon where it is TensorFlow's; returns the rate.

    TensorFlow 1 divides by ``sqrt(v) + eps`` with v not yet corrected for its bias: in torch's terms, by an epsilon
    that is ``1 / sqrt(1 - beta2^t)`` times as large.
    """
    lr = learning_rate(phase, step)
    for group in optimizer.param_groups:
        group["lr"] = lr
        if phase.tf_epsilon and "eps" in group:
            group["eps"] = phase.eps / math.sqrt(1 - group["betas"][1] ** (step + 1))
    return lr


def make_optimizer(module: nn.Module, phase: Phase) -> torch.optim.Optimizer:
    """The optimizer of a phase; weight decay on parameters of two or more dimensions only.

    A parameter without a gradient is left alone by both: no decay, no momentum, no step counted. That is what keeps
    the choices that a path did not take unchanged. Of a weight that choices slice, a supernet guards the rest.
    """
    optimizer = _optimizer(module, phase)
    if guard := getattr(module, "guard", None):
        guard(optimizer)
    return optimizer


def _optimizer(module: nn.Module, phase: Phase) -> torch.optim.Optimizer:
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": phase.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if phase.optimizer == "rmsprop":
        return RMSProp(groups, lr=phase.lr, momentum=phase.momentum)
    if phase.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=phase.lr, momentum=phase.momentum, foreach=True)
    if phase.optimizer == "adam":
        return torch.optim.Adam(groups, lr=phase.lr, eps=phase.eps, foreach=True)
    return torch.optim.AdamW(groups, lr=phase.lr, eps=phase.eps, fused=True)


@lru_cache(maxsize=2)
def _order(seed: int, stream: str, epoch: int, count: int) -> NDArray[np.int64]:
    return step_rng(seed, f"{stream} order", epoch).permutation(count)


@dataclass(frozen=True, slots=True)
class Batches:
    """The augmented, normalised batches of a training, each a function of its step.

    Attributes:
        data, normalisation: images, and what is done to them.
        phase: the batch size and the augmentation.
        seed, stream: of the chance.
        device: of torch.
        rank, world: of several processes each gets an equal part of every batch; see `part`.
    """

    data: Images
    normalisation: Normalisation
    phase: Phase
    seed: int
    stream: str
    device: str = "cpu"
    rank: int = 0
    world: int = 1

    def part(self, ranks: Ranks) -> Batches:
        """The part of every batch that one of `ranks` trains on.

        Raises:
            HwnasError: the batch cannot be divided evenly, or into parts of less than two images.
        """
        size = self.phase.batch_size
        if size % ranks.world or size // ranks.world < 2:
            raise HwnasError(
                f"a batch of {size} cannot be divided among {ranks.world} processes: change batch_size in the recipe "
                "to a multiple of their number, of at least two images each"
            )
        return replace(self, rank=ranks.rank, world=ranks.world)

    @property
    def per_epoch(self) -> int:
        """Whole batches in one pass over the images."""
        return max(1, len(self.data) // self.phase.batch_size)

    def of_rank(self, stream: str) -> str:
        """A stream of chance that every process has for itself."""
        return f"{stream} {self.rank}" if self.rank else stream

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Images and labels of a step; every epoch is a permutation of its own."""
        epoch, place = divmod(step, self.per_epoch)
        order = _order(self.seed, self.stream, epoch, len(self.data))
        whole = order[place * self.phase.batch_size : (place + 1) * self.phase.batch_size]
        batch = self.data.take(whole[self.rank :: self.world])
        generator = torch_generator(step_rng(self.seed, self.of_rank(f"{self.stream} augment"), step))
        images = augmented(batch.images.to(self.device), self.phase, generator)
        return self.normalisation(images), batch.labels.to(self.device)


@dataclass(slots=True)
class MetricsLog:
    """metrics.csv: steps done, mean loss since the last row, lr, seconds of training so far.

    A resume drops the rows that it makes again, so that no step is there twice.
    """

    path: Path
    HEADER = ("step", "loss", "lr", "seconds")

    def resume(self, step: int) -> float:
        """Drops the rows after `step`, which are about to be made again. Returns the seconds of the last row left."""
        rows = self.rows()
        kept = [row for row in rows if int(row[0]) <= step]
        before = self.path.read_text() if self.path.is_file() else ""
        if kept != rows or not before.endswith("\n"):  # the next row must not be appended to a torn one
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([self.HEADER, *kept])
            write_atomically(self.path, text.getvalue().encode())
        return float(kept[-1][3]) if kept else 0.0

    def rows(self) -> list[list[str]]:
        """The complete rows, without the header; a torn last line is left out."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text().split("\n")[:-1]
        return [row for row in csv.reader(lines[1:]) if len(row) == len(self.HEADER)]

    def add(self, step: int, loss: float, lr: float, seconds: float) -> None:
        """Appends a row."""
        with disk_errors(self.path), self.path.open("a") as file:
            file.write(f"{step},{loss:.6g},{lr:.6g},{seconds:.1f}\n")


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
        kept = f"the checkpoint of step {self.saved_step} is kept" if self.saved_step else "there is no checkpoint yet"
        return HwnasError(f"{what} ({self.description}): lower lr in the recipe and choose another --out; {kept}")


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
