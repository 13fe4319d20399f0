"""TensorRT on an NVIDIA GPU, by ``tensorrt`` or ``tensorrt_rtx``.

Everything up to the engine is the same on machines without a GPU and is tested there; loading, running and timing it
(`tensorrt_session`) has not run on a GPU yet. Networks are built twice: which kernels TensorRT picks depends on its own
timing, and what the two builds differ by belongs to a latency.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hwnas.errors import HwnasError
from hwnas.measure.precision import CONVERSIONS
from hwnas.measure.runtimes.base import KernelClock, Runtime, Session
from hwnas.measure.runtimes.cuda import NO_DRIVER, NoGpu, driver_is_here, open_cuda
from hwnas.measure.runtimes.engine_cache import EngineCache, folder_of_host
from hwnas.measure.runtimes.gpu_state import GpuWatch
from hwnas.measure.runtimes.tensorrt_build import BuildOptions, Built, build_engine, engine_key
from hwnas.measure.runtimes.tensorrt_library import use
from hwnas.measure.runtimes.tensorrt_session import EngineClock, EngineSession, Loaded

BUILDS = 2
"""Engines that are built of each network."""

Held = TypeVar("Held", EngineSession, EngineClock)

CPU_WORKS = "'--device cpu' works without a GPU"


class TensorRt(Runtime):
    """One GPU.

    Args:
        library: ``tensorrt`` or ``tensorrt_rtx``.
        device: number of the GPU.
        precision: what models are brought to before they are built; those that are quantised already stay as they are.
        options: of the builder.
        cache: folder of engines and of the timing cache; None keeps nothing.

    Raises:
        ImportError: the library, a CUDA package, the driver or the GPU is missing.
    """

    def __init__(
        self, library: str, device: int, precision: str, options: BuildOptions, cache: Path | None = None
    ) -> None:
        if not driver_is_here():  # told first: without it nothing else would help
            raise NoGpu(f"{NO_DRIVER}, see nvidia.com/drivers; {CPU_WORKS}")
        self.library, self.precision, self.options = library, precision, options
        self.version = use(library)
        try:
            self.cuda = open_cuda(device)
        except NoGpu as error:
            raise NoGpu(f"{error}; {CPU_WORKS}") from None
        self.watch = GpuWatch(self.cuda.gpu.bus)
        self._cache = EngineCache(cache)

    def describe(self) -> dict[str, str | int]:
        gpu, driver = self.cuda.gpu, self.watch.driver()
        return {
            "runtime": self.library,
            # kernels come with the driver too: another one is another device to a table
            "runtime_version": f"{self.version} (driver {driver})" if driver else self.version,
            "device": gpu.name,
            "cores": gpu.processors,
            "threads": 1,
            "kernels": 1,
            "compute_capability": gpu.capability,
            "memory_bytes": gpu.memory_bytes,
        }

    def load_network(self, model: bytes) -> Session:
        return self._counted(lambda: self._built_often(model))

    def load_operator(self, model: bytes, min_run_ms: float) -> Session:
        return self._counted(
            lambda: EngineSession([self._loaded(model, 0)], self.cuda, self.watch, min_run_ms=min_run_ms)
        )

    def load_kernels(self, model: bytes) -> KernelClock:
        return self._counted(lambda: EngineClock(self._built(model, 0).engine, self.cuda, self.watch))

    def _counted(self, load: Callable[[], Held]) -> Held:
        """Loads something and sees how much memory it takes: engines alone know what they need beside their weights."""
        before = self.cuda.free_bytes()
        loaded = load()
        loaded.memory_bytes = max(0, before - self.cuda.free_bytes())
        return loaded

    def _built_often(self, model: bytes) -> EngineSession:
        builds: list[Loaded] = []
        try:
            for build in range(BUILDS):
                builds.append(self._loaded(model, build))
        except BaseException:
            for loaded in builds:
                loaded.release()
            raise
        return EngineSession(builds, self.cuda, self.watch)

    def _loaded(self, model: bytes, build: int) -> Loaded:
        return Loaded(self._built(model, build).engine, self.cuda)

    def _built(self, model: bytes, build: int) -> Built:
        """The engine, from the cache or anew. Only the first build uses the timing cache: it would make all alike."""
        gpu = self.cuda.gpu  # what is fastest on one GPU is not on another one of the same capability
        device = f"{gpu.name} {gpu.capability}"
        key = engine_key(model, self.options, f"{self.version}-{self.precision}-{build}", device)
        engine = self._cache.engine(key)
        if engine is not None:
            return Built(engine, ())
        try:
            converted = CONVERSIONS[self.precision](model)
        except HwnasError as error:
            raise ValueError(str(error)) from None
        built = build_engine(converted, self.options, self._cache.timing_cache() if build == 0 else b"")
        self._cache.keep(key, built.engine, built.timing_cache if build == 0 else b"")
        return built

    def broken(self) -> str:
        """An error of a kernel (an illegal address, …) stays: CUDA answers every later call of the process with it."""
        try:
            self.cuda.synchronise()
        except Exception as error:  # each package has its own
            return f"the GPU cannot be used any more: {error}"
        return ""

    def close(self) -> None:
        self.cuda.close()


def open_tensorrt(library: str, options: dict[str, Any]) -> Runtime:
    """From the options of a profile (`hwnas.devices.DeviceProfile.runtime_options`) and of the measuring process."""
    return TensorRt(
        library,
        int(options.get("gpu", 0)),
        str(options.get("precision", "fp32")),
        BuildOptions(**options.get("builder", {})),
        cache_of(options),
    )


def cache_of(options: Mapping[str, Any]) -> Path | None:
    """The folder that was named, or this machine's own for a profile that is measured from elsewhere."""
    if options.get("cache"):
        return Path(options["cache"])
    return folder_of_host(str(options["cache_name"])) if options.get("cache_name") else None
