"""Data: splits, the untouched test split, and every way in which a user's folder can be wrong."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_fashion import write_fashion_mnist
from tiny_images import CLASSES, write_dataset, write_images
from torchvision.datasets import FashionMNIST  # type: ignore[import-untyped]

from hwnas.errors import HwnasError, UsageError
from hwnas.train import pixels, sources
from hwnas.train.augment import pad_and_crop, random_flip
from hwnas.train.data import Images, Normalisation, balanced_subset, describe_data, load_data, split_validation


def test_folder_is_read_as_rgb_at_the_size_asked_for(tmp_path: Path) -> None:
    write_dataset(tmp_path, train=6, val=2)
    splits = load_data(f"folder:{tmp_path}", image_size=32)
    assert splits.train.images.shape == (18, 3, 32, 32)
    assert splits.train.images.dtype == torch.uint8
    assert splits.val.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert splits.class_names == CLASSES
    brightest = splits.train.images.float().mean(dim=(2, 3)).argmax(dim=1)
    assert brightest.tolist() == [2] * 6 + [1] * 6 + [0] * 6  # blue, green, red


def test_own_size_and_classes_are_known_without_reading_the_images(tmp_path: Path) -> None:
    write_dataset(tmp_path, train=2)
    info = describe_data(f"folder:{tmp_path}")
    assert (info.image_size, info.num_classes, info.class_names) == (28, 3, CLASSES)


def test_validation_split_is_balanced_disjoint_and_fixed_by_the_seed(tmp_path: Path) -> None:
    write_dataset(tmp_path, train=30)
    first, again, other = (load_data(f"folder:{tmp_path}", seed=seed) for seed in (1, 1, 2))
    assert np.bincount(first.val.labels.numpy()).tolist() == [3, 3, 3]
    assert len(first.train) + len(first.val) == 90
    images = {image.numpy().tobytes() for image in first.train.images}
    assert not images & {image.numpy().tobytes() for image in first.val.images}
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_unbalanced_classes_each_keep_half_for_training() -> None:
    labels = torch.tensor([0] * 100 + [1] * 2)
    data = Images(torch.zeros(102, 3, 2, 2, dtype=torch.uint8), labels)
    train, val = split_validation(data, ("many", "few"), seed=0)
    assert np.bincount(val.labels.numpy()).tolist() == [5, 1]
    assert np.bincount(train.labels.numpy()).tolist() == [95, 1]


def test_balanced_subset_takes_the_same_number_of_each_class() -> None:
    labels = np.repeat([0, 1, 2, 3], [50, 40, 30, 20])
    chosen = balanced_subset(labels, 40, seed=3)
    assert np.bincount(labels[chosen]).tolist() == [10, 10, 10, 10]
    assert len(set(chosen)) == 40


def test_the_test_split_is_read_only_when_it_is_asked_for(tmp_path: Path) -> None:
    write_dataset(tmp_path, test=2)
    for file in (tmp_path / "test").rglob("*.png"):
        file.write_bytes(b"nobody may look at this")
    splits = load_data(f"folder:{tmp_path}")
    assert splits.has_test
    assert splits.last_count == 6
    with pytest.raises(HwnasError, match=r"6 of 6 images .* cannot be read"):
        splits.load_test()


def test_without_a_test_folder_it_says_so(tmp_path: Path) -> None:
    splits = load_data(f"folder:{write_dataset(tmp_path, test=0)}")
    assert not splits.has_test
    assert splits.last_count == len(splits.val)
    with pytest.raises(HwnasError, match="add a test/ folder"):
        splits.load_test()


def test_one_unreadable_image_in_a_hundred_is_skipped_and_named(tmp_path: Path) -> None:
    write_dataset(tmp_path, train=40)
    bad = tmp_path / "train" / "red" / "007.png"
    bad.write_bytes(b"\x89PNG torn")
    told: list[str] = []
    splits = load_data(f"folder:{tmp_path}", on_skip=told.append)
    assert told == [str(bad)]
    assert splits.skipped == (str(bad),)
    assert len(splits.train) + len(splits.val) == 119


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 60])
def test_more_unreadable_images_are_refused(tmp_path: Path, content: bytes) -> None:
    write_dataset(tmp_path, train=10)
    (tmp_path / "train" / "red" / "000.png").write_bytes(content)
    with pytest.raises(HwnasError, match=r"1 of 30 images .*000.png: mend or remove"):
        load_data(f"folder:{tmp_path}")


def test_wrong_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(HwnasError, match=match) as caught:
            load_data(f"folder:{tmp_path}")
        assert "\n" not in str(caught.value)

    refused("no train/ folder")
    (tmp_path / "train").mkdir()
    refused("no class folders")
    write_images(tmp_path / "train", 4, classes=("red",))
    refused("one class, 'red'")
    write_images(tmp_path / "train", 4, classes=("green",))
    write_images(tmp_path / "val", 2, classes=("red", "blue"))
    refused("different classes: blue, green")
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "train" / "empty").mkdir()
    refused("empty has no images")
    write_images(tmp_path / "train" / "empty", 1, classes=("nested",))
    refused("'empty' has 1 image")


@pytest.mark.parametrize(
    "spec", ["mnist", "folder:", "torchvision:CIFAR10", "torchvision:Nonsense:/tmp", "torchvision:transforms:/x", ""]
)
def test_unknown_data_is_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError):
        load_data(spec)


def test_missing_torchvision_data_says_that_nothing_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(HwnasError, match="nothing is downloaded"):
        load_data(f"torchvision:CIFAR10:{tmp_path}")


def test_torchvision_sets_with_a_split_argument(tmp_path: Path) -> None:
    """SVHN's own format, as scipy writes it."""
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    import torchvision.datasets as datasets

    for split, count in (("train", 40), ("test", 10)):
        images = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = (np.arange(count) % 10 + 1).reshape(-1, 1)
        savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": labels})
    original = datasets.SVHN._check_integrity
    datasets.SVHN._check_integrity = lambda self: True  # the checksum is that of the published file
    try:
        splits = load_data(f"torchvision:SVHN:{tmp_path}", image_size=28)
        assert splits.train.images.shape == (30, 3, 28, 28)
        assert len(splits.val) == 10
        assert splits.last_count == len(splits.load_test()) == 10
    finally:
        datasets.SVHN._check_integrity = original


