"""`Terminal`: what one command line prints, and where.

stdout carries the result and nothing else: one JSON document with `--json`, tables without. Everything else (defaults
that were used, progress, advice, errors) goes to stderr.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hwnas.progress import Progress


@dataclass
class Terminal:
    """State of one command line.

    Attributes:
        argv: as typed, without the program's name.
        json, quiet, debug: the options every command has.
        mute: nothing is printed: this is one of torchrun's processes, and the first of them speaks for all.
        kept: what an interruption leaves behind, in words; empty where there is nothing to keep.
        resume: the command that goes on, as arguments; empty is the command as typed.
    """

    argv: tuple[str, ...]
    json: bool = False
    quiet: bool = False
    debug: bool = False
    mute: bool = False
    kept: str = ""
    resume: tuple[str, ...] = ()
    _result: TextIO | None = field(default=None, repr=False)
    _said: set[str] = field(default_factory=set, repr=False)

    def claim_stdout(self) -> None:
        """From here on only `document` and `table` reach stdout; what libraries and children print goes to stderr."""
        if self._result is None:
            sys.stdout.flush()
            self._result = os.fdopen(os.dup(1), "w", encoding="utf-8")
            os.dup2(2, 1)

    @property
    def stdout(self) -> TextIO:
        """Where the result goes."""
        return self._result or sys.stdout

    def document(self, data: Any) -> None:
        """Prints the one JSON document of `--json`."""
        import json

        if self.mute:
            return
        self.stdout.write(json.dumps(plain(data), indent=2, allow_nan=False) + "\n")
        self.stdout.flush()

    def table(self, *parts: RenderableType) -> None:
        """Prints the result for people; wide where stdout is not a terminal, so that nothing is cut off."""
        from rich.console import Console

        if self.mute:
            return
        width = None if self.stdout.isatty() else 200
        console = Console(file=self.stdout, width=width, highlight=False, markup=False)
        with console.capture() as captured:
            for part in parts:
                console.print(part)
        self.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
        self.stdout.flush()

    def note(self, text: str) -> None:
        """A line on stderr, unless `--quiet`."""
        if not self.quiet and not self.mute:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def default(self, option: str, value: object, why: str = "default") -> None:
        """Says on stderr which value an option got that was not given."""
        line = f"using {option} {value} ({why})"
        if line not in self._said:
            self._said.add(line)
            self.note(line)

    def error(self, line: str) -> None:
        """The one line that says what went wrong and what to do."""
        if self.mute:
            return
        sys.stderr.write("hwnas: error: " + " ".join(line.split()) + "\n")
        sys.stderr.flush()

    def progress(self) -> Progress:
        """Bars or lines on stderr; with `--quiet`, only what has to be read."""
        from hwnas.progress import RichProgress

        return RichProgress(quiet=self.quiet)

    def resume_command(self) -> str:
        """The command that goes on after an interruption."""
        return shlex.join(["hwnas", *(self.resume or self.argv)])


def count(number: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(share: float | None) -> str:
    """A fraction as percent; a dash where there is none."""
    return "-" if share is None else f"{100 * share:.2f}%"


def plain(data: Any) -> Any:
    """`data` as JSON can say it: numpy scalars as numbers, NaN and infinity as null, paths as text."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    if hasattr(data, "tolist"):
        return plain(data.tolist())
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return str(data) if isinstance(data, os.PathLike) else data


def milliseconds(*values: float | None) -> str:
    """A latency, or an interval of two, to four significant digits: ``12.31``, ``0.04513``, ``12.11 to 12.52``."""
    return " to ".join("?" if value is None else f"{value:.4g}" for value in values)
