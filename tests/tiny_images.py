"""A tiny data set of coloured squares as PNG files, made anew by every test that wants it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")


def write_images(folder: Path, count: int, *, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> None:
    """`count` images of each class into folder/CLASS/*.png; the class's channel is the brightest."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 160, (28, 28, 3))
            pixels[..., {"red": 0, "green": 1, "blue": 2}.get(name, 0)] += 90
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:03d}.png")


def write_dataset(root: Path, *, train: int = 20, val: int = 0, test: int = 4) -> Path:
    """Splits with this many images of each class; 0 leaves a split out."""
    for seed, (split, count) in enumerate({"train": train, "val": val, "test": test}.items()):
        if count:
            write_images(root / split, count, seed=seed)
    return root
