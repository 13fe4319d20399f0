"""`hwnas lut`: looks into latency tables. What it does to them as files is in `lut_files`, checking in `lut_check`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .choices import table_to_read, the_table
from .groups import SuggestingGroup
from .lut_check import check_command
from .lut_files import diff_command, export_command, merge_command
from .options import Command, common, file_path, option
from .terminal import Terminal, count, milliseconds

if TYPE_CHECKING:
    from rich.table import Table

    from hwnas.latency.listing import TableInfo
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
      hwnas lut import v100_tensorrt_fp16.txt.gz --format alibaba-trt --batch 32 --out v100.lut
      hwnas lut check
    """


for _leaf in (check_command, merge_command, diff_command, export_command):
    command.add_command(_leaf)


@command.command("list", cls=Command)
@option("--root", type=file_path, default=Path("tables"), metavar="DIR", help="Where to look  [default: tables]")
@common
@click.pass_obj
def list_command(terminal: Terminal, root: Path) -> None:
    """List the tables of a folder, newest first, and those that ship with hwnas (--lut takes their names).

    \b
    Example:
      hwnas lut list
      hwnas lut list --root tables --json
    """
    from hwnas.latency.listing import list_tables
    from hwnas.latency.shipped import shipped_tables

    mine = list_tables(root)
    names = {path: name for name, path in shipped_tables().items()}
    ships = sorted((info for folder in {path.parent for path in names} for info in list_tables(folder)), key=_path)
    found = [
        {
            "lut": names.get(info.path, info.path),
            "profile": info.header["profile"]["name"],
            **{key: info.header[key] for key in BOUND},
            "entries": info.entries,
            "changed": datetime.fromtimestamp(info.changed).astimezone().isoformat(timespec="seconds"),
            "shipped": info.path in names,
            "imported": bool(info.header.get("imported")),
        }
        for info in [*mine, *(info for info in ships if info.path in names)]
    ]
    if not mine:
        terminal.note(f"no tables in {root}/: make one with 'hwnas profile --device cpu'")
    if terminal.json:
        terminal.document(found)
    elif found:
        _list(terminal, found)


def _path(info: TableInfo) -> str:
    return str(info.path)


def _list(terminal: Terminal, found: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("table", "device", "runtime", "precision", "batch", "threads", "entries", "changed"):
        table.add_column(title, justify="right" if title in ("batch", "threads", "entries") else "left", no_wrap=True)
    for row in found:
        runtime = f"{row['runtime']} {row['runtime_version']}"
        threads = "-" if row["threads"] is None else row["threads"]
        cells = (row["lut"], row["device"], runtime, row["precision"], row["batch_size"], threads, row["entries"])
        changed = row["changed"][:16].replace("T", " ")
        table.add_row(*map(str, cells), "ships, imported" if row["shipped"] and row["imported"] else changed)
    terminal.table(table)


@command.command("show", cls=Command)
@table_to_read
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
      hwnas lut show v100-tensorrt-fp16-b32 --limit 10
    """
    from hwnas.latency.table import LatencyTable

    path = the_table(terminal, table, lut)
    with LatencyTable.open(path) as opened:
        header = opened.header
        rows = sorted(opened.rows(), key=SORTS[sort])
    shown = rows[:limit]
    if terminal.json:
        bound = {key: header[key] for key in BOUND} | {"imported": header.get("imported")}
        terminal.document({"lut": path, **bound, "entries": len(rows), "rows": [asdict(row) for row in shown]})
        return
    threads = "" if header["threads"] is None else f", {count(header['threads'], 'thread')}"
    setting = f"{header['precision']}, batch {header['batch_size']}{threads}"
    device = f"{header['device']}, {header['runtime']} {header['runtime_version']}, {setting}"
    lines = [f"{path}: {device}", *_origin(header)]
    terminal.table(*lines, _table(shown), f"{len(shown)} of {count(len(rows), 'operator')}")


def _origin(header: dict[str, Any]) -> list[str]:
    """Where an imported table comes from, and what its values are."""
    imported = header.get("imported")
    if not imported:
        return []
    source = f"{imported['source']} ({imported.get('licence', 'licence not stated')})"
    return [f"imported, not measured here, uncalibrated: {source}", f"note: {imported.get('note', '')}"]


@command.command("import", cls=Command)
@click.argument("file", type=file_path, metavar="FILE")
@option("--format", "form", required=True, metavar="FORMAT", help="alibaba-trt, proxyless-yaml or fbnet-jsonl")
@option("--out", type=file_path, required=True, metavar="X.lut", help="The table; an imported one is replaced.")
@option("--batch", type=click.IntRange(1), metavar="N", help="Which of the file's batches.")
@option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), help="[default: what the file or its name says]")
@option("--device-name", metavar="NAME", help="The device it was measured on  [default: the format's]")
@option("--source", metavar="TEXT", help="Where the file comes from  [default: the format's repository]")
@option("--licence", metavar="TEXT", help="Of the file  [default: the repository's]")
@common
@click.pass_obj
def import_command(
    terminal: Terminal,
    file: Path,
    form: str,
    out: Path,
    batch: int | None,
    precision: str | None,
    device_name: str | None,
    source: str | None,
    licence: str | None,
) -> None:
    """Make a table of what somebody else measured and published.

    It is marked as imported and uncalibrated. What it lacks is interpolated between its neighbours or estimated from
    bytes and MACs, with wider intervals; searches ask for --allow-uncalibrated.

    \b
    Example:
      hwnas lut import v100_tensorrt_fp16.txt.gz --format alibaba-trt --batch 32 --out v100.lut
      hwnas lut import mobile_trim.yaml --format proxyless-yaml --device-name "Pixel 1" --out pixel.lut
    """
    from hwnas.latency.foreign import import_table
    from hwnas.latency.foreign.reading import Choices

    report = import_table(file, form, out, Choices(batch, precision, device_name, source, licence)).to_json()
    if terminal.json:
        terminal.document(report)
        return
    setting = f"{report['device']}, {report['runtime']}, {report['precision']}, batch {report['batch_size']}"
    held = f"{count(report['operators'], 'operator')}, {count(report['blocks'], 'block')}"
    lines = [f"{out}: {setting}", f"{held}; from {report['source']} ({report['licence']})"]
    if report["failed"]:
        lines.append(f"{report['failed']} could not be measured by the source: kept as failures")
    if report["duplicates"]:
        lines.append(f"{report['duplicates']} rows said something of an entry again: averaged")
    lines += [f"skipped {number} of the kind {kind}" for kind, number in report["skipped"].items()]
    terminal.table(*lines)


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
