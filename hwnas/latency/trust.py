"""Trust checks: what a table's file says is not believed, since it may come from anywhere.

Each check takes what SQLite returned and gives a value of the right type, or raises the one-line `HwnasError` that says
the file is damaged and what to do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import HwnasError
from hwnas.ops import Op


def damaged(path: Path) -> str:
    """What is said of a file that is no table, or no whole one."""
    return f"{path} is not an hwnas table or is damaged: delete it and profile again, or give another --lut"


def complete(header: dict[str, Any]) -> bool:
    """Whether a header has what every reader relies on, of the right types."""
    texts, counts = ("runtime", "runtime_version", "device", "precision"), ("cores", "threads", "batch_size")
    profile = header.get("profile")
    return (
        all(isinstance(header.get(key), str) for key in texts)
        and all(type(header.get(key)) is int and header[key] >= 1 for key in counts)
        and type(header.get("created")) in (int, float)
        and isinstance(profile, dict)
        and isinstance(profile.get("name"), str)
    )


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
        HwnasError: they are not positive, finite float64 numbers.
    """
    if isinstance(blob, bytes) and blob and len(blob) % 8 == 0 and isinstance(repeats, int) and repeats >= 1:
        found = np.frombuffer(blob) / repeats
        if np.isfinite(found).all() and found.min() > 0:
            return found
    raise HwnasError(damaged(path))


def operator(path: Path, key: Any) -> Op:
    """The operator that a key of the table at `path` names.

    Raises:
        HwnasError: it names none.
    """
    try:
        return Op.parse(key)
    except (ValueError, AttributeError):
        raise HwnasError(damaged(path)) from None
