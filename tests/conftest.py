"""Fixtures that several test folders use."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Hwnas


@pytest.fixture
def hwnas(tmp_path: Path) -> Hwnas:
    """The installed command, started in an empty folder."""
    return Hwnas(tmp_path)


@pytest.fixture(scope="module")
def own_lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A lock of the device for a module's tests: other tests measure the same device at the same time."""
    before = tempfile.tempdir
    tempfile.tempdir = str(tmp_path_factory.mktemp("lock"))
    yield
    tempfile.tempdir = before
