"""Real pictures to compare a deployed network with the trained one on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwnas.errors import HwnasError

from .terminal import Terminal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hwnas.ops import Shape

DATA = "fashion-mnist"


def pictures(
    terminal: Terminal, data: str | None, found: dict[str, Any], run: dict[str, Any], count: int, shape: Shape
) -> NDArray[np.float32]:
    """`count` validation pictures as the network takes them: of the run's data, else of `data`, else noise.

    A net that was not trained here has random weights or weights for other pictures: any will do, and where there are
    none the comparison still says something.

    Raises:
        HwnasError: the data that was named, or that the run was made with, cannot be read.
    """
    import torch

    spec = data or run.get("identity", {}).get("data")
    if spec is None and not _has_fashion_mnist():
        terminal.note("no pictures here (--data DATA): outputs are compared on noise")
        return torch.randn((count, *shape), generator=torch.Generator().manual_seed(0)).numpy()
    return _read(spec or DATA, found, count, shape)


def _has_fashion_mnist() -> bool:
    """Whether comparing on it needs no download."""
    import os

    from hwnas.train.sources import FASHION_PACKAGE

    return FASHION_PACKAGE.is_dir() or "HWNAS_FASHION_MNIST" in os.environ


def _read(spec: str, found: dict[str, Any], count: int, shape: Shape) -> NDArray[np.float32]:
    import torch

    from hwnas.train.data import Normalisation, load_data

    if len(shape) != 3 or shape[0] != 3:
        raise HwnasError(f"the network takes {shape}, not RGB pictures: its outputs cannot be compared")
    # a found net sees its pictures as in the search; any other net gets them scaled after they were read
    splits = load_data(spec, image_size=shape[1] if found else None)
    images = splits.val.images[:count]
    while len(images) < count:
        images = torch.cat([images, images])[:count]
    stored = found.get("normalisation")
    normalise = Normalisation(tuple(stored["mean"]), tuple(stored["std"])) if stored else splits.normalisation
    ready = normalise(images)
    if ready.shape[2:] != shape[1:]:
        ready = torch.nn.functional.interpolate(ready, size=shape[1:], mode="bilinear", antialias=True)
    return ready.contiguous().numpy()
