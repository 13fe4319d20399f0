"""A table's operators for other programs: CSV, JSON and Parquet, through pandas."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import HwnasError
from hwnas.latency.table import BOUND, LatencyTable, Row

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("csv", "json", "parquet")
"""What can be written; a file's ending names its format."""


def to_frame(table: LatencyTable) -> pd.DataFrame:
    """Every operator of the table with its latency and interval in ms, MACs, parameters, bytes and GMAC/s.

    Latencies and rates of operators that could not be measured are missing, and `failure` says why.
    """
    import pandas as pd

    names = [field.name for field in fields(Row)]
    frame = pd.DataFrame([asdict(row) for row in table.rows()], columns=names)
    floats = ["latency_ms", "low_ms", "high_ms", "gmacs_per_s"]
    return frame.astype(dict.fromkeys(floats, "float64"))


def to_document(table: LatencyTable) -> dict[str, Any]:
    """The same as one JSON document, with what the latencies are true for."""
    header = table.header
    rows = [asdict(row) for row in table.rows()]
    return {"lut": str(table.path), **{key: header[key] for key in BOUND}, "entries": len(rows), "rows": rows}


def to_text(table: LatencyTable, form: str) -> str:
    """The table as text of the format `form`: csv or json."""
    if form == "json":
        return json.dumps(to_document(table), indent=2, allow_nan=False) + "\n"
    return str(to_frame(table).to_csv(index=False, lineterminator="\n"))


def export_table(table: LatencyTable, form: str, out: Path) -> int:
    """Writes the table to `out`, which appears only when it is whole. Returns how many operators it has.

    Raises:
        HwnasError: Parquet is asked for and nothing here can write it, or `out` cannot be written.
    """
    frame = to_frame(table)
    write: Callable[[Path], Any]
    if form == "parquet":
        write = _parquet(table, frame)
    else:
        text = to_text(table, form)

        def write(path: Path) -> None:
            path.write_text(text, encoding="utf-8", newline="")

    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        write(draft)
        draft.replace(out)
    except OSError as error:
        raise HwnasError(f"cannot write {out} ({error.strerror or error}): give another --out") from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return len(frame)


def _parquet(table: LatencyTable, frame: pd.DataFrame) -> Callable[[Path], Any]:
    counts = ["macs", "params", "size_bytes", "samples"]
    try:
        whole = frame.astype(dict.fromkeys(counts, "int64"))
    except OverflowError:
        raise HwnasError(f"{table.path} has counts beyond 64 bits: export it as csv or json") from None

    def write(path: Path) -> None:
        try:
            whole.to_parquet(path, index=False)
        except ImportError:
            raise HwnasError("Parquet needs pyarrow: pip install 'hwnas[parquet]', or export csv or json") from None

    return write
