"""`hwnas train`: a run's found nets trained to the end, from scratch as the papers compare them, or on from where
they are.

A net's files stand for its training: weights, model.onnx and result.json are those of the trained net, and
``found.safetensors`` keeps the weights that the search left. What a training depends on has a key; the same command
goes on with one that was killed, and leaves finished ones alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hwnas.errors import HwnasError
from hwnas.progress import NullProgress, Progress, duration
from hwnas.runs import NetFolder, RunFolder, read_json
from hwnas.search.data import read_splits
from hwnas.spaces import Arch, AtomArch, Space, WidthSpace, arch_from_json, atoms_from_json
from hwnas.train.chance import step_rng, torch_generator
from hwnas.train.checkpoint import CheckpointStore, write_atomically
from hwnas.train.data import DataSplits
from hwnas.train.evaluate import accuracy
from hwnas.train.finish import accuracy_at_last, train_net, write_net
from hwnas.train.metrics import MetricsLog
from hwnas.train.process import prepare_process
from hwnas.train.ranks import SOLO, Ranks
from hwnas.train.recipe import Phase

AnySpace = Space | WidthSpace

STARTS = ("scratch", "inherited")
"""Where a training begins: with fresh weights, or with those that the search left."""

FOUND = "found.safetensors"


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """A training of found nets, fully resolved.

    Attributes:
        run: their folder.
        nets: their names.
        data: as typed; its classes and image size must be those of the nets.
        phase: steps, batch, optimizer, augmentation.
        start: one of `STARTS`.
        seed: of fresh weights, order and augmentation.
        split_seed: of the validation split, the search's.
        threads: of torch.
    """

    run: Path
    nets: Sequence[str]
    data: str
    phase: Phase
    start: str = "scratch"
    seed: int = 0
    split_seed: int = 0
    threads: int = 1


def train_nets(request: TrainRequest, progress: Progress, ranks: Ranks = SOLO) -> dict[str, Any]:
    """Trains the nets, or what is left to train; of several `ranks` the first does, and the others `follow_training`.

    Returns:
        The JSON of ``hwnas train``.

    Raises:
        HwnasError: the data does not fit the nets, their weights cannot be read, or the training failed.
    """
    began = time.monotonic()
    run = RunFolder.open(request.run)
    with run:
        shop = _Training(request, progress, ranks, run)
        results = [shop.train(run.net(name)) for name in request.nets]
    told = {"run": request.run, "data": request.data, "from": request.start, "steps": request.phase.steps}
    return {**told, "seconds": time.monotonic() - began, "results": results}


def follow_training(request: TrainRequest, ranks: Ranks) -> None:
    """What every rank but the first does."""
    data: list[DataSplits] = []

    def begin(order: dict[str, Any]) -> None:
        data.append(_read_data(request, order["size"], order["classes"], NullProgress(), ranks))

    def net(order: dict[str, Any]) -> None:
        space, arch = _described(order["arch"])
        train_net(
            space.build(arch),
            data[0],
            request.phase,
            seed=request.seed,
            stream="train",
            progress=NullProgress(),
            description="training",
            ranks=ranks,
        )

    ranks.follow({"begin": begin, "net": net})


def _read_data(request: TrainRequest, size: int, classes: int, progress: Progress, ranks: Ranks) -> DataSplits:
    prepare_process(request.threads)
    return read_splits(
        request.data,
        size=size,
        classes=classes,
        unfit=f"the nets of {request.run} have {classes}: train them on the data that they were searched for",
        seed=request.split_seed,
        progress=progress,
        ranks=ranks,
    )


class _Training:
    """The first rank's work. The data is read when the first net needs it."""

    def __init__(self, request: TrainRequest, progress: Progress, ranks: Ranks, run: RunFolder) -> None:
        self.request, self.progress, self.ranks, self.run = request, progress, ranks, run
        self._splits: DataSplits | None = None

    def train(self, folder: NetFolder) -> dict[str, Any]:
        """One net's figures; those of a finished one are read back."""
        space, arch = _architecture(folder)
        result = folder.result()
        key = self._key(folder, arch)
        if (result.get("trained") or {}).get("key") == key and folder.weights.is_file() and folder.onnx.is_file():
            self.progress.note(f"{folder.name} is trained already")
            return {"net": folder.name, **result["trained"], "folder": str(folder.path)}
        splits = self._data(space)
        self.progress.stage(f"Training {folder.name}")
        module = self._begin(folder, space, arch)
        store = CheckpointStore(self.run.checkpoints, f"train-{key}")
        metrics = MetricsLog(folder.path / "metrics.csv")
        if not store.paths():
            metrics.path.unlink(missing_ok=True)  # of another training
        self.ranks.order("net", arch=space.to_json(arch))
        train_net(
            module,
            splits,
            self.request.phase,
            seed=self.request.seed,
            stream="train",
            progress=self.progress,
            description=f"training {folder.name}",
            store=store,
            metrics=metrics,
            ranks=self.ranks,
        )
        done = self._finish(folder, space, arch, module, {"key": key, "accuracy_before": _before(result)})
        for path in store.paths():
            path.unlink(missing_ok=True)
        return {"net": folder.name, **done, "folder": str(folder.path)}

    def _data(self, space: AnySpace) -> DataSplits:
        """The images, read once.

        Raises:
            HwnasError: they are other ones than the run was searched on, under the same name.
        """
        if self._splits is None:
            self.progress.stage("Data")
            size, classes = space.input_shape[1], space.num_classes
            self.ranks.order("begin", size=size, classes=classes)
            self._splits = _read_data(self.request, size, classes, self.progress, self.ranks)
            known = read_json(self.run.path / "data.json") or {}
            same = known.get("data") == self.request.data
            if same and known.get("fingerprint") not in (None, self._splits.fingerprint()):
                raise HwnasError(
                    f"the images of {self.request.data} changed since {self.run.path} was searched: search anew"
                )
        return self._splits

    def _key(self, folder: NetFolder, arch: Arch | AtomArch) -> str:
        """Of everything that the trained weights depend on; of inherited ones also what they begin with."""
        request = self.request
        made = arch.genes if isinstance(arch, Arch) else arch.widths
        words = [arch.space, made, request.phase.identity(), request.start, request.seed, request.split_seed]
        digest = hashlib.blake2b(repr([*words, request.data, self.ranks.world]).encode(), digest_size=6)
        if request.start == "inherited":
            digest.update(_found_weights(folder).read_bytes())
        return digest.hexdigest()

    def _begin(self, folder: NetFolder, space: AnySpace, arch: Any) -> nn.Module:
        generator = torch_generator(step_rng(self.request.seed, "fresh weights", 0))
        module = space.build(arch, generator=generator)
        if self.request.start == "inherited":
            path = _found_weights(folder)
            try:
                module.load_state_dict(load_file(path))
            except (OSError, SafetensorError, RuntimeError) as error:
                raise HwnasError(f"{path} does not hold the weights of {folder.name}: search it again") from error
        return module

    def _finish(
        self, folder: NetFolder, space: AnySpace, arch: Any, module: nn.Module, known: dict[str, Any]
    ) -> dict[str, Any]:
        """Tests the net and replaces its files. A kill between two of them leaves a net without an accuracy, no lie."""
        assert self._splits is not None
        request, result = self.request, folder.result()
        kept, seconds = folder.path / FOUND, MetricsLog(folder.path / "metrics.csv").rows()
        on_val = accuracy(module, self._splits.val, self._splits.normalisation, device=self.ranks.device)
        tested, split = accuracy_at_last(module, self._splits, self.ranks.device)
        trained = {
            "accuracy": tested,
            "accuracy_split": split,
            "val_accuracy": on_val,
            **known,
            "data": request.data,
            "from": request.start,
            "steps": request.phase.steps,
            "phase": request.phase.model_dump(),
            "seed": request.seed,
            "processes": self.ranks.world,
            "seconds": float(seconds[-1][3]) if seconds else 0.0,
        }
        if not kept.is_file():
            write_atomically(kept, folder.weights.read_bytes())
        folder.write_json("result.json", {**result, "accuracy": None, "trained": None, "found": _found(result)})
        (folder.path / "verify.json").unlink(missing_ok=True)
        write_net(folder, space, arch, module, self._splits)
        entry = {
            **result,
            "accuracy": tested,
            "accuracy_split": split,
            "normalisation": asdict(self._splits.normalisation),
            "found": _found(result),
            "trained": trained,
        }
        folder.write_json("result.json", entry)
        self._tell_winner(folder, entry)
        self.progress.note(f"{folder.name}: {tested:.2%} on {split}, trained for {duration(trained['seconds'])}")
        return trained

    def _tell_winner(self, folder: NetFolder, entry: dict[str, Any]) -> None:
        """Where the net is the random baseline of another one, its figures are in that one's result too."""
        for net in self.run.nets():
            result = net.result()
            if (result.get("baseline") or {}).get("net") == folder.name:
                net.write_json("result.json", {**result, "baseline": entry})


def _described(document: Any) -> tuple[AnySpace, Any]:
    """The space and the architecture, of slots or of atoms, of an arch.json."""
    if isinstance(document, dict) and "widths" in document:
        return atoms_from_json(document)
    return arch_from_json(document)


def _architecture(folder: NetFolder) -> tuple[AnySpace, Any]:
    try:
        return _described(json.loads(folder.arch.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise HwnasError(f"{folder.arch} cannot be read: give the same hwnas search command again") from error


def _found_weights(folder: NetFolder) -> Path:
    """The weights that the search left, also when the net was trained since.

    Raises:
        HwnasError: they are not there any more.
    """
    kept = folder.path / FOUND
    path = kept if kept.is_file() else folder.weights
    if not path.is_file():
        raise HwnasError(f"{folder.path} has no weights to inherit: give the same hwnas search command again")
    return path


def _found(result: dict[str, Any]) -> dict[str, Any]:
    """What the search said of its own weights."""
    before = result.get("found")
    return dict(before) if before else {key: result.get(key) for key in ("accuracy", "accuracy_split")}


def _before(result: dict[str, Any]) -> float | None:
    """Accuracy with the weights that the search left."""
    value = _found(result).get("accuracy")
    return None if value is None else float(value)
