"""From a chosen architecture to a net: inherited weights, a short fine-tuning, accuracy, files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hwnas.ops import Shape
from hwnas.progress import Progress
from hwnas.runs import NetFolder, RunFolder
from hwnas.spaces.base import Arch
from hwnas.train.batches import Batches
from hwnas.train.checkpoint import CheckpointStore, write_atomically
from hwnas.train.data import DataSplits
from hwnas.train.evaluate import Evaluator, accuracy
from hwnas.train.loop import train
from hwnas.train.metrics import MetricsLog
from hwnas.train.ranks import SOLO, Ranks
from hwnas.train.recipe import Phase

if TYPE_CHECKING:
    from hwnas.nn.supernet import SinglePathSupernet

AnyArch = TypeVar("AnyArch", contravariant=True)


def train_net(
    module: nn.Module,
    splits: DataSplits,
    phase: Phase,
    *,
    seed: int,
    stream: str,
    progress: Progress,
    description: str,
    store: CheckpointStore | None = None,
    metrics: MetricsLog | None = None,
    ranks: Ranks = SOLO,
) -> None:
    """Trains a plain net on the train split, from its last checkpoint where there is one; all ranks call it alike."""
    batches = Batches(splits.train, splits.normalisation, phase, seed, stream, ranks.device)

    def forward(images: Tensor, step: int) -> Tensor:
        del step
        scores: Tensor = module(images)
        return scores

    train(
        module,
        batches,
        forward=forward,
        progress=progress,
        description=description,
        store=store,
        metrics=metrics,
        ranks=ranks,
    )


@dataclass(frozen=True, slots=True)
class Finisher:
    """What fine-tunes and writes the found nets of one run.

    Attributes:
        run: their folder.
        supernet: trained; found nets begin with its weights.
        splits: fine-tuned on `train`; the accuracy is of the test split, or of `val` where the data has none.
        evaluator: sets the BatchNorm statistics that a net begins with.
        phase: of the fine-tuning.
        seed: of its order and augmentation.
        ranks: the processes that fine-tune together.
    """

    run: RunFolder
    supernet: SinglePathSupernet
    splits: DataSplits
    evaluator: Evaluator
    phase: Phase
    seed: int
    progress: Progress
    ranks: Ranks = SOLO

    def fine_tune(self, name: str, arch: Arch, state: str) -> nn.Module:
        """The net of `arch` with inherited weights, trained on; goes on from a checkpoint of a killed run.

        Args:
            name: of the net, for the progress.
            arch: what to build.
            state: whatever else the weights depend on; a checkpoint is used for the same state only.
        """
        self.evaluator.recalibrate(arch.genes)
        module = self.supernet.extract(arch)
        self.ranks.order("net", genes=list(arch.genes))
        train_net(
            module,
            self.splits,
            self.phase,
            seed=self.seed,
            stream="finetune",
            progress=self.progress,
            description=f"fine-tuning {name}",
            store=self._store(arch, state),
            ranks=self.ranks,
        )
        return module

    def _store(self, arch: Arch, state: str) -> CheckpointStore:
        key = hashlib.blake2b(repr((arch.genes, state)).encode(), digest_size=6).hexdigest()
        return CheckpointStore(self.run.checkpoints, f"finetune-{key}")

    def forget(self, arch: Arch, state: str) -> None:
        """Drops the checkpoints of a fine-tuning that is not needed any more."""
        for path in self._store(arch, state).paths():
            path.unlink(missing_ok=True)

    def test_accuracy(self, module: nn.Module) -> tuple[float, str]:
        """Accuracy of a finished net, and the name of the split it is of; see `accuracy_at_last`."""
        return accuracy_at_last(module, self.splits, self.ranks.device)


def accuracy_at_last(module: nn.Module, splits: DataSplits, device: str) -> tuple[float, str]:
    """Accuracy of a finished net, and the name of the split it is of. The test split is read here."""
    split = "test" if splits.has_test else "val"
    data = splits.load_test() if splits.has_test else splits.val
    return accuracy(module, data, splits.normalisation, device=device), split


class Designs(Protocol[AnyArch]):
    """The part of a space that writes its nets: a `Space` or an `AtomSpace`."""

    input_shape: Shape

    def to_json(self, arch: AnyArch) -> dict[str, Any]:
        """The JSON form of `arch.json`."""

    def build(self, arch: AnyArch, *, generator: torch.Generator | None = None) -> nn.Module:
        """The architecture as a plain module."""


def write_net(folder: NetFolder, space: Designs[AnyArch], arch: AnyArch, module: nn.Module, splits: DataSplits) -> None:
    """Writes arch.json, weights.safetensors and model.onnx of a net that was trained on `splits`.

    Raises:
        HwnasError: the disk is full, or the net cannot be exported.
    """
    from safetensors.torch import save

    from hwnas.export import export_onnx, preparation

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    write_atomically(folder.weights, save(weights))
    folder.write_json("arch.json", space.to_json(arch))
    plain = space.build(arch)  # the plain module, contiguous and in eval mode, whatever the trained one became
    plain.load_state_dict(weights)
    said = preparation(splits.normalisation.mean, splits.normalisation.std, splits.class_names)
    export_onnx(plain.eval(), space.input_shape, folder.onnx, metadata=said)
