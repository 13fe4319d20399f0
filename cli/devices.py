"""`hwnas devices`: what can be measured on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from hwnas.errors import HwnasError

from .choices import device_profile
from .options import Command, common, option
from .terminal import Terminal, milliseconds


@click.command("devices", cls=Command)
@option("--self-test", metavar="DEVICE", help="Build, run, profile, predict and verify a small space on DEVICE.")
@common
@click.pass_obj
def command(terminal: Terminal, self_test: str | None) -> None:
    """List the devices that can be used here, each with why not where it cannot.

    \b
    Example:
      hwnas devices
      hwnas devices --self-test cpu
      hwnas devices --self-test cuda
    """
    from hwnas.devices import available_runtimes

    found: list[dict[str, Any]] = [asdict(status) for status in available_runtimes()]
    if self_test is not None:
        found = [_self_test(terminal, self_test, found)]
    if terminal.json:
        terminal.document(found)
        return
    from rich.table import Table

    table = Table("device", "runtime", "usable", "", box=None, pad_edge=False)
    for entry in found:
        fix = f"; install it with: {entry['fix']}" if entry["fix"] else ""
        table.add_row(entry["name"], entry["runtime"], "yes" if entry["available"] else "no", entry["reason"] + fix)
    terminal.table(table)
    if self_test is not None:
        terminal.table(f"self-test passed: the reference network took {milliseconds(found[0]['reference_ms'])} ms")


def _self_test(terminal: Terminal, device: str, known: list[dict[str, Any]]) -> dict[str, Any]:
    """The device's entry with what a small network took in its own measuring process.

    Raises:
        HwnasError: the device cannot measure; it says why.
    """
    from hwnas.latency.plan import reference_network
    from hwnas.measure.lock import device_lock
    from hwnas.measure.onnx_models import network_to_onnx
    from hwnas.measure.process import MeasurementError, MeasuringProcess, Subject

    profile = device_profile(terminal, device)
    model = network_to_onnx(reference_network(), batch_size=profile.batch_size)
    subject = Subject("reference", "network", lambda: model)
    with device_lock(profile.device, terminal.progress()), MeasuringProcess(profile) as process:
        try:
            _, samples_ms = process.time_ms(subject, 20)
        except MeasurementError as error:
            raise HwnasError(f"{device} cannot measure the reference network: {error}") from None
        runtime = f"{process.describe['runtime']} {process.describe['runtime_version']}"
        reason = f"{runtime}, {process.describe['device']}, {process.describe['cores']} cores"
    status = next((entry for entry in known if entry["name"] == profile.name), {"fix": ""})
    entry = {"name": profile.name, "runtime": profile.runtime, "available": True, "reason": reason}
    return {**status, **entry, "reference_ms": min(samples_ms)}
