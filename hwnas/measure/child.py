"""`Child`: a process that is spoken to through its stdin and stdout, with deadlines."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence

PIPE_BYTES = 1 << 20
"""What the pipe to the child holds: models of megabytes go through it in fewer writes."""

SLOWEST_S = 60.0
"""A wire that carries nothing for so long is taken to be cut."""


class Child:
    """Runs a command; what it complains of is kept, for its last words.

    Args:
        command: its words.
        environment: None is this process's own.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the child)
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._complaints, env=environment)
        except OSError:
            self._complaints.close()
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        with contextlib.suppress(OSError, AttributeError):  # fewer, longer writes, where the system allows it
            fcntl.fcntl(self._stdin.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.unread = b""

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> int | None:
        """The exit code; None where it still runs after so long."""
        try:
            return self._process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def line(self, parts: Sequence[bytes], deadline: float, *, patient: bool = False) -> bytes:
        """Sends `parts` and receives a line, without its end. Blank lines are passed over.

        A child that ended with the request unread may have said why before that: it is read all the same.

        Args:
            parts: sent one after the other.
            deadline: on `time.monotonic`'s clock.
            patient: the deadline moves as long as something is sent.

        Raises:
            TimeoutError: there was no line by then.
            EOFError: it closed its end.
            ValueError: it answered before it had read all; the answer is the message.
        """
        # written bit by bit: a child that hangs does not empty its pipe either
        unsent = [memoryview(part) for part in parts if part]
        allowed_s = max(SLOWEST_S, deadline - time.monotonic())
        while True:
            while b"\n" in self.unread:
                text, self.unread = self.unread.split(b"\n", 1)
                if text.strip() and unsent:
                    raise ValueError(text[:200].decode(errors="replace"))
                if text.strip():
                    return text
            left_s = max(0.0, deadline - time.monotonic())
            reads, writes, _ = select.select([self._stdout], [self._stdin] if unsent else [], [], left_s)
            if not reads and not writes:
                raise TimeoutError
            if writes:
                try:
                    unsent[0] = unsent[0][os.write(self._stdin.fileno(), unsent[0]) :]
                except BrokenPipeError:
                    unsent.clear()
                else:
                    if not unsent[0]:
                        del unsent[0]
                    deadline = time.monotonic() + allowed_s if patient else deadline
            if reads:
                chunk = os.read(self._stdout.fileno(), 1 << 16)
                if not chunk:
                    raise EOFError
                self.unread += chunk

    def last_words(self) -> str:
        """The last line that it wrote to stderr, after a colon: of a traceback, the error. Empty where it said none."""
        self._complaints.seek(max(0, self._complaints.seek(0, os.SEEK_END) - 4096))
        lines = self._complaints.read().decode(errors="replace").split("\n")
        written = [line.strip() for line in lines if line.strip()]
        return f": {written[-1][:300]}" if written else ""

    def close(self, *, kill: bool = False) -> None:
        """Ends it: by closing its stdin, and where that does not help, or at once, by force."""
        if kill:
            self._process.kill()
        for stream in (self._stdin, self._stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        if self.wait(2) is None:
            self._process.kill()
            self._process.wait()
        self._complaints.close()


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}" + (", out of memory?" if code == -signal.SIGKILL else "")
    return f"exit {code}"
