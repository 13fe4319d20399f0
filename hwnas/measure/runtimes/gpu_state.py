"""What the GPU is doing while it is timed: clocks, temperature, power, and why it is throttled, through NVML.

A GPU that warms up or hits its power limit lowers its clock, and what is timed then is another device. So timing waits
until clocks have settled, looks before and after each stretch, and repeats what was disturbed. Has not run on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SLOWED = {0x8: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake"}
"""NVML's bits of reasons that make a measurement worthless. A power cap (0x4) is how the device works under load; it is
recorded, and shows in the clock."""

DRIFT = 0.02
"""Relative change of the clock between before and after that disturbs a measurement."""

SETTLED = 5
"""Readings in a row within `DRIFT` after which clocks have settled."""

PAUSE_S = 2.0
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class GpuState:
    """One reading: MHz, degrees Celsius, W, and NVML's bits of throttle reasons. None is what the GPU does not tell."""

    sm_mhz: int | None
    memory_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    throttle: int

    @property
    def slowed(self) -> tuple[str, ...]:
        """Why it is slower than it could be, in words; empty where it is not."""
        return tuple(words for bit, words in SLOWED.items() if self.throttle & bit)

    def to_json(self) -> dict[str, Any]:
        """As it is stored beside samples."""
        return asdict(self)


def disturbed(before: GpuState, after: GpuState) -> str:
    """Why what was timed between two readings says nothing of the undisturbed device; empty where it does."""
    if after.slowed or before.slowed:
        return ", ".join(after.slowed or before.slowed)
    if before.sm_mhz and after.sm_mhz and abs(after.sm_mhz - before.sm_mhz) > DRIFT * before.sm_mhz:
        return f"the clock went from {before.sm_mhz} to {after.sm_mhz} MHz"
    return ""


class GpuWatch:
    """Reads the state of one GPU. Where NVML cannot be had every reading says nothing, and nothing is repeated.

    Args:
        bus: where the GPU is plugged in (`hwnas.measure.runtimes.cuda.Gpu`): NVML counts those too that
            CUDA_VISIBLE_DEVICES hides, in an order of its own.
    """

    def __init__(self, bus: str) -> None:
        self._nvml: Any = None
        self._handle: Any = None
        self.why_not = ""
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByPciBusId(bus)
            self._nvml = pynvml
        except ImportError:
            self.why_not = "nvidia-ml-py is not installed"
        except Exception as error:  # NVML's errors are made at run time
            self.why_not = str(error)

    @property
    def available(self) -> bool:
        """Whether readings say anything."""
        return self._nvml is not None

    def driver(self) -> str:
        """Version of the driver; empty where it is not known."""
        return str(self._ask("nvmlSystemGetDriverVersion", handle=False) or "")

    def read(self) -> GpuState:
        """The state now."""
        nvml = self._nvml
        if nvml is None:
            return GpuState(None, None, None, None, 0)
        power = self._ask("nvmlDeviceGetPowerUsage")
        return GpuState(
            self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            None if power is None else power / 1000,
            self._ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0,
        )

    def _ask(self, name: str, *arguments: Any, handle: bool = True) -> Any:
        """What NVML says; None where this GPU does not tell."""
        if self._nvml is None:
            return None
        try:
            return getattr(self._nvml, name)(*([self._handle] if handle else []), *arguments)
        except self._nvml.NVMLError:
            return None


def settle(run: Callable[[], object], read: Callable[[], GpuState], most: int = 200) -> bool:
    """Runs until the clock has settled; whether it did. Where the clock is not told, a few runs have to do."""
    clocks: list[int] = []
    for _ in range(most):
        run()
        clock = read().sm_mhz
        if clock is None:
            if len(clocks) == 0 and _ >= SETTLED:
                return True
            continue
        clocks.append(clock)
        last = clocks[-SETTLED:]
        if len(last) == SETTLED and max(last) - min(last) <= DRIFT * max(last):
            return True
    return False


def undisturbed(
    measure: Callable[[], Sequence[float]],
    read: Callable[[], GpuState],
    pause: Callable[[float], None] = time.sleep,
) -> tuple[list[float], GpuState, str]:
    """Measures, again after a pause where the GPU was slowed or its clock drifted, `ATTEMPTS` times at most.

    Returns:
        The samples, the state after them, and why they were disturbed, of the last attempt; mostly nothing did.
    """
    for attempt in range(ATTEMPTS):
        before = read()
        samples = list(measure())
        after = read()
        why = disturbed(before, after)
        if not why:
            break
        if attempt < ATTEMPTS - 1:
            pause(PAUSE_S)
    return samples, after, why
