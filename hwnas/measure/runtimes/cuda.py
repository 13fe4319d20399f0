"""The little of CUDA that a runtime needs (memory, a stream, events, graphs), with two packages that give it.

``pycuda`` needs a CUDA toolkit to be built; ``cuda.bindings`` comes as wheels. Either serves: `open_cuda` takes what is
installed. Both are imported only here. That neither driver nor GPU is there is told with one line. Apart from that line
nothing in this file has run on a GPU yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_DRIVER = "no NVIDIA driver"
OLD_DRIVER = "the NVIDIA driver is too old for the CUDA of the packages that are installed"
DRIVER = "apt-get install nvidia-driver"
"""What mends a driver that is missing or too old, on Debian."""

INSUFFICIENT_DRIVER, NO_DEVICE = 35, 100

NON_BLOCKING = 1
"""CUDA's flag of a stream that does not wait for the default one, in which libraries may work."""


class NoGpu(ImportError):
    """There is no GPU that CUDA could use; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a GPU is.

    Attributes:
        name: as the driver calls it.
        capability: as in ``SM89``.
        processors: streaming multiprocessors.
        l2_bytes: of its second level cache.
        memory_bytes: of all its memory.
        bus: where it is plugged in, as ``0000:65:00.0``: the driver's tools may count GPUs otherwise than CUDA does.
    """

    name: str
    capability: str
    processors: int
    l2_bytes: int
    memory_bytes: int
    bus: str


class Replay(ABC):
    """A captured graph: each call puts it into the stream. It holds device memory until it is closed."""

    @abstractmethod
    def __call__(self) -> None:
        """Puts it into the stream."""

    @abstractmethod
    def close(self) -> None:
        """Destroys it."""


class Cuda(ABC):
    """One GPU with one stream. Addresses, streams, events and graphs are plain numbers or the package's own handles."""

    gpu: Gpu

    @property
    @abstractmethod
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""

    @abstractmethod
    def allocate(self, size_bytes: int) -> int:
        """Address of fresh device memory."""

    @abstractmethod
    def free(self, address: int) -> None:
        """Gives memory back."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Device memory that nobody holds now."""

    @abstractmethod
    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Copies to the device and waits for it."""

    @abstractmethod
    def download(self, values: NDArray[Any], address: int) -> None:
        """Copies from the device into `values` and waits for it."""

    @abstractmethod
    def synchronise(self) -> None:
        """Waits until the stream is empty."""

    @abstractmethod
    def new_event(self) -> Any:
        """An event that takes the time."""

    @abstractmethod
    def free_event(self, event: Any) -> None:
        """Destroys an event."""

    @abstractmethod
    def record(self, event: Any) -> None:
        """Records the event in the stream."""

    @abstractmethod
    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Time between two events that have happened."""

    def capture(self, enqueue: Callable[[], object]) -> Replay | None:
        """What replays as one CUDA graph that which `enqueue` puts into the stream; None where that is not possible."""
        del enqueue
        return None

    @abstractmethod
    def close(self) -> None:
        """Releases the stream."""


class _BindingsReplay(Replay):
    def __init__(self, call: Callable[..., Any], ready: Any, stream: Any) -> None:
        self._call, self._ready, self._stream = call, ready, stream

    def __call__(self) -> None:
        self._call("cudaGraphLaunch", self._ready, self._stream)

    def close(self) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            self._call("cudaGraphExecDestroy", ready)


