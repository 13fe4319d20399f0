"""The images of a search: loaded, and those that its run began with."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from hwnas.errors import HwnasError
from hwnas.progress import Progress
from hwnas.runs import RunFolder, read_json
from hwnas.search.request import Asked

if TYPE_CHECKING:
    from hwnas.train.data import DataSplits


def open_data(request: Asked, run: RunFolder, progress: Progress) -> DataSplits:
    """Loads a search's images and notes what they are in the run.

    Raises:
        HwnasError: they cannot be read, do not fit the space, or are not those that the run began with.
    """
    from hwnas.train.data import load_data

    progress.stage("Data")
    splits = load_data(
        request.data,
        image_size=request.space.input_shape[1],
        seed=request.seed,
        on_skip=lambda path: progress.note(f"skipped, cannot be read: {path}"),
    )
    if splits.num_classes != request.space.num_classes:
        raise HwnasError(
            f"{request.data} has {splits.num_classes} classes, the space {request.space.num_classes}: "
            "make the space for the data"
        )
    _same_data(request, run, splits)
    return splits


def _same_data(request: Asked, run: RunFolder, splits: DataSplits) -> None:
    """Refuses images that are not those the run began with."""
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
