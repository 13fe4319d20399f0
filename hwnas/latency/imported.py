"""What somebody else measured, as a table keeps it: values, not samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hwnas.latency.trust import SAMPLE_RANGE_MS
from hwnas.measure.statistics import Estimate

UNSTATED_ERROR = 0.1
"""Half of the interval of an imported value whose source gives none, as a share of it: an assumption."""

BLOCK = " ; "
"""Between the operators of a block in its name: operators that were timed as one."""


@dataclass(frozen=True, slots=True)
class Imported:
    """One entry of an imported table: a latency with its ends where the source gives them, or why there is none.

    Attributes:
        role: ``operator``, or ``block``: operators that were timed as one.
        name: the operator's key; a block's keys are joined by `BLOCK`.
    """

    role: str
    name: str
    latency_ms: float | None
    low_ms: float | None = None
    high_ms: float | None = None
    failure: str | None = None

    @property
    def sound(self) -> bool:
        """Whether it says something that can be true: a file is not trusted."""
        given = [value for value in (self.low_ms, self.latency_ms, self.high_ms) if value is not None]
        if not isinstance(self.name, str) or any(type(value) is not float for value in given):
            return False
        if self.latency_ms is None:
            return isinstance(self.failure, str) and not given
        ends = len(given) == 3 or (self.low_ms is None and self.high_ms is None)
        least, most = SAMPLE_RANGE_MS
        return self.failure is None and ends and sorted(given) == given and least <= given[0] <= given[-1] <= most


def stated(rows: Iterable[Imported]) -> dict[str, Estimate]:
    """Latencies as the source states them, by name; where it gives no ends, those of `UNSTATED_ERROR`."""
    found = {}
    for row in rows:
        if row.latency_ms is not None:
            low = row.latency_ms * (1 - UNSTATED_ERROR) if row.low_ms is None else row.low_ms
            high = row.latency_ms * (1 + UNSTATED_ERROR) if row.high_ms is None else row.high_ms
            found[row.name] = Estimate(row.latency_ms, low, high, 0)
    return found
