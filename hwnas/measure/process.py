"""`MeasuringProcess`: the parent's end of the measuring process.

A crash, a hang or an out-of-memory kill of one operator ends the process, is reported as that operator's
`MeasurementError`, and a fresh process is started for the next request. Models are loaded again when next asked for.
"""

from __future__ import annotations

import base64
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hwnas.devices import DeviceProfile
from hwnas.errors import HwnasError, RuntimeMissing
from hwnas.measure.link import Link, LinkLost, MeasurementError
from hwnas.measure.runtimes.base import KernelTime
from hwnas.progress import NullProgress, Progress

WORKER = (sys.executable, "-m", "hwnas.measure.worker")
DROPS = 3
"""Lost connections at one and the same request that are repaired."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to measure.

    Attributes:
        name: unique in the process.
        role: ``operator`` (timed as inside a network, repeated), ``network``, or ``kernels`` (a network whose kernels
            are timed one by one).
        model: makes the ONNX model's bytes, or those of its outline, when it is (re)loaded.
        memory_bytes: about how much a loaded session holds beside what `model` makes; the weights of an outline are a
            part of it. Sessions are unloaded when the sum passes the limit.
    """

    name: str
    role: str
    model: Callable[[], bytes]
    memory_bytes: int = 0


class MeasuringProcess:
    """Owns the child process of one profile. A context manager: leaving it ends the child.

    Args:
        profile: says which runtime with which options.
        memory_limit_bytes: sessions are kept loaded up to this sum; the longest unused go first. None is half of what
            is free, and of a device with memory of its own half of that.
        cache: folder where a runtime keeps what it builds; None is nowhere. Engines are of the GPU and the library that
            built them, so that those of a device that is elsewhere stay there (`engine_cache.folder_of_host`).
        command: how the child is started where the device is here; for tests.
        progress: is told of waiting and of lost connections.
    """

    def __init__(
        self,
        profile: DeviceProfile,
        *,
        memory_limit_bytes: int | None = None,
        command: tuple[str, ...] = WORKER,
        cache: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.profile = profile
        self.state: dict[str, Any] = {}  # what the runtime told of the device when it last timed something
        self._limit_bytes = memory_limit_bytes
        self._stale: set[str] = set()  # loaded, but to be loaded anew
        self._link = Link(profile, command, cache=cache, progress=progress or NullProgress())

    def __enter__(self) -> Self:
        if self.profile.retired:
            raise RuntimeMissing(self.profile.retired)
        try:
            self._link.start()
        except MeasurementError as error:
            self.close()
            reason = str(error) if error.fix else f"the measuring process did not start: {error}"
            if self.profile.host:
                reason = f"on {self.profile.host}: {reason}"
            elif self.profile.note:
                reason = f"{reason}; {self.profile.note}"
            raise RuntimeMissing(reason, error.fix) from None
        except LinkLost as error:
            self.close()
            raise HwnasError(str(error)) from None
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child."""
        self._link.close()

    @property
    def describe(self) -> dict[str, Any]:
        """What the runtime says of itself and the device."""
        return self._link.describe

    @property
    def load_average(self) -> list[float]:
        """Of the machine that measures, when the child started."""
        return self._link.load_average

    @property
    def memory_limit_bytes(self) -> int:
        """Up to which sessions are kept loaded."""
        return self._limit_bytes or self._link.memory_bytes // 2

    def time_ms(self, subject: Subject, runs: int) -> tuple[int, list[float]]:
        """Loads `subject` if need be and times `runs` runs, or fewer long ones. Returns (copies in a run, ms of each).

        Raises:
            MeasurementError: it cannot be built or timed, hung, or took the process down.
        """
        repeats, answer = self._loaded_ask(subject, {"do": "time", "name": subject.name, "runs": runs})
        samples: Any = answer.get("samples_ms")
        if not _are_times(samples, runs):
            raise MeasurementError(f"the runtime returned impossible times: {str(samples)[:80]}")
        self.state = _state(answer)
        return repeats, samples

    def time_kernels(self, subject: Subject, runs: int) -> list[KernelTime]:
        """Times the kernels of a network (role ``kernels``) inside it, in about `runs` runs.

        Raises:
            MeasurementError: it cannot be built or timed, hung, or took the process down.
        """
        asked = {"do": "kernels", "name": subject.name, "runs": runs}
        document = self._loaded_ask(subject, asked)[1]
        answer: Any = document.get("kernels")
        if not isinstance(answer, list) or not answer:
            raise MeasurementError("the runtime returned no kernels")
        try:
            kernels = [
                KernelTime(
                    str(kernel["node"]),
                    str(kernel["kind"]),
                    tuple(map(int, kernel["input_shape"])),
                    tuple(map(int, kernel["output_shape"])),
                    tuple(kernel["samples_ms"]),
                )
                for kernel in answer
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise MeasurementError(f"the runtime returned kernels that are none ({error!r:.80})") from None
        times = [list(kernel.samples_ms) for kernel in kernels]
        measured = len(times[0])
        alike = all(isinstance(samples, list) and len(samples) == measured for samples in times)
        if not alike or not all(_are_times(samples, measured, least=0.0) for samples in times):
            raise MeasurementError(f"the runtime returned impossible times of kernels: {str(times[0])[:80]}")
        self.state = _state(document)
        return kernels

    def _loaded_ask(
        self, subject: Subject, request: dict[str, Any], payload: bytes | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Loads `subject` and asks about it; both again where the link was lost meanwhile."""
        for lost in range(DROPS + 1):
            try:
                return self.load(subject), self._link.ask(request, payload=payload)
            except LinkLost as error:
                if lost == DROPS:
                    raise HwnasError(
                        f"the connection to {self.profile.host} was lost {lost + 1} times at {subject.name} ({error}): "
                        "does it take the machine down? what was measured is kept, the same command goes on"
                    ) from None
                self._link.reconnect(error)
        raise AssertionError("unreachable")

    def load(self, subject: Subject) -> int:
        """Makes sure that `subject` is loaded; returns how many copies one run executes."""
        if subject.name in self._link.loaded and subject.name not in self._stale:
            self._link.loaded.move_to_end(subject.name)
            return self._link.loaded[subject.name][0]
        if subject.memory_bytes > self._link.all_memory:
            raise MeasurementError(f"needs about {subject.memory_bytes / 1e9:.0f} GB, more memory than there is")
        try:
            model = subject.model()
        except (HwnasError, MemoryError, ValueError) as error:
            raise MeasurementError(f"cannot be written as a model: {' '.join(str(error).split())[:300]}") from None
        memory = subject.memory_bytes + len(model) * 5 // 4
        self._make_room(memory)
        try:
            answer = self._link.ask(
                {
                    "do": "load",
                    "name": subject.name,
                    "role": subject.role,
                    "min_run_ms": self.profile.timing.min_run_ms,
                },
                payload=model,
            )
        finally:  # what was loaded under the name is gone, whatever came of it
            self._link.loaded.pop(subject.name, None)
            self._stale.discard(subject.name)
        repeats = answer.get("repeats")
        if type(repeats) is not int or repeats < 1:
            raise MeasurementError(f"the runtime returned an impossible number of copies: {str(repeats)[:80]}")
        held = answer.get("memory_bytes")
        held = max(memory, held) if type(held) is int else memory
        self._make_room(held)  # it may hold more than was expected
        self._link.loaded[subject.name] = (repeats, held)
        return repeats

    def forget(self, subject: Subject) -> None:
        """Has `subject` loaded anew when it is next asked about.

        What is loaded stays until then, so that the new one lies elsewhere; where both have no room it goes first.
        """
        if subject.name in self._link.loaded:
            self._stale.add(subject.name)
            self._link.loaded.move_to_end(subject.name, last=False)

    def _make_room(self, memory: int) -> None:
        loaded = self._link.loaded
        while loaded and memory + sum(held for _, held in loaded.values()) > self.memory_limit_bytes:
            self._link.ask({"do": "unload", "name": loaded.popitem(last=False)[0]})

    def run(self, subject: Subject, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network's first output for `images` [batch, C, H, W], computed on the device."""
        asked = {"do": "run", "name": subject.name, "shape": list(images.shape)}
        payload = np.ascontiguousarray(images, np.float32).tobytes()
        _, answer = self._loaded_ask(subject, asked, payload)
        try:
            return np.frombuffer(base64.b64decode(answer["output"]), np.float32).reshape(answer["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise MeasurementError(f"the runtime returned no output: {error}") from None


def _state(answer: dict[str, Any]) -> dict[str, Any]:
    state = answer.get("state")
    return state if isinstance(state, dict) else {}


def _are_times(samples: Any, runs: int, least: float = 1e-9) -> bool:
    return (
        isinstance(samples, list)
        and 0 < len(samples) <= runs
        and all(type(sample) in (int, float) and math.isfinite(sample) and sample >= least for sample in samples)
    )
