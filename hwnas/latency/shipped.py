"""Tables that ship with hwnas, by name."""

from __future__ import annotations

import difflib
import importlib.resources
import os
from pathlib import Path

from hwnas.errors import UsageError

SUFFIX = ".lut"


def shipped_tables() -> dict[str, Path]:
    """Files of the tables that ship, by name (the file's without ``.lut``). They are never written to."""
    folder = importlib.resources.files("hwnas._data.lut")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(SUFFIX))
    return {name.removesuffix(SUFFIX): Path(str(folder / name)) for name in names}


def table_file(named: Path) -> Path:
    """The file that ``--lut`` means: a path, or the name of a table that ships. A file that is there wins.

    Raises:
        UsageError: it is nearly the name of a table that ships.
    """
    text = str(named)
    if named.exists() or os.sep in text or text.endswith(SUFFIX):
        return named
    tables = shipped_tables()
    close = difflib.get_close_matches(text, tables, n=1, cutoff=0.75)
    if text not in tables and close:
        raise UsageError(f"no table {text}: did you mean {close[0]!r}, which ships?")
    return tables.get(text, named)