class BindingsCuda(Cuda):
    """By ``cuda.bindings.runtime``. Every call returns a tuple that begins with an error code."""

    def __init__(self, device: int) -> None:
        self._rt = importlib.import_module("cuda.bindings.runtime")
        count = self._rt.cudaGetDeviceCount()
        code = int(count[0])
        if code in (INSUFFICIENT_DRIVER, NO_DEVICE) or (code == 0 and not count[1]):
            raise NoGpu(OLD_DRIVER if code == INSUFFICIENT_DRIVER else "no NVIDIA GPU")
        if code == 0 and device >= count[1]:
            raise NoGpu(f"no GPU number {device}: there are {count[1]}")
        self._call("cudaSetDevice", device)
        kinds = self._rt.cudaDeviceAttr

        def attribute(name: str) -> int:
            return int(self._call("cudaDeviceGetAttribute", getattr(kinds, name), device))

        name = self._call("cudaGetDeviceProperties", device).name
        major = attribute("cudaDevAttrComputeCapabilityMajor")
        self.gpu = Gpu(
            _text(name),
            f"SM{major}{attribute('cudaDevAttrComputeCapabilityMinor')}",
            attribute("cudaDevAttrMultiProcessorCount"),
            attribute("cudaDevAttrL2CacheSize"),
            int(self._call("cudaMemGetInfo")[1]),
            _text(self._call("cudaDeviceGetPCIBusId", 16, device)),
        )
        self._stream = self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking)

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *results = getattr(self._rt, name)(*arguments)
        if int(code) != 0:
            raise RuntimeError(f"{name}: {getattr(code, 'name', code)}")
        return results[0] if len(results) == 1 else results

    @property
    def stream(self) -> int:
        return int(self._stream)

    def allocate(self, size_bytes: int) -> int:
        return int(self._call("cudaMalloc", size_bytes))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def free_bytes(self) -> int:
        return int(self._call("cudaMemGetInfo")[0])

    def upload(self, address: int, values: NDArray[Any]) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, values.ctypes.data, values.nbytes, kind, self._stream)
        self.synchronise()

    def download(self, values: NDArray[Any], address: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", values.ctypes.data, address, values.nbytes, kind, self._stream)
        self.synchronise()

    def synchronise(self) -> None:
        self._call("cudaStreamSynchronize", self._stream)

    def new_event(self) -> Any:
        return self._call("cudaEventCreate")

    def free_event(self, event: Any) -> None:
        self._call("cudaEventDestroy", event)

    def record(self, event: Any) -> None:
        self._call("cudaEventRecord", event, self._stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        self._call("cudaEventSynchronize", end)
        return float(self._call("cudaEventElapsedTime", start, end))

    def capture(self, enqueue: Callable[[], object]) -> Replay | None:
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
            refused = False
        except RuntimeError:  # what the runtime does not do while it is captured, it may do otherwise
            refused = True
        finally:  # also what failed has to be ended, or the stream stays in capture
            code, graph = self._rt.cudaStreamEndCapture(self._stream)
        ready = None
        if int(code) == 0:
            if not refused:
                with contextlib.suppress(RuntimeError):
                    ready = self._call("cudaGraphInstantiate", graph, 0)
            self._call("cudaGraphDestroy", graph)
        self._rt.cudaGetLastError()  # a capture that failed leaves its error to whoever asks next
        return None if ready is None else _BindingsReplay(self._call, ready, self._stream)

    def close(self) -> None:
        self._call("cudaStreamDestroy", self._stream)


class PyCuda(Cuda):
    """By ``pycuda``, which keeps the primary context of the device, as TensorRT does. It captures no graphs."""

    def __init__(self, device: int) -> None:
        self._driver = driver = importlib.import_module("pycuda.driver")
        try:
            driver.init()
            if device >= driver.Device.count():
                raise NoGpu(f"no GPU number {device}: there are {driver.Device.count()}")
        except driver.Error as error:
            raise NoGpu(f"{NO_DRIVER} ({error})") from None
        found = driver.Device(device)
        kinds = driver.device_attribute
        major, minor = found.compute_capability()
        self.gpu = Gpu(
            found.name(),
            f"SM{major}{minor}",
            found.get_attribute(kinds.MULTIPROCESSOR_COUNT),
            found.get_attribute(kinds.L2_CACHE_SIZE),
            found.total_memory(),
            found.pci_bus_id(),
        )
        self._context = found.retain_primary_context()
        self._context.push()
        self._stream = driver.Stream(NON_BLOCKING)
        self._memory: dict[int, Any] = {}

    @property
    def stream(self) -> int:
        return int(self._stream.handle)

    def allocate(self, size_bytes: int) -> int:
        memory = self._driver.mem_alloc(size_bytes)
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        self._memory.pop(address).free()

    def free_bytes(self) -> int:
        return int(self._driver.mem_get_info()[0])

    def upload(self, address: int, values: NDArray[Any]) -> None:
        self._driver.memcpy_htod_async(address, values, self._stream)
        self.synchronise()

    def download(self, values: NDArray[Any], address: int) -> None:
        self._driver.memcpy_dtoh_async(values, address, self._stream)
        self.synchronise()

    def synchronise(self) -> None:
        self._stream.synchronize()

    def new_event(self) -> Any:
        return self._driver.Event()

    def free_event(self, event: Any) -> None:
        del event  # pycuda destroys it with the last reference

    def record(self, event: Any) -> None:
        event.record(self._stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        end.synchronize()
        return float(start.time_till(end))

    def close(self) -> None:
        for address in list(self._memory):
            self.free(address)
        self._stream = None
        self._context.pop()  # what is left on pycuda's stack at the end aborts the process
        self._context.detach()  # by hand: its destructor takes a primary context for one that pycuda made


def _text(name: Any) -> str:
    return (name.decode() if isinstance(name, bytes) else str(name)).strip("\0 ")


PACKAGES: dict[str, Callable[[int], Cuda]] = {"cuda.bindings.runtime": BindingsCuda, "pycuda.driver": PyCuda}
"""Module -> the interface by it, what can capture graphs first."""


def driver_is_here() -> bool:
    """Whether the NVIDIA driver's library can be loaded."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def open_cuda(device: int = 0) -> Cuda:
    """The GPU number `device`, by the first of `PACKAGES` that is installed.

    Raises:
        NoGpu: there is no driver or no such GPU.
        ImportError: none of the packages is installed.
    """
    if not driver_is_here():
        raise NoGpu(NO_DRIVER)
    for module, implementation in PACKAGES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        return implementation(device)
    raise ImportError("neither cuda.bindings nor pycuda is installed")


def rotation(input_bytes: int, l2_bytes: int, most: int = 64) -> int:
    """How many copies of a network's inputs take turns, so that none is still in the second level cache when read.

    >>> rotation(1_000_000, 40_000_000)
    41
    """
    return 1 if input_bytes <= 0 else min(most, l2_bytes // input_bytes + 1)


def numpy_type(name: str) -> np.dtype[Any]:
    """numpy's type for what TensorRT calls FLOAT, HALF, INT8, …

    Raises:
        ValueError: there is none.
    """
    known = {"FLOAT": "f4", "HALF": "f2", "INT8": "i1", "INT32": "i4", "INT64": "i8", "UINT8": "u1", "BOOL": "?"}
    if name not in known:
        raise ValueError(f"tensors of type {name} cannot be fed: only {', '.join(known)}")
    return np.dtype(known[name])
