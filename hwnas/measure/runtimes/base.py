"""What the measuring process asks of a runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray


class Session(ABC):
    """One model, built and resident on the device, with its inputs and outputs bound.

    Attributes:
        repeats: how many copies of an operator one run executes (1 for a network).
    """

    repeats: int = 1

    @abstractmethod
    def time_ms(self, runs: int) -> list[float]:
        """Durations of `runs` runs in ms, after one that is not timed; interrupted runs are tried again."""

    @abstractmethod
    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output for a batch of images; networks only."""


class Runtime(ABC):
    """Builds models for a device and runs them. A context manager: leaving it releases the device."""

    @abstractmethod
    def describe(self) -> dict[str, str | int]:
        """What a table is bound to: ``runtime``, ``runtime_version``, ``device``, ``threads``, …"""

    @abstractmethod
    def load_network(self, model: bytes) -> Session:
        """A whole network, optimised as it would be deployed."""

    @abstractmethod
    def load_operator(self, model: bytes, min_run_ms: float) -> Session:
        """A one-operator model as it runs inside a network, repeated until a run takes about `min_run_ms`."""

    def close(self) -> None:  # noqa: B027 (most runtimes have nothing to release)
        """Releases the device."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
