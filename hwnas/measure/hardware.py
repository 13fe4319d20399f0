"""What the hardware calls itself: tables are bound to it."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path


def cpu_name() -> str:
    """The CPU's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


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
