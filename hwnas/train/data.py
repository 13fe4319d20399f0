"""Images in memory: what `--data` names, split into train, validation and test.

DATA is ``fashion-mnist``, ``folder:DIR`` or ``torchvision:NAME:DIR``. Every image becomes RGB at one square size and
stays a uint8 tensor, so that an epoch is a permutation and a batch is one gather. The test split is not read until
`DataSplits.load_test` is called, which a search does once, when all its choices are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hwnas.errors import HwnasError, UsageError

if TYPE_CHECKING:
    import torch

FORMS = "fashion-mnist, folder:DIR or torchvision:NAME:DIR"
"""The forms of DATA, for error messages."""

VAL_FRACTION = 0.1
VAL_LIMIT = 5000
"""A validation split taken from train has this fraction of its images, and at most this many."""


@dataclass(frozen=True, slots=True)
class Images:
    """Labelled images: uint8 [N, 3, H, W] and int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Images:
        """The images at `indices`."""
        import torch

        index = torch.from_numpy(np.ascontiguousarray(indices, dtype=np.int64))
        return Images(self.images[index], self.labels[index])


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation of each channel of the train split, for pixels of 0 to 255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, images: torch.Tensor) -> Normalisation:
        """Exact, from the histogram of each channel: no float copy of the data is made."""
        import torch

        values = np.arange(256, dtype=np.float64)
        means, deviations = [], []
        for channel in range(3):
            counts = torch.bincount(images[:, channel].reshape(-1), minlength=256).numpy().astype(np.float64)
            mean = float(counts @ values / counts.sum())
            means.append(mean)
            deviations.append(max(float(np.sqrt(counts @ (values - mean) ** 2 / counts.sum())), 1.0))
        return cls((means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2]))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images as normalised float32, channels_last."""
        import torch

        shape = (1, 3, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).view(shape)
        scale = torch.tensor(self.std, device=images.device).reciprocal().view(shape)
        out = images.to(torch.float32, memory_format=torch.channels_last)
        return out.sub_(mean).mul_(scale)


@dataclass(frozen=True, slots=True)
class DataInfo:
    """What can be said of DATA before its images are read.

    Attributes:
        spec: as typed.
        slug: short form for folder names.
        class_names: in label order.
        image_size: side of the square images in pixels, its own where the user asks for none.
    """

    spec: str
    slug: str
    class_names: tuple[str, ...]
    image_size: int

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


@dataclass(frozen=True, slots=True)
class DataSplits:
    """Train and validation images in memory; the test images only on demand.

    Attributes:
        info: names, classes and size.
        train, val: disjoint; `val` chooses architectures.
        normalisation: of the train split.
        test_loader: reads the test split, None where the source has none.
        test_counter: about how many images that has, unread.
        skipped: files that could not be read, at most 1% of them.
    """

    info: DataInfo
    train: Images
    val: Images
    normalisation: Normalisation
    test_loader: Callable[[], Images] | None
    test_counter: Callable[[], int] | None = None
    skipped: tuple[str, ...] = field(default=())

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return self.info.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in label order."""
        return self.info.class_names

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return self.info.image_size

    @property
    def has_test(self) -> bool:
        """There is a test split to load."""
        return self.test_loader is not None

    @property
    def last_count(self) -> int:
        """About how many images a finished net is tested on: of the test split, or of `val` where there is none."""
        return self.test_counter() if self.test_counter else len(self.val)

    def load_test(self) -> Images:
        """Reads the test split. Call it once, when all choices are made.

        Raises:
            HwnasError: the data has none, or it cannot be read.
        """
        if self.test_loader is None:
            raise HwnasError(f"{self.info.spec} has no test split: add a test/ folder beside train/ and val/")
        return self.test_loader()

    def fingerprint(self) -> str:
        """Sixteen hex digits that change when the train or validation images or labels do."""
        digest = hashlib.blake2b(repr((self.class_names, self.image_size)).encode(), digest_size=8)
        for part in (self.train, self.val):
            digest.update(part.images.numpy().data)
            digest.update(part.labels.numpy().data)
        return digest.hexdigest()


