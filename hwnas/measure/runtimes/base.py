"""What the measuring process asks of a runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


class Session(ABC):
    """One model, built and resident on the device, with its inputs and outputs bound.

    Attributes:
        repeats: how many copies of an operator one run executes (1 for a network).
        state: of the device when it was last timed, where there is something to tell (clocks, what each build took):
            it is stored beside the samples, as JSON.
        memory_bytes: what it holds of a device with memory of its own; 0 where that is not known.
    """

    repeats: int = 1
    memory_bytes: int = 0
    state: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def time_ms(self, runs: int) -> list[float]:
        """Durations in ms of `runs` runs, or fewer long ones, after some that are not timed; interrupted runs are tried
        again."""

    @abstractmethod
    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output for a batch of images; networks only."""

    def close(self) -> None:  # noqa: B027 (on a CPU the memory goes with the object)
        """Gives back what the model holds on the device."""


BUILDS_MS = "builds_ms"
"""Key of a session's state: what each build of the network took, where several are timed."""

DISTURBED = "disturbed"
"""Key of a session's state: why the samples say little of the undisturbed device, in words; empty where they do."""

WHOLE = "whole"
"""Kind of the entry that is no kernel but a run of the whole network, where the runtime can time it apart from them."""


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One node of the graph that a runtime made of a network, timed inside it.

    Attributes:
        node: its name; it begins with that of the ONNX node it was made from, where it was made from one.
        kind: what the runtime calls it.
        input_shape, output_shape: of the first input and output, without the batch.
        samples_ms: of each run.
    """

    node: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    samples_ms: tuple[float, ...]


class KernelClock(ABC):
    """A network whose kernels can be timed one by one, while it runs as a whole.

    Attributes:
        state, memory_bytes: as a session's.
    """

    memory_bytes: int = 0
    state: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def time_kernels(self, runs: int) -> list[KernelTime]:
        """Every kernel in about `runs` runs, interrupted ones left out, after some that are not timed."""

    def close(self) -> None:  # noqa: B027 (on a CPU the memory goes with the object)
        """Gives back what the model holds on the device."""


class Runtime(ABC):
    """Builds models for a device and runs them. A context manager: leaving it releases the device.

    Attributes:
        takes_outlines: `load_network` makes the weights of an outline itself (`hwnas.measure.outlines`).
    """

    takes_outlines = False

    @abstractmethod
    def describe(self) -> dict[str, str | int]:
        """What a table is bound to: ``runtime``, ``runtime_version``, ``device``, ``threads``, …"""

    @abstractmethod
    def load_network(self, model: bytes) -> Session:
        """A whole network, optimised as it would be deployed."""

    @abstractmethod
    def load_operator(self, model: bytes, min_run_ms: float) -> Session:
        """A one-operator model as it runs inside a network, repeated until a run takes about `min_run_ms`."""

    def load_kernels(self, model: bytes) -> KernelClock:  # noqa: ARG002 (an optional ability)
        """A network whose kernels are timed inside it. Not every runtime can: ``describe()["kernels"]`` is 1 then."""
        raise ValueError(f"{type(self).__name__} cannot time kernels inside a network")

    def broken(self) -> str:
        """Why nothing can be measured any more in this process, after something failed; empty where it can."""
        return ""

    def close(self) -> None:  # noqa: B027 (most runtimes have nothing to release)
        """Releases the device."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
