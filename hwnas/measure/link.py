"""`Link`: the pipe between this process and the measuring process, which is started again where it has ended.

Where the device is elsewhere the pipe goes through ssh: an end of it that is not the measuring process's own is a lost
link, which says nothing about what was being measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwnas.devices import DeviceProfile
from hwnas.errors import HwnasError
from hwnas.measure import ssh
from hwnas.measure.child import Child, how_it_ended
from hwnas.measure.hardware import quiet_environment
from hwnas.measure.lock import WAIT_S
from hwnas.memory import all_memory_bytes, free_memory_bytes
from hwnas.progress import Progress

START_TIMEOUT_S = 120.0


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


class Link:
    """Asks the measuring process of a profile, which it starts where there is none.

    Args:
        profile: says where it is, and which runtime with which options.
        command: how it is started where the device is here.
        cache: folder where a runtime keeps what it builds; None is nowhere.
        progress: is told of waiting and of lost connections.

    Attributes:
        describe: what the runtime says of itself and the device.
        all_memory: bytes of the machine that measures.
        memory_bytes: of the device's own memory, or what is free of the machine's.
        load_average: of the machine that measures.
        loaded: what the process holds, by name, the longest unused first: copies in a run, and bytes. Empty after its
            end.
    """

    def __init__(
        self, profile: DeviceProfile, command: tuple[str, ...], *, cache: Path | None, progress: Progress
    ) -> None:
        self.profile = profile
        self.describe: dict[str, Any] = {}
        self.all_memory = all_memory_bytes()
        self.memory_bytes = free_memory_bytes()
        self.load_average = list(os.getloadavg())
        self.loaded: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self.command = ssh.command(profile.host, profile.python, uuid.uuid4().hex) if profile.host else command
        self.child: Child | None = None
        self._cache = cache
        self._progress = progress

    def close(self, *, kill: bool = False) -> None:
        """Ends the process: by closing its stdin, or at once, by force."""
        child, self.child = self.child, None
        self.loaded.clear()
        if child is not None:
            child.close(kill=kill)

    def start(self) -> None:
        """Starts the process and opens the runtime; far away, waits for the device's lock there.

        Raises:
            LinkLost: nobody answers where it should run.
            MeasurementError: it does not start, or the runtime does not.
            HwnasError: what answers cannot measure, or the device is busy.
        """
        self.loaded.clear()
        try:
            self.child = Child(self.command, None if self.profile.host else quiet_environment())
        except OSError as error:
            if self.profile.host:
                raise HwnasError(f"no ssh client to reach {self.profile.host}: install one, or set HWNAS_SSH to its "
                                 f"command ({error})") from None  # fmt: skip
            raise MeasurementError(str(error), process_died=True) from None
        if self.profile.host:
            self._greet()
        self._open()

    def ask(
        self, request: dict[str, Any], timeout_s: float | None = None, payload: bytes | None = None
    ) -> dict[str, Any]:
        """The answer to a request.

        Args:
            request: what is sent as a line of JSON.
            timeout_s: of the answer, and of sending what is asked; None is the profile's.
            payload: bytes that follow the line.

        Raises:
            MeasurementError: it says that it failed, was silent for too long, or ended.
            LinkLost: the connection ended, not the process.
            HwnasError: the disk is full where it runs.
        """
        if self.child is None:
            self.start()
        assert self.child is not None
        timeout_s = timeout_s or self.profile.timing.timeout_s
        if payload is not None:
            request = {**request, "payload": len(payload)}
        try:
            answer = self._exchange(self.child, (json.dumps(request).encode() + b"\n", payload or b""), timeout_s)
        except TimeoutError:
            # ssh needs some time to find that nobody is there any more
            lost = self.profile.host and self.child.wait(ssh.SILENCE_S) is not None
            self.close(kill=True)
            if lost:
                raise LinkLost(f"silent for {ssh.SILENCE_S:g} s") from None
            raise MeasurementError(f"timed out after {timeout_s:g} s", process_died=True) from None
        except EOFError:
            if self.profile.host:
                words = self.child.last_words().strip(": ")
                self.close(kill=True)
                raise LinkLost(words or "it was closed") from None
            message = f"took the measuring process down ({self._reap()})"
            raise MeasurementError(message, process_died=True) from None
        except ValueError as error:
            died = _death(str(error)) if self.profile.host else ""
            words = self.child.last_words() if died else ""
            self.close(kill=True)
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

    def reconnect(self, error: LinkLost) -> None:
        """Starts the far end again, with growing pauses.

        Raises:
            HwnasError: it stays out of reach, or another device answers.
        """
        before = dict(self.describe)
        for pause_s in ssh.PAUSES_S:
            self._progress.note(f"the connection to {self.profile.host} was lost ({error}): again in {pause_s:g} s")
            time.sleep(pause_s)
            try:
                self.start()
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

    def _greet(self) -> None:
        """Hears who is there, past what the shell's start-up files may print."""
        assert self.child is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        said = None
        try:
            while said is None:
                said = ssh.greeting(self.child.line((), deadline))
        except (EOFError, TimeoutError) as error:
            code, words = self.child.wait(2), self.child.last_words()
            self.close(kill=True)
            silent = f"{self.profile.host} does not answer" if isinstance(error, TimeoutError) else ""
            raise LinkLost(silent or ssh.why_not(self.profile.host, code, words)) from None
        try:
            ssh.check_greeting(said, self.profile.host)
            self.all_memory, self.memory_bytes = int(said["memory"]), int(said["free_memory"])
            self.load_average = [float(load) for load in said["load"]]
        except (KeyError, TypeError, ValueError) as error:
            raise HwnasError(f"{self.profile.host} does not speak as hwnas does ({error!r:.80})") from None

    def _open(self) -> None:
        """Opens the runtime; far away, waits for the device's lock there."""
        options = self.profile.runtime_options()
        if self._cache is not None:
            options |= {"cache_name": self.profile.name} if self.profile.host else {"cache": str(self._cache)}
        request = {"do": "open", "runtime": self.profile.runtime, "options": options}
        if self.profile.host:
            request["lock"] = self.profile.device
        told, give_up = False, time.monotonic() + WAIT_S
        while True:
            try:
                describe = self.ask(request, START_TIMEOUT_S).get("describe")
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
        if isinstance(own_memory, int):
            self.memory_bytes = own_memory

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
        assert self.child is not None
        code, words = self.child.wait(2), self.child.last_words()
        self.close(kill=code is None)
        if code is None:
            return "closed its output"
        return how_it_ended(code) + (words if code >= 0 else "")


def _death(answer: str) -> str:
    """How the worker ended, where that is what the far end's last line says."""
    with contextlib.suppress(ValueError):
        said = json.loads(answer)
        return str(said["died"])[:80] if isinstance(said, dict) and "died" in said else ""
    return ""
