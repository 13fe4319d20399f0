"""Fixtures that several test folders use."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Hwnas


@pytest.fixture
def hwnas(tmp_path: Path) -> Hwnas:
    """The installed command, started in an empty folder."""
    return Hwnas(tmp_path)
