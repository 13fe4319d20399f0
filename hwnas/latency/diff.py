"""What two tables say differently; of any devices and versions, since that is what one wants to compare."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.latency.table import BOUND, LatencyTable
from hwnas.measure.statistics import Estimate


@dataclass(frozen=True, slots=True)
class Compared:
    """An entry of both tables.

    Attributes:
        role: operator, block (operators that an imported table times as one) or network.
        ratio: second / first.
        verdict: ``same`` where the joint 90% interval allows it, else ``slower`` or ``faster``: the second one.
    """

    role: str
    name: str
    first_ms: float
    first_low_ms: float
    first_high_ms: float
    second_ms: float
    second_low_ms: float
    second_high_ms: float
    ratio: float
    verdict: str


@dataclass(frozen=True, slots=True)
class DiffReport:
    """Two tables side by side.

    Attributes:
        differing: header keys with different values, as (first, second).
        only_first, only_second: operators and networks that one table alone has measured.
        common: the others, the largest ratio in either direction first.
        median_ratio: of the operators in common; None where there is none.
    """

    first: str
    second: str
    differing: dict[str, tuple[Any, Any]]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    common: tuple[Compared, ...]
    median_ratio: float | None

    def counts(self) -> dict[str, int]:
        """How many operators in common have each verdict."""
        verdicts = [entry.verdict for entry in self.common if entry.role == "operator"]
        return {verdict: verdicts.count(verdict) for verdict in ("slower", "faster", "same")}

    @property
    def verdict(self) -> str:
        """One line for people."""
        if self.median_ratio is None:
            return "the tables have no operator in common"
        counts = self.counts()
        return (
            f"operators of the second table take {self.median_ratio:.3f} times as long (median of "
            f"{sum(counts.values())}): {counts['slower']} slower, {counts['faster']} faster, {counts['same']} the same"
        )

    def to_json(self) -> dict[str, Any]:
        """The document of ``hwnas lut diff --json``."""
        return {**asdict(self), "counts": self.counts(), "verdict": self.verdict}


def diff_tables(first: Path, second: Path) -> DiffReport:
    """Compares what two tables hold, each as it stands: times by each table's own level.

    Raises:
        HwnasError: a table cannot be read.
    """
    with LatencyTable.open(first) as one, LatencyTable.open(second) as other:
        headers = one.header, other.header
        mine, theirs = _entries(one), _entries(other)
    differing = {key: (headers[0][key], headers[1][key]) for key in BOUND if headers[0][key] != headers[1][key]}
    common = [_compared(*name, mine[name], theirs[name]) for name in mine if name in theirs]
    ratios = [entry.ratio for entry in common if entry.role == "operator"]
    return DiffReport(
        str(first),
        str(second),
        differing,
        tuple(name for role, name in mine if (role, name) not in theirs),
        tuple(name for role, name in theirs if (role, name) not in mine),
        tuple(sorted(common, key=lambda entry: -abs(math.log(entry.ratio)))),
        float(np.median(ratios)) if ratios else None,
    )


def _entries(table: LatencyTable) -> Mapping[tuple[str, str], Estimate]:
    networks = {("network", net.name): net.measured for net in table.networks()}
    blocks = {("block", key): found for key, found in table.blocks().items()}
    return {("operator", key): found for key, found in table.operators().items()} | blocks | networks


def _compared(role: str, name: str, first: Estimate, second: Estimate) -> Compared:
    ratio = second.latency_ms / first.latency_ms
    joint = math.hypot(first.relative_error, second.relative_error)
    verdict = "same" if abs(math.log(ratio)) <= math.log1p(joint) else "slower" if ratio > 1 else "faster"
    one, other = ((found.latency_ms, found.low_ms, found.high_ms) for found in (first, second))
    return Compared(role, name, *one, *other, ratio, verdict)
