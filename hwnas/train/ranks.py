"""`Ranks`: the processes of one ``torchrun``, and what they say to each other.

The first rank does everything that a single process does: it alone decides, reads runs and writes. The others follow
its orders (`Ranks.follow`): train in step with it, and score candidates. Gradients are averaged in one flat buffer of
those that the step has made. `DistributedDataParallel` would not do here: a single path leaves most parameters unused,
which it can only find by walking the graph of every step, and it would reduce all of them.

gloo on a CPU, NCCL on GPUs. What is said is JSON and tensors; nothing is pickled.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hwnas.errors import HwnasError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch._C._distributed_c10d import Store

TIMEOUT = timedelta(hours=24)
"""The others wait while the first rank exports and tests; one that is lost is noticed by its closed connection."""

LOST = "another process of torchrun ended: give the same command again to go on from the last checkpoint"

_ERROR = "hwnas/error"


class FollowerStopped(Exception):
    """A rank but the first ends because of an error, which the first rank reports for all."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that work together.

    Attributes:
        rank: from 0; the first leads.
        world: how many there are.
        device: of torch, where this process computes.
    """

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    _store: Store | None = field(default=None, repr=False)

    @property
    def leads(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.rank == 0

    # -- tensors -----------------------------------------------------------------------------------------------------

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replaces every gradient by its mean over all ranks; the same parameters must have one everywhere."""
        if self.world == 1:
            return
        import torch
        import torch.distributed as dist

        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)])

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all ranks."""
        if self.world == 1:
            return values
        import torch.distributed as dist

        total = values.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def share(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """The first rank's tensors, on the CPU, for all; the others give None."""
        if self.world == 1:
            assert tensors is not None
            return tensors
        from safetensors.torch import load, save

        data = b""
        if tensors is not None:
            data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        return load(self._bytes(data))

    # -- words -------------------------------------------------------------------------------------------------------

    def tell(self, words: Any = None) -> Any:
        """What the first rank says, as JSON; the others listen."""
        if self.world == 1:
            return words
        return json.loads(self._bytes(json.dumps(words).encode()))

    def gather(self, words: Any) -> list[Any]:
        """What every rank says, in their order; known to all."""
        if self.world == 1:
            return [words]
        return [json.loads(self._bytes(json.dumps(words).encode(), source)) for source in range(self.world)]

    def _bytes(self, data: bytes, source: int = 0) -> bytes:
        import numpy as np
        import torch
        import torch.distributed as dist

        size = torch.tensor([len(data)], device=self.device)
        dist.broadcast(size, source)
        buffer = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if self.rank == source:
            buffer.copy_(torch.from_numpy(np.frombuffer(data, np.uint8).copy()))
        dist.broadcast(buffer, source)
        return buffer.cpu().numpy().tobytes()

    # -- orders ------------------------------------------------------------------------------------------------------

    def order(self, what: str, **details: Any) -> None:
        """The first rank tells the others what is done next; with one rank there is nobody to tell."""
        self.tell({"do": what, **details})

    def follow(self, orders: Mapping[str, Callable[[dict[str, Any]], None]]) -> None:
        """What every rank but the first does: obeys, until the first says ``end``."""
        while (order := self.tell())["do"] != "end":
            orders[order["do"]](order)

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Around the first rank's work: ends the others when it is done."""
        yield
        self.order("end")

    # -- errors ------------------------------------------------------------------------------------------------------

    def report(self, error: BaseException) -> BaseException:
        """What to raise for `error`: an error of any rank is known to all, and the first rank alone speaks of it."""
        if self.world == 1 or (self.leads and isinstance(error, HwnasError)):
            self._tell_store(str(error))
            return error
        stopped = isinstance(error, KeyboardInterrupt) or _lost(error)
        said = self._said()
        if not self.leads:
            if not said and not stopped:
                self._tell_store(f"rank {self.rank}: {error or type(error).__name__}")
            return FollowerStopped(str(error))
        if said:
            return HwnasError(said)
        return HwnasError(LOST) if _lost(error) else error

    def _said(self) -> str:
        try:
            assert self._store is not None
            return self._store.get(_ERROR).decode() if self._store.check([_ERROR]) else ""
        except RuntimeError:  # torchrun itself is gone
            return ""

    def _tell_store(self, said: str) -> None:
        try:
            if self._store is not None:
                self._store.set(_ERROR, said)
        except RuntimeError:
            return


def _lost(error: BaseException) -> bool:
    """Whether it says that another rank closed its connection."""
    return isinstance(error, RuntimeError) and any(name in str(error).lower() for name in ("gloo", "nccl"))


SOLO = Ranks()
"""One process alone."""


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined_ranks(device: str = "cpu") -> Iterator[Ranks]:
    """The ranks that torchrun started, joined; one process alone where it did not.

    Args:
        device: ``cpu``, or ``cuda``: then each process of a machine takes a GPU of its own.

    Raises:
        HwnasError: the first rank raises the error of whichever rank failed.
        FollowerStopped: on the others.
    """
    import torch

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise HwnasError(f"rank {local} of this machine finds {torch.cuda.device_count()} GPUs: start fewer")
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    if not started_by_torchrun():
        yield Ranks(device=device)
        return
    import torch.distributed as dist

    dist.init_process_group("nccl" if device != "cpu" else "gloo", timeout=TIMEOUT)
    store = dist.distributed_c10d._get_default_store()
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), device, store)
    try:
        yield ranks
    except BaseException as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, because of the same error: it is being reported
        raise ranks.report(error) from error
    dist.destroy_process_group()
