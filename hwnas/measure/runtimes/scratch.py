"""A folder for files that a runtime insists on writing."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What says that a file system has no room left, or none for this user."""

_PROBE_BYTES = 1 << 16


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder, removed at the end.

    A runtime that finds no room complains in words of its own, or leaves half a file and says nothing. So where
    something fails it is tried whether there is room.

    Raises:
        OSError: with one of `FULL`: there is none.
    """
    try:
        root = tempfile.gettempdir()
    except FileNotFoundError as error:  # none that is known can be written
        raise OSError(errno.ENOSPC, str(error)) from None
    with tempfile.TemporaryDirectory(prefix="hwnas-", dir=root) as name:
        folder = Path(name)
        try:
            yield folder
        except Exception:
            _try_room(folder)
            raise


def _try_room(folder: Path) -> None:
    with (folder / "probe").open("wb", buffering=0) as probe:
        written = probe.write(b"\1" * _PROBE_BYTES)
        os.fsync(probe.fileno())
    if written < _PROBE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
