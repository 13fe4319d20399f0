"""A small supernet and thirty pictures of noise to train it on."""

from __future__ import annotations

import torch

from hwnas.nn.supernet import SinglePathSupernet
from hwnas.spaces import get_space
from hwnas.train.batches import Batches
from hwnas.train.data import Images, Normalisation
from hwnas.train.recipe import Phase

SPACE = get_space("proxyless-tiny", num_classes=3)


def phase(**changes: object) -> Phase:
    fields = {"steps": 20, "batch_size": 4, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.1, "warmup_steps": 4}
    return Phase.model_validate({**fields, "crop_padding": 1, **changes})


def batches(recipe: Phase, seed: int = 0) -> Batches:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 3, 28, 28), generator=generator, dtype=torch.uint8)
    return Batches(Images(images, torch.arange(30) % 3), Normalisation.of(images), recipe, seed, "supernet")


def supernet() -> SinglePathSupernet:
    return SPACE.supernet(generator=torch.Generator().manual_seed(0))
