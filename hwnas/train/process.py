"""What a training asks of the process that it runs in."""

from __future__ import annotations

import ctypes
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of mallopt(3): no block is mapped on its own with M_MMAP_MAX at 0, none given back with M_TRIM_THRESHOLD at -1."""


def prepare_process(threads: int) -> None:
    """Lets torch compute with `threads` threads, and keeps freed memory for the next step."""
    torch.set_num_threads(threads)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Whether the C library now gives no freed memory back to the system before the process ends.

    A training step frees all its activations and the next asks for the same again. By default glibc maps large blocks
    one by one, and every page of them costs a fault and is cleared at its first touch, in every step anew. Other C
    libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
