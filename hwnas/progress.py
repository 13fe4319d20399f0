"""Progress of long work, as three calls that the library makes and the command line shows.

The library never prints: it is given a `Progress` and says what it does. `NullProgress` is for scripts and tests,
`RichProgress` writes to stderr: bars with the time left on a terminal, a plain line about every ten seconds elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichBars

PLAIN_INTERVAL_S = 10.0
"""Seconds between two lines of one task where stderr is not a terminal."""


class Task(Protocol):
    """Work with a known number of units that is under way."""

    def advance(self, n: int = 1) -> None:
        """`n` more units are done."""


class Progress(Protocol):
    """What long work tells whoever watches it."""

    def stage(self, text: str) -> None:
        """A new part of the work begins."""

    def start(self, total: int, description: str, done: int = 0) -> AbstractContextManager[Task]:
        """Work of `total` units, `done` of which were finished before (a resumed run)."""

    def note(self, text: str) -> None:
        """Something the user should read: an expected duration, a default, a budget that does not bind."""


class _SilentTask:
    def advance(self, n: int = 1) -> None:
        pass


class NullProgress:
    """Says nothing."""

    def stage(self, text: str) -> None:
        pass

    @contextmanager
    def start(self, total: int, description: str, done: int = 0) -> Iterator[Task]:  # noqa: ARG002
        yield _SilentTask()

    def note(self, text: str) -> None:
        pass


class RichProgress:
    """Writes to stderr: rich bars on a terminal, plain lines elsewhere.

    Args:
        stream: where to write; None is ``sys.stderr``.
        quiet: only notes are written, no stages and no bars.
        clock: seconds, for tests.
    """

    def __init__(
        self, stream: TextIO | None = None, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._clock = clock
        self._bars: RichBars | None = None
        self._open = 0

    def stage(self, text: str) -> None:
        if not self._quiet:
            self._write(text, bold=True)

    def note(self, text: str) -> None:
        self._write(f"  {text}")

    def _write(self, text: str, *, bold: bool = False) -> None:
        if self._bars is not None:  # through rich, so that the line lands above the bar
            self._bars.console.print(text, style="bold" if bold else None, markup=False, highlight=False)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    @contextmanager
    def start(self, total: int, description: str, done: int = 0) -> Iterator[Task]:
        if self._quiet:
            yield _SilentTask()
        elif self._stream.isatty():
            yield from self._bar(total, description, done)
        else:
            plain = _PlainTask(self._write, self._clock, total, description, done)
            yield plain
            plain.finish()

    def _bar(self, total: int, description: str, done: int) -> Iterator[Task]:
        """One bar; a task started inside another one shares its display."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        if self._bars is None:
            self._bars = Bars(
                TextColumn("  {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
            )
            self._bars.start()
        bars = self._bars
        self._open += 1
        task = bars.add_task(description, total=total, completed=done)
        try:
            yield _BarTask(lambda n: bars.advance(task, n))
        finally:
            self._open -= 1
            if self._open == 0:
                bars.stop()
                self._bars = None


class _BarTask:
    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    def advance(self, n: int = 1) -> None:
        self._advance(n)


class _PlainTask:
    """One line at most every `PLAIN_INTERVAL_S` seconds, and one at the end of work that took longer than that."""

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float], total: int, description: str, done: int
    ) -> None:
        self._write, self._clock = write, clock
        self._total, self._description = total, description
        self._done = self._done_before = done
        self._began = self._last = clock()

    def advance(self, n: int = 1) -> None:
        self._done += n
        now = self._clock()
        if now - self._last >= PLAIN_INTERVAL_S and self._done < self._total:
            self._last = now
            rate = (self._done - self._done_before) / (now - self._began)
            left = f", {duration((self._total - self._done) / rate)} left" if rate > 0 else ""
            self._write(f"  {self._description}: {self._done}/{self._total}{left}")

    def finish(self) -> None:
        if self._last != self._began:
            took = duration(self._clock() - self._began)
            self._write(f"  {self._description}: {self._done}/{self._total} in {took}")


def duration(seconds: float) -> str:
    """A duration as people say it.

    >>> duration(3.2), duration(192), duration(7500)
    ('3 s', '3 min 12 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
