"""Tables that others published, one file a format, as hwnas tables.

What is imported is marked so for good: it has no samples, no reference network and no networks to calibrate on, and
nothing can be added to it. A file is hostile until it is checked: sizes are limited, every refusal names file and line,
and nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hwnas.errors import HwnasError, UsageError
from hwnas.latency.foreign import alibaba_trt, fbnet_jsonl, proxyless_yaml
from hwnas.latency.foreign.reading import Choices, Foreign
from hwnas.latency.table import LatencyTable
from hwnas.latency.writer import write_imported

FORMATS: dict[str, Callable[[Path, Choices], Foreign]] = {
    "alibaba-trt": alibaba_trt.read,
    "proxyless-yaml": proxyless_yaml.read,
    "fbnet-jsonl": fbnet_jsonl.read,
}
"""Formats that can be imported, with what reads them."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did: entries that are in the table now, and what of the file is not."""

    lut: str
    format: str
    device: str
    runtime: str
    precision: str
    batch_size: int
    source: str
    licence: str
    operators: int
    blocks: int
    failed: int
    duplicates: int
    skipped: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The document of ``hwnas lut import --json``."""
        return asdict(self)


def import_table(path: Path, form: str, out: Path, choices: Choices) -> ImportReport:
    """Reads the file `path`, which has the format `form`, and writes the table `out`.

    Raises:
        UsageError: there is no such format, or the file leaves a choice open; it names the option.
        HwnasError: the file is none of this format, or `out` is there already and not an imported table.
    """
    if form not in FORMATS:
        raise UsageError(f"no format is called {form!r}: use {', '.join(FORMATS)}")
    if out.exists():
        with LatencyTable.open(out) as table:  # measurements are worth more than an import
            if not table.header.get("imported"):
                raise HwnasError(f"{out} holds measurements: give another --out")
    found = FORMATS[form](path, choices)
    measured = [entry for entry in found.entries if entry.failure is None]
    if not measured:
        raise HwnasError(f"{path} has no latency of batch {found.batch_size} in it: give another file, or --batch")
    failed = len(found.entries) - len(measured)
    write_imported(out, _header(path, form, found), found.entries)
    return ImportReport(
        lut=str(out),
        format=form,
        device=found.device,
        runtime=found.runtime,
        precision=found.precision,
        batch_size=found.batch_size,
        source=found.source,
        licence=found.licence,
        operators=sum(entry.role == "operator" for entry in measured),
        blocks=sum(entry.role == "block" for entry in measured),
        failed=failed,
        duplicates=found.duplicates,
        skipped=dict(found.skipped),
    )


def _header(path: Path, form: str, found: Foreign) -> dict[str, Any]:
    return {
        "device": found.device,
        "runtime": found.runtime,
        "runtime_version": "unknown",
        "cores": None,
        "threads": None,
        "precision": found.precision,
        "batch_size": found.batch_size,
        "profile": {"name": f"imported-{form}"},
        "imported": {
            "format": form,
            "file": path.name,
            "source": found.source,
            "licence": found.licence,
            "calibrated": False,
            "note": found.note,
        },
    }
