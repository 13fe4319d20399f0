"""A few pictures in Fashion-MNIST's own file format: what HWNAS_FASHION_MNIST names in tests."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def write_fashion_mnist(folder: Path, *, train: int = 400, test: int = 50) -> Path:
    """The four files, with `train` and `test` pictures of ten classes that differ in where they are bright."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (stem, count) in enumerate({"train": train, "t10k": test}.items()):
        rng = np.random.default_rng(seed)
        labels = np.arange(count, dtype=np.uint8) % 10
        pixels = rng.integers(0, 100, (count, 28, 28)).astype(np.uint8)
        for index, label in enumerate(labels):
            pixels[index, 2 * label : 2 * label + 6] += 150
        images = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + pixels.tobytes()
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        truth = struct.pack(">4BI", 0, 0, 8, 1, count) + labels.tobytes()
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(truth))
    return folder


TINY_RECIPE = """
[supernet]
steps = 4
batch_size = 8
optimizer = "adamw"
lr = 2e-3

[scoring]
recalibrate_images = 10
val_images = 10
batch_size = 10

[evolution]
population = 4
generations = 2
topk = 2

[finetune]
steps = 2
batch_size = 8
optimizer = "adamw"
lr = 1e-3

[gates]

[train]
steps = 4
batch_size = 8
optimizer = "sgd"
lr = 1e-2
"""
"""A recipe that goes through every step and learns nothing."""
