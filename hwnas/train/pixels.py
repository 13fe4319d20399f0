"""Pixels as training takes them: RGB, square, bytes in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hwnas.errors import HwnasError
from hwnas.memory import free_memory_bytes
from hwnas.train.data import Images

if TYPE_CHECKING:
    from PIL.Image import Image

MEMORY_SHARE = 0.5
"""The images of one split may fill this share of the free memory."""


def square(image: Image, size: int) -> np.ndarray:
    """RGB, the shorter side resized to `size`, the middle cut out: [3, size, size]."""
    from PIL import Image as Pil

    rgb = image.convert("RGB")
    width, height = rgb.size
    if (width, height) != (size, size):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        rgb = rgb.resize((size, size), Pil.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(rgb, np.uint8).transpose(2, 0, 1)


def images_of(pixels: np.ndarray, labels: np.ndarray, size: int) -> Images:
    """Grey images [N, H, W] as RGB at `size`."""
    from PIL import Image

    if pixels.shape[1:] != (size, size):
        pixels = np.stack([square(Image.fromarray(image), size)[0] for image in pixels])
    return as_images(np.repeat(pixels[:, None], 3, axis=1), labels)


def as_images(pixels: np.ndarray, labels: np.ndarray) -> Images:
    """RGB images uint8 [N, 3, size, size] with their labels int64 [N]."""
    import torch

    return Images(torch.from_numpy(pixels), torch.from_numpy(labels))


def check_memory(count: int, size: int, what: str) -> None:
    """Refuses images that would fill more than `MEMORY_SHARE` of the free memory.

    Raises:
        HwnasError: it says how much is needed and how much there is.
    """
    needed, free = 3 * count * size * size, free_memory_bytes()
    if needed > MEMORY_SHARE * free:
        raise HwnasError(
            f"{what}: {count} images of {size} px need {needed / 2**30:.1f} GiB in memory, and half of the free "
            f"{free / 2**30:.1f} GiB is the limit: use a smaller --image-size or fewer images"
        )
