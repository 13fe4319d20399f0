"""`hwnas lut check`: measures a sample of a table again and says whether it still holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hwnas.errors import ClaimError, HwnasError

from .choices import chosen_table, table_profile
from .options import Command, common, file_path, option
from .terminal import Terminal, count, milliseconds

if TYPE_CHECKING:
    from rich.table import Table

    from hwnas.latency.check import CheckReport

SHOWN = 8
"""Entries that are shown, the furthest apart first."""


@click.command("check", cls=Command)
@click.argument("table", type=file_path, required=False, metavar="[TABLE]")
@option("--lut", type=file_path, metavar="FILE", help="The table  [default: the newest under tables/]")
@option("--device", metavar="DEVICE", help="Where to measure: cpu, ssh://HOST  [default: where the table was made]")
@option("--sample", type=click.IntRange(1), default=20, metavar="N", show_default=True, help="Entries to measure.")
@option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the sample.")
@common
@click.pass_obj
def check_command(
    terminal: Terminal, table: Path | None, lut: Path | None, device: str | None, sample: int, seed: int
) -> None:
    """Measure a random sample of a table's operators and networks again: does the table still hold?

    They are measured on this device, interleaved with the reference network, and compared at the level that the machine
    had when the table was made. Nothing is written to the table. Exit 3: it has drifted.

    \b
    Example:
      hwnas lut check
      hwnas lut check p.lut --sample 40 --seed 1
    """
    from hwnas.latency.check import check_table

    path = chosen_table(terminal, table or lut)
    if path is None:
        raise HwnasError("no table under tables/: make one with 'hwnas profile --device cpu', or name a file")
    report = check_table(path, table_profile(path, device), sample=sample, seed=seed, progress=terminal.progress())
    if terminal.json:
        terminal.document(report.to_json())
    else:
        _show(terminal, report)
    if report.drifted:
        worst = ", ".join(f"'{entry.name}'" for entry in report.entries[:3])
        raise ClaimError(f"{path} has drifted: {report.reasons[0]}; worst: {worst}; profile anew: {report.command}")


def _show(terminal: Terminal, report: CheckReport) -> None:
    operators = sum(entry.role == "operator" for entry in report.entries)
    networks = len(report.entries) - operators
    level = f"the machine takes {report.level:.3f} times as long as then (the reference network {report.reference:.3f})"
    lines = [f"{report.lut}: {count(operators, 'operator')} and {count(networks, 'network')} measured again; {level}"]
    if report.network_ratio is not None:
        lines.append(f"networks take {report.network_ratio:.3f} times what the table says (median)")
    allowed = f"chance allows {report.allowed}"
    lines.append(f"{report.outside} of {count(operators, 'operator')} outside their intervals ({allowed})")
    terminal.table(*lines, _table(report), "verdict: " + ("DRIFTED" if report.drifted else "the table holds"))


def _table(report: CheckReport) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("furthest apart", overflow="fold")
    for title in ("ms then", "interval", "ms now", "interval", "ratio", ""):
        table.add_column(title, justify="right", no_wrap=True)
    for entry in report.entries[:SHOWN]:
        then = (milliseconds(entry.then_ms), milliseconds(entry.then_low_ms, entry.then_high_ms))
        if entry.ratio is None:
            table.add_row(entry.name, *then, "failed", (entry.failure or "")[:40], "", "outside")
            continue
        now = (milliseconds(entry.now_ms), milliseconds(entry.now_low_ms, entry.now_high_ms))
        table.add_row(entry.name, *then, *now, f"{entry.ratio:.3f}", "outside" if entry.outside else "")
    return table
