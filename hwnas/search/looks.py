"""The log of a search for widths: what each look at the living net saw."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwnas.train.checkpoint import disk_errors, write_atomically


@dataclass(slots=True)
class Log:
    """A file of JSON lines, one for each look, with its step. A resume drops the lines that it makes again."""

    path: Path

    def rows(self) -> list[dict[str, Any]]:
        """The complete lines."""
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text().split("\n")[:-1]:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def resume(self, step: int) -> None:
        """Drops the lines after `step`."""
        kept = [row for row in self.rows() if row["step"] <= step]
        if self.path.is_file():
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def add(self, row: dict[str, Any]) -> None:
        """Appends a line."""
        with disk_errors(self.path), self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
