"""The installed command, run as users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Finished:
    """A command that ran: exit code and what it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The one JSON document that is all of stdout."""
        assert self.code in (0, 3), self.stderr
        return json.loads(self.stdout)

    @property
    def error(self) -> str:
        """The one error line; anything more than that, or a traceback, fails the test."""
        assert "Traceback" not in self.stderr
        lines = [line for line in self.stderr.splitlines() if line.startswith("hwnas: error: ")]
        assert len(lines) == 1, self.stderr
        assert self.stderr.splitlines()[-1] == lines[0]
        return lines[0]


@dataclass(frozen=True)
class Hwnas:
    """Runs the installed `hwnas` in a folder of its own."""

    folder: Path

    def __call__(self, *args: str | Path, timeout_s: float = 300, env: Mapping[str, str] | None = None) -> Finished:
        done = subprocess.run(
            self.argv(*args),
            cwd=self.folder,
            env=self.environment(env),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def argv(self, *args: str | Path) -> list[str]:
        """The command line: the command beside the Python that runs the tests."""
        return [str(Path(sys.executable).parent / "hwnas"), *map(str, args)]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The tests' environment without the caller's options."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HWNAS_") or k == "HWNAS_FASHION_MNIST"}
        return {**kept, **(extra or {})}
