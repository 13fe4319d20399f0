"""Checkpoints: weights and optimizer state by parameter NAME, written so that a kill at any moment leaves a good one.

A checkpoint is one safetensors file (nothing in it is ever unpickled) with a checksum over its tensors. Two are kept:
one that is damaged is passed over for the one before it.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hwnas.errors import HwnasError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hwnas.train.ema import Ema

KEEP = 2
FORMAT = 1
STATE = "method/state"
"""JSON as bytes: what a method knows beside tensors."""


class Carried(Protocol):
    """What a training knows beside its module and optimizer: averages, and what its method decides by."""

    @property
    def ema(self) -> Ema: ...

    def state(self) -> dict[str, Any]:
        """What it knows beside tensors, as JSON."""

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up a state, before the tensors are loaded; it may give the module another shape."""

    def resumed(self, step: int) -> None:
        """The training goes on after so many steps: what was noted of later ones goes."""


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """The checkpoints of one training in a folder: ``NAME-000001200.safetensors``.

    Attributes:
        folder: made when the first one is written.
        name: of the training.
    """

    folder: Path
    name: str

    def paths(self) -> list[Path]:
        """The checkpoints that are there, newest first."""
        return sorted(self.folder.glob(f"{self.name}-?????????.safetensors"), reverse=True)

    def save(
        self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, carried: Carried | None = None
    ) -> Path:
        """Writes the state after `step` steps, then drops all but the newest two.

        Raises:
            HwnasError: the disk is full.
        """
        return self.keep(step, tensors_of(module, optimizer, carried))

    def keep(self, step: int, tensors: dict[str, torch.Tensor]) -> Path:
        """As `save`, of what `tensors_of` said then."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}-{step:09d}.safetensors"
        write_tensors(path, tensors, step=step)
        self.drop_old()
        return path

    def drop_old(self) -> None:
        """Removes all but the newest two."""
        for old in self.paths()[KEEP:]:
            old.unlink(missing_ok=True)

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer, carried: Carried | None = None) -> int:
        """Restores the newest good checkpoint. Returns its step, 0 where there is none.

        Raises:
            HwnasError: there are checkpoints and none of them is readable, or they are of another net.
        """
        problems, step = [], 0
        for path in self.paths():
            try:
                tensors, step = read_tensors(path)
            except HwnasError as error:
                problems.append(str(error))
                continue
            restore(tensors, module, optimizer, f"checkpoint {path}", carried)
            break
        else:
            if problems:
                raise HwnasError(f"{problems[0]}; no older one is left: remove {self.folder} to begin again")
        if carried:
            carried.resumed(step)
        return step


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], **numbers: int) -> None:
    """Writes tensors and whole numbers atomically: a reader sees the old file or the new one, never a part.

    Raises:
        HwnasError: the disk is full.
    """
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "checksum": _checksum(plain), **numbers}
    write_atomically(path, save(plain, metadata={"hwnas": json.dumps(metadata)}))


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], int]:
    """The tensors and the step of a file of `write_tensors`.

    Raises:
        HwnasError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("hwnas", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise HwnasError(f"checkpoint {path} is damaged ({error})") from error
    if metadata.get("format") != FORMAT or metadata.get("checksum") != _checksum(tensors):
        raise HwnasError(f"checkpoint {path} is damaged (its checksum does not fit)")
    return tensors, int(metadata.get("step", 0))


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`, durably.

    Raises:
        HwnasError: the disk is full.
    """
    part = path.with_name(path.name + ".part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk into one line."""
    import errno

    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HwnasError(
                f"the disk of {path.parent} is full: make room and give the same command again; "
                "nothing that was finished is lost"
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES):
            raise HwnasError(f"{path.parent} cannot be written to ({error.strerror}): choose another --out") from error
        raise


def _checksum(tensors: dict[str, torch.Tensor]) -> int:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensors[name].reshape(-1).numpy().data, crc)
    return crc


def _module_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"model/{name}": tensor for name, tensor in module.state_dict().items()}


def _optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    import torch

    tensors = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
    return tensors


def _carried_tensors(carried: Carried) -> dict[str, torch.Tensor]:
    import torch

    averages = {f"ema/{name}": tensor for name, tensor in carried.ema.shadow.items()}
    text = json.dumps(carried.state()).encode()
    return {**averages, STATE: torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def tensors_of(
    module: nn.Module, optimizer: torch.optim.Optimizer, carried: Carried | None = None
) -> dict[str, torch.Tensor]:
    """Everything that a training holds, by name; `restore` takes it up."""
    more = _carried_tensors(carried) if carried else {}
    return {**_module_tensors(module), **_optimizer_tensors(module, optimizer), **more}


def restore(
    tensors: dict[str, torch.Tensor],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    what: str,
    carried: Carried | None = None,
) -> None:
    """Takes up the tensors of `tensors_of`; `what` names them in the error.

    Raises:
        HwnasError: they are another net's.
    """
    model = {name.removeprefix("model/"): tensor for name, tensor in tensors.items() if name.startswith("model/")}
    try:
        if carried:
            carried.restore(json.loads(bytes(tensors[STATE].numpy())))
        module.load_state_dict(model)
        optimizer.state.clear()
        _restore_optimizer(tensors, dict(module.named_parameters()), optimizer)
        for name, average in carried.ema.shadow.items() if carried else ():
            average.copy_(tensors[f"ema/{name}"])
    except (RuntimeError, KeyError) as error:
        raise HwnasError(f"{what} is of another net: choose another --out") from error


def _restore_optimizer(
    tensors: dict[str, torch.Tensor], parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    import torch

    for full, tensor in tensors.items():
        if full.startswith("optimizer/"):
            _, key, name = full.split("/", 2)
            parameter = parameters[name]
            # Same memory format as the parameter, which is what the optimizer itself would have made.
            value = (
                torch.empty_like(parameter).copy_(tensor)
                if tensor.shape == parameter.shape
                else tensor.to(parameter.device)
            )
            optimizer.state[parameter][key] = value.detach()
