"""Where images come from: Fashion-MNIST's files, folders of classes, torchvision's datasets.

A `Source` knows its classes and splits before it reads anything, and reads one split at a time.
"""

from __future__ import annotations

import gzip
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import HwnasError, UsageError
from hwnas.train.data import DataInfo, Images
from hwnas.train.pixels import as_images, check_memory, images_of, square

if TYPE_CHECKING:
    from PIL.Image import Image

UNREADABLE_LIMIT = 0.01
"""More unreadable files than this fraction are refused."""

OnSkip = Callable[[str], None]


class Source(ABC):
    """One data set. `info` is known at construction; nothing else is read."""

    info: DataInfo

    @abstractmethod
    def has(self, split: str) -> bool:
        """The source has this split of its own: train, val or test."""

    @abstractmethod
    def count(self, split: str) -> int:
        """About how many images a split has, without looking at them."""

    @abstractmethod
    def read(self, split: str, on_skip: OnSkip) -> Images:
        """The images of a split; `on_skip` is told of files that cannot be read."""


# -- Fashion-MNIST ---------------------------------------------------------------------------------------------------

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_FILES = {"train": "train", "test": "t10k"}
FASHION_PACKAGE = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""


class FashionMnist(Source):
    """Fashion-MNIST: $HWNAS_FASHION_MNIST, else Debian's package, else torchvision's download into the cache folder."""

    def __init__(self, image_size: int | None) -> None:
        self.info = DataInfo("fashion-mnist", "fashion-mnist", FASHION_CLASSES, image_size or 28)

    def has(self, split: str) -> bool:
        return split in FASHION_FILES

    def count(self, split: str) -> int:
        return len(_read_idx(_idx_file(fashion_mnist_folder(), f"{FASHION_FILES[split]}-labels-idx1-ubyte")))

    def read(self, split: str, on_skip: OnSkip) -> Images:
        del on_skip  # two files, no images that could be skipped
        folder = fashion_mnist_folder()
        stem = FASHION_FILES[split]
        pixels = _read_idx(_idx_file(folder, f"{stem}-images-idx3-ubyte"))
        labels = _read_idx(_idx_file(folder, f"{stem}-labels-idx1-ubyte"))
        if pixels.ndim != 3 or len(pixels) != len(labels) or len(labels) == 0 or labels.max() > 9:
            raise HwnasError(f"the Fashion-MNIST files in {folder} do not belong together: fetch them again")
        check_memory(len(pixels), self.info.image_size, f"fashion-mnist {split}")
        return images_of(pixels, labels.astype(np.int64), self.info.image_size)


def fashion_mnist_folder() -> Path:
    """The folder of Fashion-MNIST's four files, which are downloaded where no package has them.

    Raises:
        HwnasError: the folder named by $HWNAS_FASHION_MNIST lacks them, or the download fails.
    """
    named = os.environ.get("HWNAS_FASHION_MNIST")
    if named:
        return Path(named)
    if (FASHION_PACKAGE / "train-images-idx3-ubyte.gz").is_file():
        return FASHION_PACKAGE
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hwnas"
    from torchvision.datasets import FashionMNIST  # type: ignore[import-untyped]
    from torchvision.datasets.utils import check_integrity  # type: ignore[import-untyped]

    raw = cache / "FashionMNIST" / "raw"
    partial = [raw / name for name, md5 in FashionMNIST.resources if not check_integrity(raw / name, md5)]
    if partial:
        try:
            for path in partial:
                if path.is_file():  # torn; torchvision fetches nothing while all four are there unpacked
                    path.with_suffix("").unlink(missing_ok=True)
            FashionMNIST(str(cache), train=True, download=True)
        except Exception as error:  # whatever the network and the mirror come up with
            raise HwnasError(
                f"Fashion-MNIST cannot be downloaded ({error}): install the Debian package dataset-fashion-mnist, or "
                "put its four files in a folder named by HWNAS_FASHION_MNIST"
            ) from error
    return raw


