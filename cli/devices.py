"""`hwnas devices`: what can be measured on this machine."""

from __future__ import annotations

from dataclasses import asdict

import click

from .options import Command, common
from .terminal import Terminal


@click.command("devices", cls=Command)
@common
@click.pass_obj
def command(terminal: Terminal) -> None:
    """List the devices that can be used here, each with why not where it cannot.

    \b
    Example:
      hwnas devices
      hwnas devices --json
    """
    from hwnas.devices import available_runtimes

    statuses = available_runtimes()
    if terminal.json:
        terminal.document([asdict(status) for status in statuses])
        return
    from rich.table import Table

    table = Table("device", "runtime", "usable", "", box=None, pad_edge=False)
    for status in statuses:
        fix = f"; install it with: {status.fix}" if status.fix else ""
        table.add_row(status.name, status.runtime, "yes" if status.available else "no", status.reason + fix)
    terminal.table(table)
