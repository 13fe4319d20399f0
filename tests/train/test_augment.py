"""Augmentation: what it keeps, what it changes, and that it depends on its generator alone."""

from __future__ import annotations

import torch

from hwnas.train.augment import augmented, colour_jitter, resized_crop
from hwnas.train.recipe import Phase


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


IMAGES = torch.randint(0, 256, (64, 3, 16, 16), generator=generator(9), dtype=torch.uint8)
PHASE = Phase(steps=1, batch_size=64, optimizer="sgd", lr=0.1, crop_scale=0.3, jitter=0.4, crop_padding=2)


def test_all_together_is_a_function_of_the_generator_within_the_range_of_pixels() -> None:
    first, again, other = (augmented(IMAGES, PHASE, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == IMAGES.shape
    assert float(first.min()) >= 0
    assert float(first.max()) <= 255


def test_crops_of_a_ramp_are_smaller_ramps_from_anywhere() -> None:
    ramp = torch.arange(32.0).view(1, 1, 1, 32).expand(500, 3, 32, 32)
    crops = resized_crop(ramp, 0.25, generator())[:, 0, 16]
    widths = (crops[:, -2] - crops[:, 1]) / 29  # one pixel of the ramp where everything is kept
    assert 0.25**0.5 * 0.75**0.5 - 0.01 < float(widths.min()) < 0.5
    assert 0.9 < float(widths.max()) <= 1.001
    left, right = crops[:, 1], 31 - crops[:, -2]
    assert abs(float(left.mean() - right.mean())) < 1.0  # from anywhere, not from one side


def test_a_grey_shade_stays_grey_and_only_gets_brighter_or_darker() -> None:
    out = colour_jitter(torch.full((200, 3, 4, 4), 100.0), 0.4, generator())
    assert torch.allclose(out, out[:, :1, :1, :1].expand_as(out), atol=1e-3)
    assert 59.9 < float(out.min()) < 70
    assert 130 < float(out.max()) < 140.1


def test_saturation_and_contrast_change_colours_and_edges() -> None:
    coloured = torch.full((200, 3, 4, 4), 100.0)
    coloured[:, 0] = 150
    ratio = (
        colour_jitter(coloured, 0.4, generator())[:, 0, 0, 0] / colour_jitter(coloured, 0.4, generator())[:, 1, 0, 0]
    )
    assert float(ratio.min()) < 1.35
    assert float(ratio.max()) > 1.65
    edge = torch.full((200, 3, 4, 4), 100.0)
    edge[..., :2] = 140
    out = colour_jitter(edge, 0.4, generator())
    ratio = out[:, 0, 0, 0] / out[:, 0, 0, 3]
    assert float(ratio.min()) < 1.3
    assert float(ratio.max()) > 1.5
