"""Short protocols and small things to measure, for tests in which a latency need not be right."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from hwnas.devices import DeviceProfile, Timing, find_profile
from hwnas.latency.lowering import lowering
from hwnas.latency.slots import SpaceKernels
from hwnas.network import Network, NetworkBuilder
from hwnas.ops import Op
from hwnas.spaces import Space


def quick_profile(**timing: Any) -> DeviceProfile:
    """The CPU profile with two passes of one run, or what `timing` says."""
    quick = {"min_passes": 2, "max_passes": 2, "runs": 1, "min_run_ms": 0.01, "timeout_s": 30.0}
    return find_profile("cpu").model_copy(update={"timing": Timing(**{**quick, **timing})})


def tiny_network(channels: int = 8, size: int = 8, classes: int = 4) -> Network:
    """Three operators."""
    builder = NetworkBuilder((3, size, size))
    builder.add(Op.conv((3, size, size), channels, kernel=3, norm=True, act="relu"))
    builder.add(Op.global_avg_pool(builder.shape()))
    builder.add(Op.linear(channels, classes))
    return builder.build()


def kernels_of(space: Space, block: int = 0) -> list[Op]:
    """Every kernel of a space, for a runtime that has blocks of so many channels (0: none)."""
    return SpaceKernels.of(space, lowering({"runtime": "onnxruntime", "channel_block": block})).every()


def alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and that nobody has waited for yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(true: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Waits until `true()`; fails the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def as_nobody() -> Any:
    """A context in which files are opened as an ordinary user, so that root meets permissions too."""
    from contextlib import contextmanager

    @contextmanager
    def context() -> Any:
        if os.geteuid() != 0:
            yield
            return
        os.setresuid(65534, 65534, 0)
        try:
            yield
        finally:
            os.setresuid(0, 0, 0)

    return context()
