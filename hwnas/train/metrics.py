"""`MetricsLog`: metrics.csv, which has each step once however often a training was killed."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from hwnas.train.checkpoint import disk_errors, write_atomically


@dataclass(slots=True)
class MetricsLog:
    """metrics.csv: steps done, mean loss since the last row, lr, seconds of training so far.

    A resume drops the rows that it makes again, so that no step is there twice.
    """

    path: Path
    HEADER = ("step", "loss", "lr", "seconds")

    def resume(self, step: int) -> float:
        """Drops the rows after `step`, which are about to be made again. Returns the seconds of the last row left."""
        rows = self.rows()
        kept = [row for row in rows if int(row[0]) <= step]
        before = self.path.read_text() if self.path.is_file() else ""
        if kept != rows or not before.endswith("\n"):  # the next row must not be appended to a torn one
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([self.HEADER, *kept])
            write_atomically(self.path, text.getvalue().encode())
        return float(kept[-1][3]) if kept else 0.0

    def rows(self) -> list[list[str]]:
        """The complete rows, without the header; a torn last line is left out."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text().split("\n")[:-1]
        return [row for row in csv.reader(lines[1:]) if len(row) == len(self.HEADER)]

    def add(self, step: int, loss: float, lr: float, seconds: float) -> None:
        """Appends a row."""
        with disk_errors(self.path), self.path.open("a") as file:
            file.write(f"{step},{loss:.6g},{lr:.6g},{seconds:.1f}\n")
