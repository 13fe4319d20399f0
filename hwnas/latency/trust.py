"""Trust checks: what a table's file says is not believed, since it may come from anywhere.

Each check takes what SQLite returned and gives a value of the right type and of a sane size, or raises the one-line
`HwnasError` that says the file is damaged and what to do. Sizes are bounded so that arithmetic on them cannot overflow;
what a file makes of memory is bounded by the file, since its tables are plain ones and its values short.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import HwnasError
from hwnas.network import Network
from hwnas.ops import Op

MAX_COUNT = 2**31 - 1
"""Largest dimension, batch or number of threads that is believed."""

MAX_TEXT = 200
"""Longest name of a device, runtime or profile."""

MAX_VALUE_BYTES = 1 << 26
"""Longest single value that is read from a file: thousands of times what hwnas writes."""

SAMPLE_RANGE_MS = (1e-9, 1e9)
"""What one execution can take: from a thousandth of a nanosecond to eleven days."""


def harden(connection: sqlite3.Connection) -> None:
    """Makes SQLite distrust a file before anything is read from it."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")


def plain_tables(connection: sqlite3.Connection) -> bool:
    """Whether a file holds nothing but tables of stored columns, and indexes.

    A view or a generated column is a program: a few bytes of it can make rows without end.
    """
    objects = connection.execute("SELECT type, name, rootpage FROM sqlite_master").fetchall()
    if not all(kind in ("table", "index") and rootpage for kind, _, rootpage in objects):
        return False
    tables = [name for kind, name, _ in objects if kind == "table"]
    query = "SELECT count(*) FROM pragma_table_xinfo(?) WHERE hidden != 0"
    return not any(connection.execute(query, (name,)).fetchone()[0] for name in tables)


def damaged(path: Path) -> str:
    """What is said of a file that is no table, or no whole one."""
    return f"{path} is not an hwnas table or is damaged: delete it and profile again, or give another --lut"


def complete(header: dict[str, Any]) -> bool:
    """Whether a header has what every reader relies on, of the right types."""
    texts, counts = ("runtime", "runtime_version", "device", "precision"), ["cores", "threads", "batch_size"]
    created, profile, imported = header.get("created"), header.get("profile"), header.get("imported")
    if imported is not None:  # a source need not say how many cores and threads there were
        counts = [key for key in counts if key == "batch_size" or header.get(key) is not None]
    return (
        all(map(_is_name, map(header.get, texts)))
        and all(_is_count(header.get(key), least=1) for key in counts)
        and _is_count(header.get("channel_block", 0))
        and (imported is None or (isinstance(imported, dict) and _is_name(imported.get("source"))))
        and isinstance(created, (int, float))
        and abs(created) < 2**53  # never true of what is not a number
        and isinstance(profile, dict)
        and _is_name(profile.get("name"))
    )


def _is_name(value: Any) -> bool:
    """Text of one line that a terminal can show."""
    return isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value <= MAX_COUNT


def list_of(kind: type, value: Any) -> bool:
    """Whether `value` is a list of nothing but `kind` (a bool is no int)."""
    return isinstance(value, list) and all(type(item) is kind for item in value)


def document(path: Path, text: Any) -> Any:
    """The JSON document in a row of the table at `path`.

    Raises:
        HwnasError: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise HwnasError(damaged(path)) from None


def samples(path: Path, blob: Any, repeats: Any = 1) -> NDArray[np.float64]:
    """The samples of a visit, as ms of ONE of the `repeats` executions in a run.

    Raises:
        HwnasError: they are not float64 numbers, or none that a clock shows.
    """
    if isinstance(blob, bytes) and blob and len(blob) % 8 == 0 and isinstance(repeats, int) and repeats >= 1:
        found = np.frombuffer(blob) / repeats
        least, most = SAMPLE_RANGE_MS
        if ((found >= least) & (found <= most)).all():  # never true of what is not a number
            return found
    raise HwnasError(damaged(path))


def times(path: Path, values: Any) -> list[float]:
    """Durations in ms that a state tells.

    Raises:
        HwnasError: they are none.
    """
    least, most = SAMPLE_RANGE_MS
    if isinstance(values, (list, tuple)) and all(type(v) in (int, float) and least <= v <= most for v in values):
        return list(map(float, values))
    raise HwnasError(damaged(path))


def launches(path: Path, count: Any) -> float:
    """As how many kernels an operator was run inside a network: none where it ran in another one's.

    Raises:
        HwnasError: it is no such number.
    """
    if type(count) in (int, float) and 0 <= count <= MAX_COUNT:
        return float(count)
    raise HwnasError(damaged(path))


def operator(path: Path, key: Any) -> Op:
    """The operator that a key of the table at `path` names.

    Raises:
        HwnasError: it names none.
    """
    try:
        op = Op.parse(key)
    except (ValueError, AttributeError):
        raise HwnasError(damaged(path)) from None
    if not _sane(op):
        raise HwnasError(damaged(path))
    return op


def network(path: Path, data: Mapping[str, Any]) -> Network:
    """The wired network that a row of the table at `path` describes.

    Raises:
        HwnasError: it describes none.
    """
    try:
        found = Network.from_json(data)
    except (ValueError, AttributeError):
        raise HwnasError(damaged(path)) from None
    shape_is_sane = bool(found.input_shape) and all(map(partial(_is_count, least=1), found.input_shape))
    if not (shape_is_sane and all(map(_sane, found.ops))):
        raise HwnasError(damaged(path))
    return found


def _sane(op: Op) -> bool:
    """Whether no number of an operator is beyond what any device takes; `Op` has checked that none is below."""
    sizes = [size for shape in (*op.inputs, op.output) for size in shape]
    return max(*sizes, *op.kernel, *op.stride, *op.padding, *op.dilation, *op.sections, op.groups) <= MAX_COUNT
