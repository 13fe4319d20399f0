"""What the hardware calls itself: tables are bound to it. And the environment in which it is measured."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

_BOARD = Path("/proc/device-tree/model")
_CPUS = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """The CPU's model name; on ARM, where it has none, the board's, else the core's numbers."""
    try:
        known: dict[str, str] = {}
        for line in _CPUS.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            known.setdefault(key.strip(), value.strip())
    except OSError:
        known = {}
    if known.get("model name"):
        return known["model name"]
    try:
        board = _BOARD.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        board = ""
    if board:
        return board
    name = platform.processor() or platform.machine()
    if "CPU part" in known:  # ARM servers: two of them would else be taken for the same device
        name += f" (implementer {known.get('CPU implementer', '?')}, part {known['CPU part']})"
    return name


def device_name(device: str) -> str | None:
    """What tables of a profile's `device` (``cpu``, ``cuda``, ``cuda:1``) are bound to; None where it is not here."""
    kind, _, number = device.partition(":")
    return cpu_name() if kind == "cpu" else gpu_name(int(number or 0))


def gpu_name(number: int = 0) -> str | None:
    """The name of an NVIDIA GPU, as CUDA gives it, asked of the driver itself; None where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    # each answers 0 where it went well
    failed: int = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), number)
    if failed or driver.cuDeviceGetName(name, len(name), handle):
        return None
    return name.value.decode(errors="replace").strip()


def quiet_environment() -> dict[str, str]:
    """A measuring process's environment: no thread pools beside the one that is asked for, no telemetry."""
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CI": "true"}
    return {**os.environ, **quiet}
