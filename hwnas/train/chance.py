"""Chance without a state: a step's generator is a function of seed, use and step, so that a kill loses nothing."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def step_rng(seed: int, stream: str, step: int) -> np.random.Generator:
    """The generator of one step (or epoch) of one use: the same arguments always give the same numbers."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(stream.encode()), step]))


def torch_generator(rng: np.random.Generator) -> torch.Generator:
    """A `torch.Generator` seeded from `rng`."""
    import torch

    return torch.Generator().manual_seed(int(rng.integers(2**62)))
