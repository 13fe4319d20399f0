"""One quickly measured table of the small space, made by the command itself, that the tests of other commands read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from command import Finished, Hwnas

QUICK_PROFILE = """
format = 1
name = "quick"
description = "few passes: for tests, where a latency need not be right"
runtime = "onnxruntime"
device = "cpu"

[timing]
min_passes = 2
max_passes = 2
runs = 2
min_run_ms = 0.01
"""


@dataclass(frozen=True)
class Measured:
    """The folder of a table, how it was made, and what `profile --json` said."""

    folder: Path
    profile: Path
    lut: Path
    done: Finished


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """A table of `proxyless-tiny` of this machine's CPU."""
    folder = tmp_path_factory.mktemp("measured")
    profile, lut = folder / "quick.toml", folder / "quick.lut"
    profile.write_text(QUICK_PROFILE)
    done = Hwnas(folder)("profile", "--device", profile, "--space", "proxyless-tiny", "--lut", lut, "--json")
    assert done.code == 0, done.stderr
    return Measured(folder, profile, lut, done)
