"""`hwnas lut merge`, `diff` and `export`: tables as files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hwnas.errors import UsageError

from .choices import table_to_read, the_table
from .options import Command, common, file_path, option
from .terminal import Terminal, count, milliseconds

if TYPE_CHECKING:
    from rich.table import Table

    from hwnas.latency.diff import DiffReport

SHOWN = 10
"""Entries of each kind that `diff` shows without `--json`."""

FORMATS = ("csv", "json", "parquet")


@click.command("merge", cls=Command)
@click.argument("first", type=file_path)
@click.argument("second", type=file_path)
@option("--out", type=file_path, required=True, metavar="FILE", help="The new table.")
@common
@click.pass_obj
def merge_command(terminal: Terminal, first: Path, second: Path, out: Path) -> None:
    """Put two tables of one set-up together: every visit of both, at the level of the FIRST.

    \b
    Example:
      hwnas lut merge monday.lut tuesday.lut --out both.lut
    """
    from hwnas.latency.merge import merge_tables

    report = merge_tables(first, second, out)
    if terminal.json:
        terminal.document(asdict(report))
        return
    known = f", {count(report.same, 'visit')} were the same measurement" if report.same else ""
    terminal.table(
        f"{out}: {count(report.operators, 'operator')}, {report.added} entries and {count(report.visits, 'visit')} "
        f"from {second}{known}"
    )


@click.command("diff", cls=Command)
@click.argument("first", type=file_path)
@click.argument("second", type=file_path)
@common
@click.pass_obj
def diff_command(terminal: Terminal, first: Path, second: Path) -> None:
    """Compare two tables, of the same or of different devices and versions: what each has, and how long it takes.

    \b
    Example:
      hwnas lut diff before.lut after.lut
      hwnas lut diff laptop.lut server.lut --json
    """
    from hwnas.latency.diff import diff_tables

    report = diff_tables(first, second)
    if terminal.json:
        terminal.document(report.to_json())
        return
    lines = [f"{key}: {mine} / {theirs}" for key, (mine, theirs) in report.differing.items()]
    for path, names in ((first, report.only_first), (second, report.only_second)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"only in {path}: {count(len(names), 'entry').replace('entrys', 'entries')}: "
                         f"{', '.join(names[:3])}{more}")  # fmt: skip
    parts = [_table(report)] if report.common else []
    terminal.table(*lines, *parts, report.verdict)


def _table(report: DiffReport) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("in both, the largest differences", overflow="fold")
    for title in ("first, ms", "interval", "second, ms", "interval", "ratio", "second is"):
        table.add_column(title, justify="right", no_wrap=True)
    for entry in report.common[:SHOWN]:
        one = (milliseconds(entry.first_ms), milliseconds(entry.first_low_ms, entry.first_high_ms))
        other = (milliseconds(entry.second_ms), milliseconds(entry.second_low_ms, entry.second_high_ms))
        table.add_row(entry.name, *one, *other, f"{entry.ratio:.3f}", entry.verdict)
    return table


@click.command("export", cls=Command)
@table_to_read
@option("--format", "form", type=click.Choice(FORMATS), help="[default: by the ending of --out, else csv]")
@option("--out", type=file_path, metavar="FILE", help="Where to  [default: stdout]")
@common
@click.pass_obj
def export_command(
    terminal: Terminal, table: Path | None, lut: Path | None, form: str | None, out: Path | None
) -> None:
    """Write a table's operators for other programs: ms with its interval, MACs, params, bytes and GMAC/s.

    \b
    Example:
      hwnas lut export p.lut --format csv > p.csv
      hwnas lut export p.lut --out p.parquet      (needs the extra: pip install 'hwnas[parquet]')
    """
    from hwnas.latency.frames import export_table, to_document, to_text
    from hwnas.latency.table import LatencyTable

    path = the_table(terminal, table, lut)
    form = form or _by_ending(out) or ("json" if terminal.json and out is None else "csv")
    if out is None and (form == "parquet" or (terminal.json and form != "json")):
        raise UsageError(f"{form} is not written to stdout{' with --json' * terminal.json}: give --out FILE.{form}")
    with LatencyTable.open(path) as opened:
        if out is not None:
            rows = export_table(opened, form, out)
        elif terminal.json:
            terminal.document(to_document(opened))
        else:
            terminal.stdout.write(to_text(opened, form))
            terminal.stdout.flush()
    if out is not None and terminal.json:
        terminal.document({"lut": path, "out": out, "format": form, "entries": rows})
    elif out is not None:
        terminal.table(f"{out}: {count(rows, 'operator')} of {path}")


def _by_ending(out: Path | None) -> str | None:
    ending = out.suffix.lstrip(".").lower() if out is not None else ""
    return ending if ending in FORMATS else None
