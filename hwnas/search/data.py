"""The images of a search: loaded, and those that its run began with."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hwnas.errors import HwnasError
from hwnas.progress import Progress
from hwnas.runs import RunFolder, read_json
from hwnas.search.request import Request
from hwnas.train.ranks import SOLO, Ranks

if TYPE_CHECKING:
    from hwnas.train.data import DataSplits


def read_splits(
    data: str, *, size: int, classes: int, unfit: str, seed: int, progress: Progress, ranks: Ranks = SOLO
) -> DataSplits:
    """Images of a number of classes, the same for all `ranks`.

    Args:
        data: as typed.
        size: pixels of a side.
        classes: how many there must be.
        unfit: what has that many, and what to do if the data has not.
        seed: of the validation split.
        progress: is told of images that cannot be read.
        ranks: the processes that read them, each for itself.

    Raises:
        HwnasError: they cannot be read, have other classes, or are not the same for all ranks.
    """
    from hwnas.train.data import load_data

    splits = load_data(
        data,
        image_size=size,
        seed=seed,
        on_skip=lambda path: progress.note(f"skipped, cannot be read: {path}"),
    )
    if splits.num_classes != classes:
        raise HwnasError(f"{data} has {splits.num_classes} classes, {unfit}")
    if len(set(ranks.gather(splits.fingerprint()))) > 1:
        raise HwnasError(f"the processes of torchrun read different images from {data}: give all the same")
    return splits


def load_splits(request: Request[Any, Any], progress: Progress, ranks: Ranks = SOLO) -> DataSplits:
    """A search's images; see `read_splits` for what may be wrong with them."""
    space = request.space
    return read_splits(
        request.data,
        size=space.input_shape[1],
        classes=space.num_classes,
        unfit=f"the space {space.num_classes}: make the space for the data",
        seed=request.seed,
        progress=progress,
        ranks=ranks,
    )


def keep_data(request: Request[Any, Any], run: RunFolder, splits: DataSplits) -> None:
    """Notes in the run what its images are.

    Raises:
        HwnasError: they are not those that the run began with.
    """
    path = run.path / "data.json"
    fingerprint = splits.fingerprint()
    if not path.is_file():
        run.write_json(
            "data.json",
            {
                "data": request.data,
                "fingerprint": fingerprint,
                "train_images": len(splits.train),
                "val_images": len(splits.val),
                "classes": list(splits.class_names),
                "normalisation": asdict(splits.normalisation),
                "skipped": list(splits.skipped),
            },
        )
    elif (read_json(path) or {}).get("fingerprint") != fingerprint:
        raise HwnasError(f"the images of {request.data} changed since {run.path} began: another --out")
