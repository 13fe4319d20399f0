"""`MeasuringProcess`: the parent's end of the measuring process.

A crash, a hang or an out-of-memory kill of one operator ends the process, is reported as that operator's
`MeasurementError`, and a fresh process is started for the next request. Models are loaded again when next asked for.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from hwnas.devices import DeviceProfile
from hwnas.errors import HwnasError, RuntimeMissing
from hwnas.measure.runtimes.base import KernelTime
from hwnas.memory import all_memory_bytes, free_memory_bytes

WORKER = (sys.executable, "-m", "hwnas.measure.worker")
START_TIMEOUT_S = 120.0
PIPE_BYTES = 1 << 20
"""What the pipe to the child holds: models of megabytes go through it in fewer writes."""


class MeasurementError(Exception):
    """One model could not be built or timed; the message says why. The others can still be measured.

    Attributes:
        process_died: it took the measuring process down, which may have had another cause: worth one more try.
        fix: the command that installs the runtime, where that is what is missing.
    """

    def __init__(self, message: str, *, process_died: bool = False, fix: str = "") -> None:
        super().__init__(message)
        self.process_died = process_died
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to measure.

    Attributes:
        name: unique in the process.
        role: ``operator`` (timed as inside a network, repeated), ``network``, or ``kernels`` (a network whose kernels
            are timed one by one).
        model: makes the ONNX model's bytes when it is (re)loaded.
        memory_bytes: about how much a loaded session holds; sessions are unloaded when the sum passes the limit.
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
        cache: folder where a runtime keeps what it builds; None is nowhere.
        command: how the child is started; for tests and, later, the far end of an ssh pipe.
    """

    def __init__(
        self,
        profile: DeviceProfile,
        *,
        memory_limit_bytes: int | None = None,
        command: tuple[str, ...] = WORKER,
        cache: Path | None = None,
    ) -> None:
        self.profile = profile
        self.cache = cache
        self.memory_limit_bytes = memory_limit_bytes or free_memory_bytes() // 2
        self._limit_given = memory_limit_bytes is not None
        self.describe: dict[str, Any] = {}
        self.state: dict[str, Any] = {}
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._complaints: IO[bytes] | None = None
        self._loaded: OrderedDict[str, tuple[int, int]] = OrderedDict()  # name -> (repeats, memory), oldest use first

    def __enter__(self) -> Self:
        if self.profile.retired:
            raise RuntimeMissing(self.profile.retired)
        try:
            self._start()
        except MeasurementError as error:
            self.close()
            reason = str(error) if error.fix else f"the measuring process did not start: {error}"
            raise RuntimeMissing(reason, error.fix) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child."""
        child, self._child = self._child, None
        self._loaded.clear()
        self._buffer = b""
        if self._complaints is not None:
            self._complaints.close()
            self._complaints = None
        if child is None:
            return
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            child.wait(timeout=2)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def time_ms(self, subject: Subject, runs: int) -> tuple[int, list[float]]:
        """Loads `subject` if need be and times `runs` runs. Returns (copies in a run, ms of each run).

        Raises:
            MeasurementError: it cannot be built or timed, hung, or took the process down.
        """
        repeats = self.load(subject)
        answer = self._ask({"do": "time", "name": subject.name, "runs": runs})
        samples: Any = answer.get("samples_ms")
        if not _are_times(samples, runs):
            raise MeasurementError(f"the runtime returned impossible times: {str(samples)[:80]}")
        state = answer.get("state")
        self.state = state if isinstance(state, dict) else {}
        return repeats, samples

    def time_kernels(self, subject: Subject, runs: int) -> list[KernelTime]:
        """Times the kernels of a network (role ``kernels``) inside it, in `runs` runs or somewhat fewer.

        Raises:
            MeasurementError: it cannot be built or timed, hung, or took the process down.
        """
        self.load(subject)
        answer: Any = self._ask({"do": "kernels", "name": subject.name, "runs": runs}).get("kernels")
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
        if not measured or not all(_are_times(samples, measured, least=0.0) for samples in times):
            raise MeasurementError(f"the runtime returned impossible times of kernels: {str(times[0])[:80]}")
        return kernels

    def load(self, subject: Subject) -> int:
        """Makes sure that `subject` is loaded; returns how many copies one run executes."""
        if subject.name in self._loaded:
            self._loaded.move_to_end(subject.name)
            return self._loaded[subject.name][0]
        if subject.memory_bytes > all_memory_bytes():
            raise MeasurementError(f"needs about {subject.memory_bytes / 1e9:.0f} GB, more memory than there is")
        try:
            model = subject.model()
        except (HwnasError, MemoryError, ValueError) as error:
            raise MeasurementError(f"cannot be written as a model: {' '.join(str(error).split())[:300]}") from None
        memory = subject.memory_bytes + len(model) * 5 // 4
        while self._loaded and memory + sum(held for _, held in self._loaded.values()) > self.memory_limit_bytes:
            self._ask({"do": "unload", "name": self._loaded.popitem(last=False)[0]})
        answer = self._ask(
            {
                "do": "load",
                "name": subject.name,
                "role": subject.role,
                "min_run_ms": self.profile.timing.min_run_ms,
            },
            payload=model,
        )
        repeats = answer.get("repeats")
        if type(repeats) is not int or repeats < 1:
            raise MeasurementError(f"the runtime returned an impossible number of copies: {str(repeats)[:80]}")
        self._loaded[subject.name] = (repeats, memory)
        return repeats

    def run(self, subject: Subject, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network's first output for `images` [batch, C, H, W], computed on the device."""
        self.load(subject)
        answer = self._ask(
            {"do": "run", "name": subject.name, "shape": list(images.shape)},
            payload=np.ascontiguousarray(images, np.float32).tobytes(),
        )
        try:
            return np.frombuffer(base64.b64decode(answer["output"]), np.float32).reshape(answer["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise MeasurementError(f"the runtime returned no output: {error}") from None

    # -- the pipe ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the child)
        pipe = subprocess.PIPE
        try:
            self._child = subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, stderr=self._complaints, env=_environment()
            )
        except OSError as error:
            self.close()
            raise MeasurementError(str(error), process_died=True) from None
        assert self._child.stdin is not None
        os.set_blocking(self._child.stdin.fileno(), False)
        with contextlib.suppress(OSError, AttributeError):  # fewer, longer writes, where the system allows it
            fcntl.fcntl(self._child.stdin.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._buffer = b""
        self._loaded.clear()
        options = self.profile.runtime_options()
        if self.cache is not None:
            options["cache"] = str(self.cache)
        request = {"do": "open", "runtime": self.profile.runtime, "options": options}
        describe = self._ask(request, START_TIMEOUT_S).get("describe")
        if not isinstance(describe, dict):
            raise MeasurementError(f"it does not say what it measures: {str(describe)[:80]}")
        self.describe = describe
        own_memory = describe.get("memory_bytes")
        if isinstance(own_memory, int) and not self._limit_given:
            self.memory_limit_bytes = own_memory // 2

    def _ask(
        self, request: dict[str, Any], timeout_s: float | None = None, payload: bytes | None = None
    ) -> dict[str, Any]:
        if self._child is None:
            self._start()
        timeout_s = timeout_s or self.profile.timing.timeout_s
        if payload is not None:
            request = {**request, "payload": len(payload)}
        try:
            answer = self._exchange((json.dumps(request).encode() + b"\n", payload or b""), timeout_s)
        except TimeoutError:
            self._kill()
            raise MeasurementError(f"timed out after {timeout_s:g} s", process_died=True) from None
        except (BrokenPipeError, EOFError):
            message = f"took the measuring process down ({self._reap()})"
            raise MeasurementError(message, process_died=True) from None
        except ValueError as error:
            self._kill()
            message = f"the measuring process answered nonsense ({' '.join(str(error).split())})"
            raise MeasurementError(message, process_died=True) from None
        if not answer["ok"]:
            raise MeasurementError(str(answer.get("error")), fix=str(answer.get("fix", "")))
        return answer

    def _exchange(self, parts: Sequence[bytes], timeout_s: float) -> dict[str, Any]:
        child = self._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        if self._buffer:
            raise ValueError(f"without being asked: {self._buffer[:80].decode(errors='replace')}")
        deadline = time.monotonic() + timeout_s
        # written bit by bit: a child that hangs does not empty its pipe either
        unsent = [memoryview(part) for part in parts if part]
        while b"\n" not in self._buffer:
            reads, writes, _ = select.select(
                [child.stdout], [child.stdin] if unsent else [], [], max(0.0, deadline - time.monotonic())
            )
            if not reads and not writes:
                raise TimeoutError
            if writes:
                unsent[0] = unsent[0][os.write(child.stdin.fileno(), unsent[0]) :]
                if not unsent[0]:
                    del unsent[0]
            if not reads:
                continue
            chunk = os.read(child.stdout.fileno(), 1 << 16)
            if not chunk:
                raise EOFError
            self._buffer += chunk
        if unsent:
            raise ValueError("before it had read what it was asked")
        text, self._buffer = self._buffer.split(b"\n", 1)
        answer = json.loads(text)
        if not isinstance(answer, dict) or "ok" not in answer:
            raise ValueError(text[:80].decode(errors="replace"))
        return answer

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
        self.close()

    def _reap(self) -> str:
        assert self._child is not None
        try:
            code = self._child.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._kill()
            return "closed its output"
        words = self._last_words()
        self.close()
        if code < 0:
            return f"killed by {signal.Signals(-code).name}" + (", out of memory?" if code == -signal.SIGKILL else "")
        return f"exit {code}{words}"

    def _last_words(self) -> str:
        """The last line that the child wrote to stderr: of a traceback, the error."""
        assert self._complaints is not None
        self._complaints.seek(max(0, self._complaints.seek(0, os.SEEK_END) - 4096))
        lines = self._complaints.read().decode(errors="replace").split("\n")
        written = [line.strip() for line in lines if line.strip()]
        return f": {written[-1][:300]}" if written else ""


def _environment() -> dict[str, str]:
    """The child's environment: no thread pools beside the one that is asked for, no telemetry."""
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CI": "true"}
    return {**os.environ, **quiet}


def _are_times(samples: Any, runs: int, least: float = 1e-9) -> bool:
    return (
        isinstance(samples, list)
        and len(samples) == runs
        and all(type(sample) in (int, float) and math.isfinite(sample) and sample >= least for sample in samples)
    )
