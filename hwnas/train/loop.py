"""The training loop: a supernet by uniformly sampled single paths, or a found net.

Nothing random has a state. The path, the order of the images and their augmentation are functions of the seed and the
step, so that a run killed at any moment goes on from its last checkpoint to bit for bit the same weights (on a CPU,
with the same number of threads).
"""

from __future__ import annotations

import csv
import io
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
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
from hwnas.train.augment import pad_and_crop, random_flip
from hwnas.train.checkpoint import CheckpointStore, disk_errors, write_atomically
from hwnas.train.data import Images, Normalisation
from hwnas.train.recipe import Phase
from hwnas.train.rmsprop import RMSProp

if TYPE_CHECKING:
    from hwnas.nn.supernet import SinglePathSupernet
    from hwnas.spaces.base import Space

CHECKPOINT_INTERVAL_S = 20.0
LOG_STEPS = 10
"""Steps between two rows of metrics.csv; the loss is looked at, and a NaN found, then."""


def step_rng(seed: int, stream: str, step: int) -> np.random.Generator:
    """The generator of one step (or epoch) of one use: the same arguments always give the same numbers."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(stream.encode()), step]))


def torch_generator(rng: np.random.Generator) -> torch.Generator:
    """A `torch.Generator` seeded from `rng`."""
    return torch.Generator().manual_seed(int(rng.integers(2**62)))


def sampled_path(space: Space, seed: int, step: int) -> tuple[int, ...]:
    """The path that a supernet's training takes in a step: uniform over every slot's choices (SPOS, 3.2)."""
    return space.sample(step_rng(seed, "path", step)).genes


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
    """The augmented, normalised batches of a training, each a function of its step."""

    data: Images
    normalisation: Normalisation
    phase: Phase
    seed: int
    stream: str
    device: str = "cpu"

    @property
    def per_epoch(self) -> int:
        """Whole batches in one pass over the images."""
        return max(1, len(self.data) // self.phase.batch_size)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Images and labels of a step; every epoch is a permutation of its own."""
        epoch, place = divmod(step, self.per_epoch)
        order = _order(self.seed, self.stream, epoch, len(self.data))
        batch = self.data.take(order[place * self.phase.batch_size : (place + 1) * self.phase.batch_size])
        generator = torch_generator(step_rng(self.seed, f"{self.stream} augment", step))
        images = pad_and_crop(batch.images.to(self.device), self.phase.crop_padding, generator)
        if self.phase.flip:
            images = random_flip(images, generator)
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


class Hooks(Protocol):
    """What a method does in every step beside the loss."""

    def before_update(self, step: int, lr: float) -> None:
        """The gradients of a step (from 0) are there and can be added to."""

    def after_update(self, done: int) -> None:
        """So many steps are done; no graph refers to the parameters."""


class Store(Protocol):
    """Where checkpoints go: a `CheckpointStore`, or one that keeps more."""

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Restores the newest checkpoint; returns its step, 0 where there is none."""

    def save(self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
        """Writes the state after `step` steps."""


def train(
    module: nn.Module,
    batches: Batches,
    *,
    forward: Callable[[Tensor, int], Tensor],
    progress: Progress,
    description: str,
    store: Store | None = None,
    metrics: MetricsLog | None = None,
    stop_after: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    hooks: Hooks | None = None,
) -> int:
    """Trains `module` to the end of the phase, from its last checkpoint where there is one.

    Args:
        module: changed in place; its parameters are moved to channels_last.
        batches: data, augmentation and the phase (steps, optimizer, schedule).
        forward: class scores of a batch in a step; a supernet chooses its path by the step.
        progress: is told of every step.
        description: of the progress.
        store: where checkpoints go, every `CHECKPOINT_INTERVAL_S` seconds and at the end; None keeps none.
        metrics: where losses go.
        stop_after: does no more than this many steps now (to time them); the schedule is not changed.
        optimizer: None is that of the phase.
        hooks: what a method does beside the loss; it may change the module's and the optimizer's parameters.

    Returns:
        Steps done in all, those before a resume included.

    Raises:
        HwnasError: the loss is not a number any more, or no checkpoint can be read.
    """
    phase = batches.phase
    module.to(batches.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = optimizer or make_optimizer(module, phase)
    first = store.load(module, optimizer) if store else 0
    seconds = metrics.resume(first) if metrics else 0.0
    last = phase.steps if stop_after is None else min(phase.steps, first + stop_after)
    loss_function = nn.CrossEntropyLoss(label_smoothing=phase.label_smoothing)
    began = saved = time.monotonic()
    losses: list[Tensor] = []
    dropouts = [part for part in module.modules() if isinstance(part, Dropout)]
    with progress.start(phase.steps, description, first) as task:
        for step in range(first, last):
            lr = set_rates(optimizer, phase, step)
            images, labels = batches.at(step)
            for place, dropout in enumerate(dropouts):
                dropout.generator = torch_generator(step_rng(batches.seed, f"{batches.stream} dropout {place}", step))
            optimizer.zero_grad(set_to_none=True)
            loss = loss_function(forward(images, step), labels)
            loss.backward()
            if hooks:
                hooks.before_update(step, lr)
            optimizer.step()
            losses.append(loss.detach())
            done = step + 1
            if hooks:
                del loss  # its graph knows the shapes of parameters that may be about to change
                hooks.after_update(done)
            if done % LOG_STEPS == 0 or done == last:
                mean = float(torch.stack(losses).mean())
                losses.clear()
                if not math.isfinite(mean):
                    raise HwnasError(
                        f"the loss became {mean} at step {done} ({description}): lower the lr of {phase.lr:g}"
                    )
                now = time.monotonic()
                if metrics:
                    metrics.add(done, mean, lr, seconds + now - began)
                # Only here, where the loss was just seen to be a number and no row lies between log and checkpoint.
                if store and (now - saved >= CHECKPOINT_INTERVAL_S or done == last):
                    store.save(done, module, optimizer)
                    saved = time.monotonic()
            task.advance()
    return max(first, last)


def train_supernet(
    supernet: SinglePathSupernet,
    batches: Batches,
    *,
    progress: Progress,
    store: CheckpointStore | None = None,
    metrics: MetricsLog | None = None,
    stop_after: int | None = None,
) -> int:
    """Trains a supernet, one uniformly sampled path a step; see `train`."""

    warm_up = batches.phase.widening * batches.phase.steps

    def forward(images: Tensor, step: int) -> Tensor:
        path = sampled_path(supernet.space, batches.seed, step)
        scores: Tensor = supernet(images, supernet.space.widened(path, step / warm_up if warm_up else 1.0))
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
    )
