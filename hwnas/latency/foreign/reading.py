"""What all importers share: choices of the user, what a file turned into, and reading it line by line within limits."""

from __future__ import annotations

import gzip
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hwnas.errors import HwnasError, UsageError
from hwnas.latency.imported import Imported

MAX_BYTES = 512 * 2**20
"""Of a file's text: ten times the largest table that we know of."""

MAX_LINE = 100_000
"""Characters of a line."""

MAX_ENTRIES = 2_000_000

MAX_SIZE = 2**20
"""Of a dimension: more is an error of the file and would overflow counts."""

MAX_MS = 1e7
"""Of a latency: three hours."""

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user says of a file; None leaves it to the file and the format."""

    batch: int | None = None
    precision: str | None = None
    device: str | None = None
    source: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class Foreign:
    """A foreign table, read.

    Attributes:
        entries: each name of a role once.
        device, runtime, precision, batch_size: what the latencies are true for.
        source, licence: where it comes from and how it may be used.
        note: what a reader of the table has to know of it.
        duplicates: rows that said something of an entry which another row had described.
        skipped: rows that stand for no operator of ours, by their kind.
    """

    entries: list[Imported]
    device: str
    runtime: str
    precision: str
    batch_size: int
    source: str
    licence: str
    note: str
    duplicates: int = 0
    skipped: Mapping[str, int] = field(default_factory=Counter)


def bad(path: Path, line: int, problem: str) -> HwnasError:
    """The refusal of a file: one line that names the place."""
    return HwnasError(f"{path}, line {line}: {problem}")


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, plain or gzipped, with their numbers from 1, without line ends.

    Raises:
        HwnasError: it cannot be read, is not UTF-8, or is larger than any honest table.
    """
    total = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number in range(1, MAX_BYTES):
                raw = file.readline(MAX_LINE + 1)
                if not raw:
                    return
                total += len(raw)
                if len(raw) > MAX_LINE:
                    raise bad(path, number, f"longer than {MAX_LINE} characters: this is no table")
                if total > MAX_BYTES:
                    raise bad(path, number, f"the file has more than {MAX_BYTES // 2**20} MiB: this is no table")
                yield number, raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise bad(path, number, "not text: give the file as it was published") from None
    except (OSError, EOFError, zlib.error) as error:
        raise HwnasError(f"cannot read {path}: {error}") from None


def size(path: Path, line: int, text: str) -> int:
    """A dimension."""
    if not (text.isascii() and text.isdigit() and 1 <= len(text) <= 7 and 1 <= int(text) <= MAX_SIZE):
        raise bad(path, line, f"{text[:40]!r} is no dimension (a whole number from 1 to {MAX_SIZE})")
    return int(text)


def milliseconds(path: Path, line: int, value: object, per_unit: float = 1.0) -> float | None:
    """A latency in ms; None where the value says that there is none (zero or below)."""
    try:
        ms = float(value) * per_unit if isinstance(value, (str, int, float)) else math.nan
    except (ValueError, OverflowError):
        ms = math.nan
    if not math.isfinite(ms) or ms > MAX_MS:
        raise bad(path, line, f"{str(value)[:40]!r} is no latency")
    return ms if ms > 0 else None


def merged(path: Path, rows: Iterable[tuple[int, Imported]]) -> tuple[list[Imported], int]:
    """Each entry once, and how many rows said something of an entry again.

    Latencies of one entry are averaged, as their authors do; a latency wins over a failure.
    """
    found: dict[tuple[str, str], list[Imported]] = {}
    duplicates = 0
    for line, row in rows:
        same = found.setdefault((row.role, row.name), [])
        duplicates += bool(same)
        same.append(row)
        if len(found) > MAX_ENTRIES:
            raise bad(path, line, f"more than {MAX_ENTRIES} entries: this is no table")
    return [_mean(same) for same in found.values()], duplicates


def _mean(rows: list[Imported]) -> Imported:
    known = [row for row in rows if row.latency_ms is not None]
    if len(known) <= 1:
        return known[0] if known else rows[0]
    mean = sum(row.latency_ms or 0.0 for row in known) / len(known)
    lows = [row.low_ms for row in known if row.low_ms is not None]
    highs = [row.high_ms for row in known if row.high_ms is not None]
    if len(lows) < len(known) or len(highs) < len(known):
        return replace(known[0], latency_ms=mean, low_ms=None, high_ms=None)
    return replace(known[0], latency_ms=mean, low_ms=min(lows), high_ms=max(highs))


def chosen(path: Path, what: str, option: str, there: Iterable[str], choice: str | None) -> str:
    """The one value of several in a file that is imported: tables are of one batch, one device.

    Raises:
        UsageError: the file leaves it open and no option says it, or says another.
    """
    values = sorted(set(there), key=lambda text: (len(text), text))
    if choice is not None and choice in values:
        return choice
    if choice is None and len(values) == 1:
        return values[0]
    if not values:
        raise HwnasError(f"{path} holds no entry of this format: give another --format")
    shown = ", ".join(values[:20])
    refused = f"the file has no {what} {choice}" if choice is not None else f"the file has several {_plural(what)}"
    raise UsageError(f"{path}: {refused}: choose one of {shown} with {option}")


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("ch") else f"{noun}s"
