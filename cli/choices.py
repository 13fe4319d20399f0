"""Choices a user may leave to hwnas: the device, the table, the run. What was chosen is said on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import Function, option
from .terminal import Terminal

if TYPE_CHECKING:
    from hwnas.devices import DeviceProfile
    from hwnas.ops import Op

DEVICE = "cpu"


def device_options(function: Function) -> Function:
    """The options that say on what, and how, is measured."""
    decorators = (
        option("--device", metavar="DEVICE", help="A profile's name or a path to one  [default: cpu]"),
        option("--batch", type=click.IntRange(1), metavar="N", help="Images in one run  [default: the profile's]"),
        option("--precision", metavar="NAME", help="fp32 (the only one in this version)"),
        option("--runtime", metavar="NAME", help="onnxruntime (the only one in this version)"),
        option("--threads", type=click.IntRange(0), metavar="N", help="0 is all cores  [default: the profile's]"),
    )
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def device_profile(
    terminal: Terminal,
    device: str | None,
    batch: int | None = None,
    precision: str | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    target_error: float | None = None,
) -> DeviceProfile:
    """The profile that the device options name, with what they change."""
    from hwnas.devices import find_profile

    if device is None:
        device = DEVICE
        terminal.default("--device", device)
    profile = find_profile(device)
    return profile.override(
        batch_size=batch, precision=precision, runtime=runtime, threads=threads, target_error=target_error
    )


def table_path(terminal: Terminal, lut: Path | None, profile: DeviceProfile) -> Path:
    """Where the table of `profile` is, or will be."""
    from hwnas.latency.table import default_path

    if lut is not None:
        return lut
    path = default_path(profile)
    terminal.default("--lut", path)
    return path


def chosen_table(
    terminal: Terminal,
    lut: Path | None,
    profile: DeviceProfile | None = None,
    *,
    given: Mapping[str, object] | None = None,
    ops: Iterable[Op] = (),
) -> Path | None:
    """The table that was named, else the newest under ``tables/`` that fits; None where there is none.

    Args:
        lut: as typed.
        profile: only tables of this profile on this very device fit.
        given: header keys that options fixed (batch_size, threads, precision); others are the table's to say.
        ops: operators that a table must hold.
    """
    from hwnas.latency.table import LatencyTable, list_tables

    if lut is not None:
        return lut
    wanted = {op.key for op in ops}
    for info in list_tables():
        if profile is not None and not _fits(info.header, profile, given or {}):
            continue
        if wanted:
            with LatencyTable.open(info.path) as table:
                if not wanted <= set(table.names("operator")):
                    continue
        terminal.default("--lut", info.path, "the newest that fits")
        return info.path
    return None


def _fits(header: Mapping[str, Any], profile: DeviceProfile, given: Mapping[str, object]) -> bool:
    from hwnas.measure.hardware import cpu_name

    mine = header["profile"]["name"] == profile.name and header["device"] == cpu_name()
    return mine and all(header[key] == value for key, value in given.items() if value is not None)


def table_profile(path: Path) -> DeviceProfile:
    """The profile that a table was made with: what is compared with the table has to be measured in the same way."""
    from hwnas.devices import DeviceProfile
    from hwnas.latency.table import LatencyTable

    with LatencyTable.open(path) as table:
        return DeviceProfile.model_validate(table.header["profile"])
