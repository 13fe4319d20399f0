"""`hwnas lut`: looks into latency tables. What it does to them as files is in `lut_files`, checking in `lut_check`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.errors import HwnasError

from .choices import chosen_table
from .groups import SuggestingGroup
from .lut_check import check_command
from .lut_files import diff_command, export_command, merge_command
from .options import Command, common, file_path, option
from .terminal import Terminal, count, milliseconds

if TYPE_CHECKING:
    from rich.table import Table

    from hwnas.latency.table import Row

BOUND = ("device", "runtime", "runtime_version", "precision", "batch_size", "threads")
"""What of a table's header is shown: what its latencies are true for."""

SORTS: dict[str, Callable[[Row], float | str]] = {
    "ms": lambda row: -(row.latency_ms or 0.0),
    "macs": lambda row: -row.macs,
    "params": lambda row: -row.params,
    "bytes": lambda row: -row.size_bytes,
    "gmacs": lambda row: row.gmacs_per_s or 0.0,
    "op": lambda row: row.key,
}
"""Orders of `lut show`: the biggest first; ``gmacs`` puts the least efficient first."""


@click.group("lut", cls=SuggestingGroup)
def command() -> None:
    """Look into latency tables, and check, merge, compare and export them.

    \b
    Example:
      hwnas lut list
      hwnas lut show --sort ms --limit 10
      hwnas lut check
    """


for _leaf in (check_command, merge_command, diff_command, export_command):
    command.add_command(_leaf)


@command.command("list", cls=Command)
@option("--root", type=file_path, default=Path("tables"), metavar="DIR", help="Where to look  [default: tables]")
@common
@click.pass_obj
def list_command(terminal: Terminal, root: Path) -> None:
    """List the tables of a folder, newest first.

    \b
    Example:
      hwnas lut list
      hwnas lut list --root tables --json
    """
    from hwnas.latency.table import list_tables

    found = [
        {
            "lut": info.path,
            "profile": info.header["profile"]["name"],
            **{key: info.header[key] for key in BOUND},
            "entries": info.entries,
            "changed": datetime.fromtimestamp(info.changed).astimezone().isoformat(timespec="seconds"),
        }
        for info in list_tables(root)
    ]
    if terminal.json:
        terminal.document(found)
    elif not found:
        terminal.note(f"no tables in {root}/: make one with 'hwnas profile --device cpu'")
    else:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for title in ("table", "device", "runtime", "precision", "batch", "threads", "entries", "changed"):
            table.add_column(
                title, justify="right" if title in ("batch", "threads", "entries") else "left", no_wrap=True
            )
        for row in found:
            runtime = f"{row['runtime']} {row['runtime_version']}"
            cells = (row["lut"], row["device"], runtime, row["precision"], row["batch_size"], row["threads"])
            table.add_row(*map(str, cells), str(row["entries"]), row["changed"][:16].replace("T", " "))
        terminal.table(table)


@command.command("show", cls=Command)
@click.argument("table", type=file_path, required=False, metavar="[FILE]")
@option("--lut", type=file_path, metavar="FILE", help="The table  [default: the newest under tables/]")
@option("--sort", type=click.Choice(list(SORTS)), default="ms", help="Biggest first; gmacs: least efficient first.")
@option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N rows  [default: all]")
@common
@click.pass_obj
def show_command(terminal: Terminal, table: Path | None, lut: Path | None, sort: str, limit: int | None) -> None:
    """Show what a table holds: latency with its interval, MACs, parameters, bytes and GMAC/s of every operator.

    \b
    Example:
      hwnas lut show
      hwnas lut show p.lut --sort gmacs --limit 10
    """
    from hwnas.latency.table import LatencyTable

    path = chosen_table(terminal, table or lut)
    if path is None:
        raise HwnasError("no table under tables/: make one with 'hwnas profile --device cpu', or name a file")
    with LatencyTable.open(path) as opened:
        header = opened.header
        rows = sorted(opened.rows(), key=SORTS[sort])
    shown = rows[:limit]
    if terminal.json:
        bound = {key: header[key] for key in BOUND}
        terminal.document({"lut": path, **bound, "entries": len(rows), "rows": [asdict(row) for row in shown]})
        return
    setting = f"{header['precision']}, batch {header['batch_size']}, {count(header['threads'], 'thread')}"
    device = f"{header['device']}, {header['runtime']} {header['runtime_version']}, {setting}"
    terminal.table(f"{path}: {device}", _table(shown), f"{len(shown)} of {count(len(rows), 'operator')}")


def _table(rows: list[Row]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("operator", overflow="fold")
    for title in ("ms", "interval", "MACs", "params", "bytes", "GMAC/s"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        if row.failure is not None:
            table.add_row(row.key, "failed", _first_line(row.failure))
            continue
        cells: tuple[Any, ...] = (f"{row.macs:,}", f"{row.params:,}", f"{row.size_bytes:,}")
        rate = "" if not row.gmacs_per_s else f"{row.gmacs_per_s:.1f}"
        table.add_row(row.key, milliseconds(row.latency_ms), milliseconds(row.low_ms, row.high_ms), *cells, rate)
    return table


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return line if len(line) <= 40 else line[:37] + "..."
