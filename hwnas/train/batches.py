"""`Batches`: the images of every step, a function of the seed and the step alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hwnas.errors import HwnasError
from hwnas.train.augment import augmented
from hwnas.train.chance import step_rng, torch_generator
from hwnas.train.data import Images, Normalisation
from hwnas.train.ranks import Ranks
from hwnas.train.recipe import Phase


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