def _idx_file(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}.gz", folder / stem):
        if path.is_file():
            return path
    raise HwnasError(f"{folder} has no {stem}.gz: set HWNAS_FASHION_MNIST to a folder of the four files")


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes: two zero bytes, type 8, dimensions, sizes (big-endian), data."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        kind, dimensions = raw[2], raw[3]
        shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
        if kind != 8:
            raise ValueError(f"type {kind} is not unsigned byte")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, struct.error) as error:
        raise HwnasError(f"{path} is damaged ({error}): remove it and fetch it again") from error


# -- folders of classes ----------------------------------------------------------------------------------------------

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"))


class Folder(Source):
    """DIR/train/CLASS/*.png, with val/ and test/ beside train/ where there are such splits."""

    def __init__(self, spec: str, folder: str, image_size: int | None) -> None:
        self.root = Path(folder).expanduser()
        if not (self.root / "train").is_dir():
            raise HwnasError(f"{self.root} has no train/ folder: make train/CLASS/*.png, and val/ and test/ alike")
        names = _classes(self.root / "train")
        if not names:
            raise HwnasError(f"{self.root / 'train'} has no class folders: give each class a folder of its images")
        if len(names) == 1:
            raise HwnasError(f"{self.root / 'train'} has one class, {names[0]!r}: a search needs at least two")
        for split in ("val", "test"):
            if self.has(split) and (found := _classes(self.root / split)) != names:
                odd = sorted(set(found) ^ set(names))
                raise HwnasError(f"{self.root}: {split}/ and train/ have different classes: {', '.join(odd[:5])}")
        self.files = {name: _image_files(self.root / "train" / name) for name in names}
        size = image_size or _own_size(self.files[names[0]])
        self.info = DataInfo(spec, _slug(self.root.resolve().name), names, size)

    def has(self, split: str) -> bool:
        return (self.root / split).is_dir()

    def count(self, split: str) -> int:
        return sum(path.suffix.lower() in SUFFIXES for path in (self.root / split).rglob("*"))

    def read(self, split: str, on_skip: OnSkip) -> Images:
        files, labels = [], []
        for label, name in enumerate(self.info.class_names):
            members = self.files[name] if split == "train" else _image_files(self.root / split / name)
            files += members
            labels += [label] * len(members)
        size = self.info.image_size
        check_memory(len(files), size, f"{self.root / split}")

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding releases the interpreter lock
            decoded = pool.map(lambda path: _decode(path, size), files)
            pixels = np.empty((len(files), 3, size, size), np.uint8)
            kept: list[int] = []
            bad: list[Path] = []
            for index, image in enumerate(decoded):
                if image is None:
                    bad.append(files[index])
                    on_skip(str(files[index]))
                else:
                    pixels[len(kept)] = image
                    kept.append(index)
        if len(bad) > UNREADABLE_LIMIT * len(files):
            raise HwnasError(
                f"{len(bad)} of {len(files)} images in {self.root / split} cannot be read, the first is {bad[0]}: "
                "mend or remove them"
            )
        left = np.asarray(labels, np.int64)[kept]
        missing = set(range(len(self.info.class_names))) - set(left.tolist())
        if missing:
            name = self.info.class_names[min(missing)]
            raise HwnasError(f"class {name!r} has no readable image in {self.root / split}: add some")
        return as_images(pixels[: len(kept)], left)


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def _image_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not _hidden(path))
    if not files:
        raise HwnasError(f"{folder} has no images ({', '.join(sorted(SUFFIXES))}): add some or remove the folder")
    return files


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _own_size(files: Sequence[Path]) -> int:
    """The shorter side of the first readable image, at most 224."""
    from PIL import Image

    for path in files:
        try:
            with Image.open(path) as image:
                return int(min(*image.size, 224))
        except (OSError, ValueError):
            continue
    raise HwnasError(f"no image in {files[0].parent} can be read: mend or remove them")


