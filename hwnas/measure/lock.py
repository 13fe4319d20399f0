"""One lock per device and machine, so that two profiles never time each other."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from hwnas.errors import HwnasError

if TYPE_CHECKING:
    from hwnas.progress import Progress

WAIT_S = 3600.0


def lock_of(device: str) -> FileLock:
    """The device's lock on this machine, open to every user of it."""
    return FileLock(Path(tempfile.gettempdir()) / f"hwnas-{device.replace(os.sep, '_')}.lock", mode=0o666)


@contextmanager
def device_lock(device: str, progress: Progress, *, wait_s: float = WAIT_S) -> Iterator[None]:
    """Holds the device; waits while another hwnas process of this machine measures on it.

    Raises:
        HwnasError: it was still held after `wait_s` seconds.
    """
    lock = lock_of(device)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress.note(f"another hwnas process is measuring on {device}: waiting for it to finish")
            lock.acquire(timeout=wait_s)
    except Timeout:
        raise HwnasError(
            f"{device} was still being measured by another process after {wait_s:g} s: try later"
        ) from None
    except PermissionError:
        raise HwnasError(f"cannot open the device lock {lock.lock_file}: remove it or ask its owner to") from None
    try:
        yield
    finally:
        lock.release()