def describe_data(spec: str, *, image_size: int | None = None) -> DataInfo:
    """Class names and image size of DATA, without reading its images.

    Raises:
        UsageError: the spec has none of the known forms.
        HwnasError: the data is not there or not in the expected shape.
    """
    return _source(spec, image_size).info


def load_data(
    spec: str, *, image_size: int | None = None, seed: int = 0, on_skip: Callable[[str], None] | None = None
) -> DataSplits:
    """Reads DATA's train and validation images; the test split stays unread.

    Where the source has no validation split, a class-balanced one is taken from train, the same for the same seed.

    Args:
        spec: ``fashion-mnist``, ``folder:DIR`` or ``torchvision:NAME:DIR``.
        image_size: side of the square images in pixels; None is the data's own size.
        seed: of the validation split.
        on_skip: is told of each file that could not be read.

    Raises:
        UsageError: the spec has none of the known forms.
        HwnasError: the data is missing, empty, inconsistent, unreadable or larger than half of the free memory.
    """
    source = _source(spec, image_size)
    skipped: list[str] = []

    def skip(name: str) -> None:
        skipped.append(name)
        if on_skip is not None:
            on_skip(name)

    train = source.read("train", skip)
    if source.has("val"):
        val = source.read("val", skip)
    else:
        train, val = split_validation(train, source.info.class_names, seed=seed)
    loader = (lambda: source.read("test", skip)) if source.has("test") else None
    counter = (lambda: source.count("test")) if source.has("test") else None
    return DataSplits(source.info, train, val, Normalisation.of(train.images), loader, counter, tuple(skipped))


def split_validation(data: Images, class_names: tuple[str, ...], *, seed: int) -> tuple[Images, Images]:
    """Takes a class-balanced validation split from `data`: the rest and the split, disjoint and in the data's order.

    Raises:
        HwnasError: a class has fewer than two images.
    """
    labels = data.labels.numpy()
    counts = np.bincount(labels, minlength=len(class_names))
    if counts.min() < 2:
        lonely = class_names[int(counts.argmin())]
        raise HwnasError(
            f"class {lonely!r} has {counts.min()} image(s): it needs 2 or more, one for validation: add some, or give "
            "the data a validation split of its own"
        )
    wanted = min(VAL_LIMIT, int(VAL_FRACTION * len(labels)))
    chosen = balanced_subset(labels, max(wanted, len(class_names)), seed=seed, at_most=0.5)
    rest = np.setdiff1d(np.arange(len(labels)), chosen, assume_unique=True)
    return data.take(rest), data.take(chosen)


def balanced_subset(labels: np.ndarray, count: int, *, seed: int, at_most: float = 1.0) -> np.ndarray:
    """Sorted indices of about `count` images, as many of each class as there are to give.

    Args:
        labels: classes of all images.
        count: how many images in all; each class gives ``count // classes``, and never less than one.
        seed: of the choice.
        at_most: no class gives more than this fraction of its images.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x5EED]))
    classes = np.unique(labels)
    share = max(1, count // len(classes))
    chosen = []
    for label in classes:
        members = np.flatnonzero(labels == label)
        chosen.append(rng.permutation(members)[: min(share, max(1, int(at_most * len(members))))])
    return np.sort(np.concatenate(chosen))


def _source(spec: str, image_size: int | None) -> Source:
    from hwnas.train import sources

    if image_size is not None and not 8 <= image_size <= 1024:
        raise UsageError(f"an image size of {image_size} pixels is not between 8 and 1024")
    kind, _, rest = spec.partition(":")
    if spec == "fashion-mnist":
        return sources.FashionMnist(image_size)
    if kind == "folder" and rest:
        return sources.Folder(spec, rest, image_size)
    if kind == "torchvision" and rest.partition(":")[2]:
        name, _, folder = rest.partition(":")
        return sources.Torchvision(spec, name, folder, image_size)
    raise UsageError(f"unknown data {spec!r}: {FORMS}")


if TYPE_CHECKING:
    from hwnas.train.sources import Source
