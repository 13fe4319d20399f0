"""The tables on this machine: where a profile's goes, and which there are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwnas.devices import DeviceProfile
from hwnas.errors import HwnasError
from hwnas.latency.levels import OVERHEAD_KEYS
from hwnas.latency.table import LatencyTable

ROOT = Path("tables")
"""Where tables are kept unless ``--lut`` says otherwise, below the working directory."""


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table in a listing."""

    path: Path
    header: dict[str, Any]
    entries: int
    changed: float


def list_tables(root: Path = ROOT) -> list[TableInfo]:
    """The readable tables below `root`, newest first."""
    found = []
    for path in root.glob("*.lut"):
        try:
            with LatencyTable.open(path) as table:
                entries = len(set(table.names("operator")) - OVERHEAD_KEYS)
                found.append(TableInfo(path, table.header, entries, path.stat().st_mtime))
        except HwnasError:
            continue
    return sorted(found, key=lambda info: info.changed, reverse=True)


def default_path(profile: DeviceProfile, root: Path = ROOT) -> Path:
    """Where a profile's table goes: ``tables/cpu-fp32-b1-t1.lut``."""
    host = profile.host.removeprefix("ssh://").translate(str.maketrans("@:[]", "----"))
    name = f"{host}-{profile.name}" if host else profile.name
    return root / f"{name}-{profile.precision}-b{profile.batch_size}-t{profile.thread_count or 'all'}.lut"
