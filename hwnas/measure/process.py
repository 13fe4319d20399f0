"""`MeasuringProcess`: the parent's end of the measuring process.

A crash, a hang or an out-of-memory kill of one operator ends the process, is reported as that operator's
`MeasurementError`, and a fresh process is started for the next request. Models are loaded again when next asked for.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import sys
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hwnas.devices import DeviceProfile
from hwnas.errors import HwnasError, RuntimeMissing
from hwnas.measure import ssh
from hwnas.measure.child import Child, how_it_ended
from hwnas.measure.hardware import quiet_environment
from hwnas.measure.lock import WAIT_S
from hwnas.measure.runtimes.base import KernelTime
from hwnas.memory import all_memory_bytes, free_memory_bytes
from hwnas.progress import NullProgress, Progress

WORKER = (sys.executable, "-m", "hwnas.measure.worker")
START_TIMEOUT_S = 120.0
DROPS = 3
"""Lost connections at one and the same request that are repaired."""


class LinkLost(Exception):
    """The connection to a device that is elsewhere ended; nothing is said about what was being measured."""


class Busy(Exception):
    """Another process holds the lock of a device that is elsewhere."""


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
        self.cache = cache
        self.memory_limit_bytes = memory_limit_bytes or free_memory_bytes() // 2
        self.all_memory = all_memory_bytes()
        self.load_average = list(os.getloadavg())
        self.describe: dict[str, Any] = {}
        self.state: dict[str, Any] = {}  # what the runtime told of the device when it last timed something
        self._limit_given = memory_limit_bytes is not None
        self._progress = progress or NullProgress()
        self._command = ssh.command(profile.host, profile.python, uuid.uuid4().hex) if profile.host else command
        self._child: Child | None = None
        self._loaded: OrderedDict[str, tuple[int, int]] = OrderedDict()  # name -> (repeats, memory), oldest use first

    def __enter__(self) -> Self:
        if self.profile.retired:
            raise RuntimeMissing(self.profile.retired)
        try:
            self._start()
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
        self._close()

    def _close(self, *, kill: bool = False) -> None:
        child, self._child = self._child, None
        self._loaded.clear()
        if child is not None:
            child.close(kill=kill)

    def time_ms(self, subject: Subject, runs: int) -> tuple[int, list[float]]:
        """Loads `subject` if need be and times `runs` runs. Returns (copies in a run, ms of each run).

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
        """Times the kernels of a network (role ``kernels``) inside it, in `runs` runs or somewhat fewer.

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
        if not measured or not all(_are_times(samples, measured, least=0.0) for samples in times):
            raise MeasurementError(f"the runtime returned impossible times of kernels: {str(times[0])[:80]}")
        self.state = _state(document)
        return kernels

    def _loaded_ask(
        self, subject: Subject, request: dict[str, Any], payload: bytes | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Loads `subject` and asks about it; both again where the link was lost meanwhile."""
        for lost in range(DROPS + 1):
            try:
                return self.load(subject), self._ask(request, payload=payload)
            except LinkLost as error:
                if lost == DROPS:
                    raise HwnasError(
                        f"the connection to {self.profile.host} was lost {lost + 1} times at {subject.name} ({error}): "
                        "does it take the machine down? what was measured is kept, the same command goes on"
                    ) from None
                self._reconnect(error)
        raise AssertionError("unreachable")

    def _reconnect(self, error: LinkLost) -> None:
        """Starts the far end again, with growing pauses.

        Raises:
            HwnasError: it stays out of reach, or another device answers.
        """
        before = dict(self.describe)
        for pause_s in ssh.PAUSES_S:
            self._progress.note(f"the connection to {self.profile.host} was lost ({error}): again in {pause_s:g} s")
            time.sleep(pause_s)
            try:
                self._start()
            except LinkLost as again:
                error = again
                continue
            except MeasurementError as again:
                raise HwnasError(f"{self.profile.host} cannot measure any more: {again}") from None
            if before and self.describe != before:
                raise HwnasError(f"{self.profile.host} was lost, and another set-up answers there now: start again")
            return
        raise HwnasError(f"{self.profile.host} stays out of reach ({error}): what was measured is kept, the same "
                         "command goes on")  # fmt: skip

    def load(self, subject: Subject) -> int:
        """Makes sure that `subject` is loaded; returns how many copies one run executes."""
        if subject.name in self._loaded:
            self._loaded.move_to_end(subject.name)
            return self._loaded[subject.name][0]
        if subject.memory_bytes > self.all_memory:
            raise MeasurementError(f"needs about {subject.memory_bytes / 1e9:.0f} GB, more memory than there is")
        try:
            model = subject.model()
        except (HwnasError, MemoryError, ValueError) as error:
            raise MeasurementError(f"cannot be written as a model: {' '.join(str(error).split())[:300]}") from None
        memory = subject.memory_bytes + len(model) * 5 // 4
        self._make_room(memory)
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
        held = answer.get("memory_bytes")
        held = max(memory, held) if type(held) is int else memory
        self._make_room(held)  # it may hold more than was expected
        self._loaded[subject.name] = (repeats, held)
        return repeats

    def _make_room(self, memory: int) -> None:
        while self._loaded and memory + sum(held for _, held in self._loaded.values()) > self.memory_limit_bytes:
            self._ask({"do": "unload", "name": self._loaded.popitem(last=False)[0]})

    def run(self, subject: Subject, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network's first output for `images` [batch, C, H, W], computed on the device."""
        asked = {"do": "run", "name": subject.name, "shape": list(images.shape)}
        payload = np.ascontiguousarray(images, np.float32).tobytes()
        _, answer = self._loaded_ask(subject, asked, payload)
        try:
            return np.frombuffer(base64.b64decode(answer["output"]), np.float32).reshape(answer["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise MeasurementError(f"the runtime returned no output: {error}") from None

    # -- the pipe ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._loaded.clear()
        try:
            self._child = Child(self._command, None if self.profile.host else quiet_environment())
        except OSError as error:
            if self.profile.host:
                raise HwnasError(f"no ssh client to reach {self.profile.host}: install one, or set HWNAS_SSH to its "
                                 f"command ({error})") from None  # fmt: skip
            raise MeasurementError(str(error), process_died=True) from None
        if self.profile.host:
            self._greet()
        self._open()

    def _greet(self) -> None:
        """Hears who is there, past what the shell's start-up files may print."""
        assert self._child is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        said = None
        try:
            while said is None:
                said = ssh.greeting(self._child.line((), deadline))
        except (EOFError, TimeoutError) as error:
            code, words = self._child.wait(2), self._child.last_words()
            self._close(kill=True)
            silent = f"{self.profile.host} does not answer" if isinstance(error, TimeoutError) else ""
            raise LinkLost(silent or ssh.why_not(self.profile.host, code, words)) from None
        try:
            ssh.check_greeting(said, self.profile.host)
            self.all_memory, free = int(said["memory"]), int(said["free_memory"])
            self.load_average = [float(load) for load in said["load"]]
        except (KeyError, TypeError, ValueError) as error:
            raise HwnasError(f"{self.profile.host} does not speak as hwnas does ({error!r:.80})") from None
        if not self._limit_given:
            self.memory_limit_bytes = free // 2

    def _open(self) -> None:
        """Opens the runtime; far away, waits for the device's lock there."""
        options = self.profile.runtime_options()
        if self.cache is not None:
            options |= {"cache_name": self.profile.name} if self.profile.host else {"cache": str(self.cache)}
        request = {"do": "open", "runtime": self.profile.runtime, "options": options}
        if self.profile.host:
            request["lock"] = self.profile.device
        told, give_up = False, time.monotonic() + WAIT_S
        while True:
            try:
                describe = self._ask(request, START_TIMEOUT_S).get("describe")
            except Busy as busy:
                if time.monotonic() > give_up:
                    raise HwnasError(f"{busy} ({self.profile.host}) still: try later") from None
                if not told:
                    self._progress.note(f"{busy} ({self.profile.host}): waiting for it to finish")
                told = True
                time.sleep(1.0)
                continue
            break
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
        assert self._child is not None
        timeout_s = timeout_s or self.profile.timing.timeout_s
        if payload is not None:
            request = {**request, "payload": len(payload)}
        try:
            answer = self._exchange(self._child, (json.dumps(request).encode() + b"\n", payload or b""), timeout_s)
        except TimeoutError:
            # ssh needs some time to find that nobody is there any more
            lost = self.profile.host and self._child.wait(ssh.SILENCE_S) is not None
            self._close(kill=True)
            if lost:
                raise LinkLost(f"silent for {ssh.SILENCE_S:g} s") from None
            raise MeasurementError(f"timed out after {timeout_s:g} s", process_died=True) from None
        except EOFError:
            if self.profile.host:
                words = self._child.last_words().strip(": ")
                self._close(kill=True)
                raise LinkLost(words or "it was closed") from None
            message = f"took the measuring process down ({self._reap()})"
            raise MeasurementError(message, process_died=True) from None
        except ValueError as error:
            died = _death(str(error)) if self.profile.host else ""
            words = self._child.last_words() if died else ""
            self._close(kill=True)
            if died:
                raise MeasurementError(f"took the measuring process down ({died}{words})", process_died=True) from None
            message = f"the measuring process answered nonsense ({' '.join(str(error).split())})"
            raise MeasurementError(message, process_died=True) from None
        if answer.get("busy"):
            raise Busy(str(answer.get("error"))[:200])
        if answer.get("full"):
            raise HwnasError(
                f"the measuring process cannot write its temporary files ({answer.get('error')}): free some space "
                "there or name another folder in TMPDIR, and run the same command again; what was finished is kept"
            )
        if not answer["ok"]:
            raise MeasurementError(str(answer.get("error")), fix=str(answer.get("fix", "")))
        return answer

    def _exchange(self, child: Child, parts: Sequence[bytes], timeout_s: float) -> dict[str, Any]:
        if child.unread:
            said = child.unread.decode(errors="replace").strip()
            raise ValueError(said if _death(said) else f"without being asked: {said[:80]}")
        text = child.line(parts, time.monotonic() + timeout_s, patient=bool(self.profile.host))
        if self.profile.host:  # the wire may be slow: the time runs from where the request has arrived
            if json.loads(text) != {"got": True}:
                raise ValueError(text[:200].decode(errors="replace"))
            text = child.line((), time.monotonic() + timeout_s)
        answer = json.loads(text)
        if not isinstance(answer, dict) or "ok" not in answer:
            raise ValueError(text[:200].decode(errors="replace"))
        return answer

    def _reap(self) -> str:
        assert self._child is not None
        code, words = self._child.wait(2), self._child.last_words()
        self._close(kill=code is None)
        if code is None:
            return "closed its output"
        return how_it_ended(code) + (words if code >= 0 else "")


def _death(answer: str) -> str:
    """How the worker ended, where that is what the far end's last line says."""
    with contextlib.suppress(ValueError):
        said = json.loads(answer)
        return str(said["died"])[:80] if isinstance(said, dict) and "died" in said else ""
    return ""


def _state(answer: dict[str, Any]) -> dict[str, Any]:
    state = answer.get("state")
    return state if isinstance(state, dict) else {}


def _are_times(samples: Any, runs: int, least: float = 1e-9) -> bool:
    return (
        isinstance(samples, list)
        and len(samples) == runs
        and all(type(sample) in (int, float) and math.isfinite(sample) and sample >= least for sample in samples)
    )