def _decode(path: Path, size: int) -> np.ndarray | None:
    """The file as uint8 [3, size, size], or None where it cannot be read."""
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns of odd metadata and of very large images; neither matters here
            with Image.open(path) as image:
                return square(image, size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


# -- torchvision -----------------------------------------------------------------------------------------------------


class Torchvision(Source):
    """A classification set of torchvision with a `train=` or a `split=` argument, already on disk."""

    def __init__(self, spec: str, name: str, folder: str, image_size: int | None) -> None:
        import inspect

        from torchvision import datasets  # type: ignore[import-untyped]

        factory = getattr(datasets, name, None)
        if not (inspect.isclass(factory) and issubclass(factory, datasets.VisionDataset)):
            raise UsageError(f"torchvision.datasets has no {name!r}: CIFAR10, CIFAR100, SVHN, ... as it spells them")
        self.factory: Callable[..., Any] = factory
        self.folder = str(Path(folder).expanduser())
        parameters = inspect.signature(factory).parameters
        if "train" not in parameters and "split" not in parameters:
            raise UsageError(f"torchvision's {name} has no train= or split= argument: use folder:DIR")
        self.by_split = "split" in parameters and "train" not in parameters
        self.downloads = "download" in parameters
        self.has_val = self.by_split and self._val_name() is not None
        data = self._open("train")
        labels = _labels_of(data)
        names = getattr(data, "classes", None)
        count = int(labels.max()) + 1
        classes = tuple(map(str, names)) if names and len(names) == count else tuple(map(str, range(count)))
        if count < 2:
            raise HwnasError(f"{spec} has one class: a search needs at least two")
        self._train = data
        self.info = DataInfo(spec, _slug(name), classes, image_size or int(min(*data[0][0].size, 224)))

    def _val_name(self) -> str | None:
        """torchvision names its validation splits `val` or `valid`, checked by opening one."""
        for name in ("val", "valid"):
            try:
                self.factory(self.folder, split=name, **({"download": False} if self.downloads else {}))
            except (ValueError, RuntimeError, OSError):
                continue
            return name
        return None

    def _open(self, split: str) -> Any:
        arguments: dict[str, Any] = {"download": False} if self.downloads else {}
        if self.by_split:
            arguments["split"] = (self._val_name() or "val") if split == "val" else split
        else:
            arguments["train"] = split == "train"
        try:
            return self.factory(self.folder, **arguments)
        except (ValueError, RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise HwnasError(
                f"torchvision's {self.factory.__name__} ({split}) cannot be opened in {self.folder}: {reason} "
                "(nothing is downloaded: fetch it there first)"
            ) from error

    def has(self, split: str) -> bool:
        return split != "val" or self.has_val

    def count(self, split: str) -> int:
        return len(self._train if split == "train" else self._open(split))

    def read(self, split: str, on_skip: OnSkip) -> Images:
        del on_skip  # torchvision raises where it cannot read
        data = self._train if split == "train" else self._open(split)
        size = self.info.image_size
        check_memory(len(data), size, f"{self.info.spec} {split}")
        pixels = np.empty((len(data), 3, size, size), np.uint8)
        labels = np.empty(len(data), np.int64)
        for index, (image, label) in enumerate(_items(data)):
            pixels[index] = square(image, size)
            labels[index] = label
        return as_images(pixels, labels)


def _items(data: Any) -> Iterator[tuple[Image, int]]:
    for index in range(len(data)):
        yield data[index]


def _labels_of(data: Any) -> np.ndarray:
    for name in ("targets", "labels", "_labels"):
        if (labels := getattr(data, name, None)) is not None:
            return np.asarray(labels)
    return np.asarray([label for _, label in _items(data)])


def _slug(text: str) -> str:
    slug = "".join(character if character.isalnum() else "-" for character in text.lower())
    return "-".join(filter(None, slug.split("-"))) or "data"
