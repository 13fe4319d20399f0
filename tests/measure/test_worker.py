"""What the measuring process does with what is loaded, without a process of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwnas.measure.runtimes.base import Runtime, Session
from hwnas.measure.worker import Worker


class Told(Runtime):
    """Tells what is loaded and closed, in the order of time; "bad" cannot be loaded."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def describe(self) -> dict[str, str | int]:
        return {}

    def load_network(self, model: bytes) -> Session:
        self.told.append(f"load {model.decode()}")
        if model == b"bad":
            raise ValueError("bad")
        return Loaded(self, model.decode())

    def load_operator(self, model: bytes, min_run_ms: float) -> Session:
        raise NotImplementedError


class Loaded(Session):
    def __init__(self, runtime: Told, name: str) -> None:
        self.runtime = runtime
        self.name = name

    def time_ms(self, runs: int) -> list[float]:
        return [1.0] * runs

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        return image

    def close(self) -> None:
        self.runtime.told.append(f"close {self.name}")


def test_what_is_loaded_anew_is_there_before_the_former_goes() -> None:
    """Else it would get the memory that the former gave back, and lie where that lay. A load that fails leaves none."""
    worker, runtime = Worker(), Told()
    worker.runtime = runtime

    def load(model: bytes) -> bool:
        request = {"do": "load", "name": "net", "role": "network", "min_run_ms": 1.0, "payload": model}
        return bool(worker.answer(request)["ok"])

    assert load(b"one")
    assert load(b"two")
    assert not load(b"bad")
    assert runtime.told == ["load one", "load two", "close one", "load bad", "close two"]
    assert not worker.answer({"do": "time", "name": "net", "runs": 1})["ok"]
    assert load(b"three")
    worker.close()
    assert runtime.told[-2:] == ["load three", "close three"]
