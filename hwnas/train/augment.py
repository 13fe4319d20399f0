"""Augmentation of whole batches of uint8 images, with all randomness from one `torch.Generator`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from hwnas.train.recipe import Phase


def augmented(images: torch.Tensor, phase: Phase, generator: torch.Generator) -> torch.Tensor:
    """Images [N, C, H, W] with the crops, colours and flips that `phase` asks for; values stay within 0 to 255."""
    images = pad_and_crop(images, phase.crop_padding, generator)
    if phase.crop_scale < 1:
        images = resized_crop(images, phase.crop_scale, generator)
    if phase.jitter:
        images = colour_jitter(images, phase.jitter, generator)
    return random_flip(images, generator) if phase.flip else images


def pad_and_crop(images: torch.Tensor, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Each image [N, C, H, W] padded with zeros on every side and cut back to its size at a place of its own."""
    import torch

    if padding == 0:
        return images
    count, _, height, width = images.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=generator).to(images.device)
    padded = torch.nn.functional.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [N, C, 2p+1, 2p+1, H, W], a view
    return windows[torch.arange(count, device=images.device), :, offsets[0], offsets[1]]


def random_flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image mirrored left to right with probability one half."""
    import torch

    flip = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)


ASPECT = 4 / 3
"""A resized crop is up to so many times as wide as high, or as high as wide."""


def resized_crop(images: torch.Tensor, least: float, generator: torch.Generator) -> torch.Tensor:
    """A rectangle of each image, of `least` to 1 of its area, scaled (bilinear) to the whole size; float."""
    import torch

    count, channels, height, width = images.shape
    draws = torch.rand((4, count), generator=generator)
    area = least + (1 - least) * draws[0]
    stretch = ASPECT ** (draws[1] - 0.5)  # the square root of an aspect between 1 / ASPECT and ASPECT
    sides = torch.stack([area.sqrt() * stretch, area.sqrt() / stretch]).clamp(max=1.0)
    middles = (2 * draws[2:] - 1) * (1 - sides)
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0], affine[:, 1, 1] = sides
    affine[:, 0, 2], affine[:, 1, 2] = middles
    grid = torch.nn.functional.affine_grid(
        affine.to(images.device), [count, channels, height, width], align_corners=False
    )
    return torch.nn.functional.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


_GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma of ITU-R BT.601."""


def colour_jitter(images: torch.Tensor, amount: float, generator: torch.Generator) -> torch.Tensor:
    """RGB images with brightness, contrast and saturation each multiplied by 1 - amount to 1 + amount; float.

    In that order: the order makes little difference, and one for the whole batch is several times faster.
    """
    import torch

    factors = (1 + amount * (2 * torch.rand((3, len(images), 1, 1, 1), generator=generator) - 1)).to(images.device)
    weights = torch.tensor(_GREY, device=images.device).view(1, 3, 1, 1)
    images = (images.float() * factors[0]).clamp(0, 255)
    mean = (images * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = (mean + (images - mean) * factors[1]).clamp(0, 255)
    grey = (images * weights).sum(1, keepdim=True)
    return (grey + (images - grey) * factors[2]).clamp(0, 255)
