"""Accuracy: of candidates inside a supernet and of plain nets, on fixed images that are prepared once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.spaces.base import Arch
from hwnas.train.data import DataSplits, Images, Normalisation, balanced_subset
from hwnas.train.recalibrate import recalibrate
from hwnas.train.recipe import Scoring

if TYPE_CHECKING:
    from hwnas.nn.supernet import SinglePathSupernet

CACHE_LIMIT_BYTES = 2**30
"""Images that need more than this as float32 are normalised anew each time they are used."""


@dataclass(slots=True)
class FixedImages:
    """Images that are used again and again, in batches; normalised once where that fits into memory."""

    data: Images
    normalisation: Normalisation
    batch_size: int
    device: str = "cpu"
    _cache: list[Tensor] = field(default_factory=list)

    def prepare(self) -> None:
        """Fills the cache; afterwards several threads may read."""
        if not self._cache and 4 * self.data.images.numel() <= CACHE_LIMIT_BYTES:
            self._cache = list(self._normalised())

    def images(self) -> Iterator[Tensor]:
        """Normalised batches."""
        self.prepare()
        yield from self._cache or self._normalised()

    def _normalised(self) -> Iterator[Tensor]:
        return (self.normalisation(part.to(self.device)) for part in torch.split(self.data.images, self.batch_size))

    def accuracy(self, forward: Callable[[Tensor], Tensor]) -> float:
        """Fraction of images whose highest score is their label's."""
        correct = 0
        with torch.inference_mode():
            for images, labels in zip(self.images(), torch.split(self.data.labels, self.batch_size), strict=True):
                correct += int((forward(images).argmax(dim=1).cpu() == labels).sum())
        return correct / len(self.data)


def recalibration_images(splits: DataSplits, scoring: Scoring, *, seed: int, device: str = "cpu") -> FixedImages:
    """The training images that BatchNorm statistics are recomputed on, fixed by the data and the seed."""
    count = min(scoring.recalibrate_images, len(splits.train))
    size = min(scoring.batch_size, count)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xCA11]))
    chosen = rng.permutation(len(splits.train))[: count - count % size]  # whole batches: each counts the same
    return FixedImages(splits.train.take(chosen), splits.normalisation, size, device)


class Evaluator:
    """Scores architectures with a supernet's weights: recalibrates, then measures validation accuracy.

    The images are fixed by the data and the seed, so that a score depends on nothing but weights and genes.

    Args:
        supernet: trained; an evaluation leaves it as it was.
        splits: recalibration images come from `train`, accuracy from `val`.
        scoring: how many of each.
        seed: of the choice of images.
    """

    def __init__(
        self, supernet: SinglePathSupernet, splits: DataSplits, scoring: Scoring, *, seed: int, device: str = "cpu"
    ) -> None:
        self.supernet = supernet
        self._train = recalibration_images(splits, scoring, seed=seed, device=device)
        subset = balanced_subset(splits.val.labels.numpy(), scoring.val_images, seed=seed)
        self._val = FixedImages(splits.val.take(subset), splits.normalisation, scoring.batch_size, device)

    def recalibrate(self, genes: Sequence[int]) -> None:
        """Sets the BatchNorm statistics of a path's layers to its own."""
        path = nn.ModuleList([self.supernet.stem, self.supernet.fixed, *self.supernet.path(genes), self.supernet.head])
        recalibrate(path, lambda images: self.supernet(images, genes), self._train.images())

    def __call__(self, genes: Sequence[int]) -> float:
        """Validation accuracy of an architecture, 0 to 1."""
        return next(self.scores([genes]))

    def scores(self, archs: Sequence[Sequence[int]], threads: int = 1) -> Iterator[float]:
        """Validation accuracies of `archs`, in their order.

        One architecture a thread, each on a core of its own: small layers do not keep several cores busy together. A
        score does not depend on `threads`.
        """
        for images in (self._train, self._val):
            images.prepare()
        threads_of_torch = torch.get_num_threads()
        pool = ThreadPoolExecutor(max(1, threads), initializer=torch.set_num_threads, initargs=(1,))
        try:
            yield from pool.map(self._score, archs)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads_of_torch)

    def _score(self, genes: Sequence[int]) -> float:
        net = self.supernet.extract(Arch(self.supernet.space.name, tuple(genes)))
        recalibrate(net, net, self._train.images())
        net.eval()
        return self._val.accuracy(net)


def accuracy(module: nn.Module, data: Images, normalisation: Normalisation, *, device: str = "cpu") -> float:
    """Accuracy of a plain net on a split, in inference mode."""
    module.eval()
    return FixedImages(data, normalisation, 250, device).accuracy(module)
