"""`hwnas devices`: what can be measured on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from hwnas.errors import ClaimError

from .choices import device_profile
from .options import Command, common, option
from .terminal import Terminal, milliseconds

if TYPE_CHECKING:
    from hwnas.selftest import SelfTest


@click.command("devices", cls=Command)
@option("--self-test", metavar="DEVICE", help="Build, run, profile, predict and verify a small space on DEVICE.")
@click.argument("host", required=False, metavar="[ssh://HOST]")
@common
@click.pass_obj
def command(terminal: Terminal, self_test: str | None, host: str | None) -> None:
    """List the devices that can be used here, each with why not where it cannot, and what mends it.

    The self-test builds a network, compares its outputs with ONNX Runtime's, profiles a small space, predicts and
    verifies; the exit code is 3 where something does not hold.

    \b
    Example:
      hwnas devices
      hwnas devices --self-test cpu
      hwnas devices --self-test cuda
      hwnas devices ssh://jetson
    """
    if self_test is not None:
        _self_test(terminal, self_test)
        return
    from hwnas.devices import available_runtimes

    found: list[dict[str, Any]] = [asdict(status) for status in available_runtimes(host or "")]
    if terminal.json:
        terminal.document(found)
        return
    from rich.table import Table

    table = Table("device", "runtime", "usable", "", box=None, pad_edge=False)
    for entry in found:
        fix = f"; install it with: {entry['fix']}" if entry["fix"] else ""
        table.add_row(entry["name"], entry["runtime"], "yes" if entry["available"] else "no", entry["reason"] + fix)
    terminal.table(table)


def _self_test(terminal: Terminal, device: str) -> None:
    """Tests the device and prints the verdict.

    Raises:
        HwnasError: the device cannot be used; it says why.
        ClaimError: it can, but something does not hold.
    """
    from hwnas.selftest import TOLERANCE, self_test

    profile = device_profile(terminal, device)
    done = self_test(profile, terminal.progress())
    if terminal.json:
        reason = f"{done.runtime}, {done.device}, {done.cores} cores"
        entry = {"name": profile.address, "runtime": profile.runtime, "available": True, "reason": reason, "fix": ""}
        terminal.document([done.to_json() | entry])
    else:
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_row("device", f"{done.device}, {done.runtime}, {profile.precision}, batch {profile.batch_size}")
        table.add_row("reference network", f"{milliseconds(done.reference_ms)} ms")
        allowed = TOLERANCE[profile.precision]
        table.add_row("outputs", f"differ from ONNX Runtime's by {done.output_rel_diff:.1g} (at most {allowed:g})")
        table.add_row("profile", f"{done.entries} operators, {done.failed} failed")
        table.add_row("predicted", f"{_predicted(done)}, measured {milliseconds(done.measured_ms)} ms")
        terminal.table(table)
    if not done.passed:
        raise ClaimError(f"{profile.address} does not pass the self-test: {'; '.join(done.problems)}")
    if not terminal.json:
        terminal.table(f"self-test passed in {done.seconds:.0f} s: {profile.address} can be profiled and searched for")


def _predicted(done: SelfTest) -> str:
    if done.predicted_ms is None or done.low_ms is None or done.high_ms is None:
        return "nothing"
    return f"{milliseconds(done.predicted_ms)} ms ({milliseconds(done.low_ms)} to {milliseconds(done.high_ms)})"
