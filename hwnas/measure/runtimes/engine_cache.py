"""Engines and the timing cache in a folder: nothing is built twice, and builds stay alike.

The folder is beside the table, or, of a device that is elsewhere, in the cache folder of the user there.

Which kernels TensorRT picks depends on its own timing; the timing cache makes it pick the same ones again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MOST_BYTES = 4 * 2**30
"""Size of the folder from which on the engines that were used longest ago go."""

_TIMING = "timing.cache"
_SUFFIX = ".engine"


def folder_of_host(name: str) -> Path | None:
    """Where this machine keeps engines for those who measure on it from elsewhere, by the name of their profile; None
    where its user has no home."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "hwnas" / f"{Path(name).name}.engines"


class EngineCache:
    """The folder; None keeps nothing. A file that cannot be written or read is no error: it is built anew."""

    def __init__(self, folder: Path | None, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._most_bytes = folder, most_bytes

    def engine(self, key: str) -> bytes | None:
        """The engine that was kept as `key`."""
        if self._folder is None:
            return None
        path = self._folder / f"{key}{_SUFFIX}"
        try:
            data = path.read_bytes()
            path.touch()  # used now
        except OSError:
            return None
        return data or None

    def timing_cache(self) -> bytes:
        """What earlier builds learned; empty where there were none."""
        if self._folder is None:
            return b""
        try:
            return (self._folder / _TIMING).read_bytes()
        except OSError:
            return b""

    def keep(self, key: str, engine: bytes, timing_cache: bytes = b"") -> None:
        """Keeps an engine, and the timing cache where there is one."""
        if self._folder is None:
            return
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(self._folder / f"{key}{_SUFFIX}", engine)
            if timing_cache:
                _write(self._folder / _TIMING, timing_cache)
            self._shrink(keep=key)

    def _shrink(self, keep: str) -> None:
        assert self._folder is not None
        engines = [(entry.stat(), entry) for entry in self._folder.glob(f"*{_SUFFIX}")]
        total = sum(stat.st_size for stat, _ in engines)
        for stat, entry in sorted(engines, key=lambda pair: pair[0].st_mtime):
            if total <= self._most_bytes:
                break
            if entry.stem != keep:
                entry.unlink(missing_ok=True)
                total -= stat.st_size


def _write(path: Path, data: bytes) -> None:
    """Complete or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