def write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


def test_fashion_mnist_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_FASHION_MNIST", str(tmp_path))
    with pytest.raises(HwnasError, match="has no train-images"):
        load_data("fashion-mnist")
    rng = np.random.default_rng(0)
    for stem, count in (("train", 100), ("t10k", 20)):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", (np.arange(count) % 10).astype(np.uint8))
    splits = load_data("fashion-mnist")
    assert splits.train.images.shape == (90, 3, 28, 28)
    assert splits.last_count == len(splits.load_test()) == 20
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b torn")
    with pytest.raises(HwnasError, match="is damaged"):
        splits.load_test()


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Serves the files of a folder on this machine; gives the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:

        def start(folder: Path) -> str:
            server.RequestHandlerClass = partial(QuietHandler, directory=str(folder))  # type: ignore[assignment]
            Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
            return f"http://127.0.0.1:{server.server_port}/"

        yield start
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    """Prints nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("unpacked", [False, True])
def test_an_interrupted_download_of_fashion_mnist_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[Path], str], unpacked: bool
) -> None:
    """torchvision downloads, from a server of its own in place of its mirrors."""
    mirror = write_fashion_mnist(tmp_path / "mirror", train=100, test=20)
    files = sorted(mirror.iterdir())
    sums = [(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in files]
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    monkeypatch.setattr(FashionMNIST, "mirrors", [serve(mirror)])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(sources, "FASHION_PACKAGE", tmp_path / "none")
    monkeypatch.delenv("HWNAS_FASHION_MNIST", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    raw = sources.fashion_mnist_folder()
    complete = {file.name: file.read_bytes() for file in raw.iterdir() if file.suffix == ".gz"}
    assert complete == {file.name: file.read_bytes() for file in files}
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(complete["t10k-labels-idx1-ubyte.gz"][:-9])
    if not unpacked:
        (raw / "train-labels-idx1-ubyte.gz").unlink()
        for file in raw.glob("*-ubyte"):
            file.unlink()
    assert sources.fashion_mnist_folder() == raw
    assert {file.name: file.read_bytes() for file in raw.iterdir() if file.suffix == ".gz"} == complete


def test_images_that_do_not_fit_are_refused_with_the_size_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path)
    monkeypatch.setattr(pixels, "free_memory_bytes", lambda: 100_000)
    with pytest.raises(HwnasError, match=r"60 images of 28 px need 0\.0 GiB .*--image-size"):
        load_data(f"folder:{tmp_path}")


def test_large_images_are_cut_to_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 15:65] = 255  # a little more than the middle: the filter looks beyond the cut
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    decoded = sources._decode(tmp_path / "wide.png", 20)
    assert decoded is not None
    assert decoded.min() == 255


def test_normalisation_is_that_of_the_train_split() -> None:
    images = torch.randint(0, 256, (50, 3, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    normalised = Normalisation.of(images)(images)
    torch.testing.assert_close(normalised.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.var(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_augmentation_is_a_shift_with_zeros_and_a_mirror() -> None:
    images = torch.randint(1, 256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    cropped = pad_and_crop(images, 2, torch.Generator().manual_seed(1))
    offsets = torch.randint(0, 5, (2, 16), generator=torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for index in range(16):
        top, left = offsets[:, index].tolist()
        assert torch.equal(cropped[index], padded[index, :, top : top + 8, left : left + 8])
    flipped = random_flip(images, torch.Generator().manual_seed(2))
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(a or b for a, b in zip(mirrored, same, strict=True))
    assert any(mirrored)
    assert any(same)
