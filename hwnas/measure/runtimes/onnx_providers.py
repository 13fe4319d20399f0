"""ONNX Runtime's execution providers that a profile can name: what tells one from the other, as data.

Where a provider cannot be loaded, ONNX Runtime runs the model on the CPU and says so in a log only. Here that is an
error: figures of a CPU must never stand in a GPU's table.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime as ort

from hwnas.measure.hardware import cpu_name, gpu_name

CPU = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True)
class Provider:
    """One way in which ONNX Runtime deploys.

    Attributes:
        runtime: its name in a profile.
        name: ONNX Runtime's name of it.
        options: it is opened with these; a GPU's number is added.
        beneath: what runs the operators that it does not take, best first.
        memory: where inputs and outputs lie: cpu or cuda, ONNX Runtime's names.
        graph: its optimised graph can be stored and cut open (`operator_graph`); else an operator is timed as the
            difference of two graphs (`operator_fan`).
        kernels: the profiler's times of kernels are the device's; on a GPU they are those of launches.
        library: what holds it, beside ONNX Runtime's own; empty where it is built in.
    """

    runtime: str
    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    beneath: tuple[str, ...] = ()
    memory: str = "cpu"
    graph: bool = True
    kernels: bool = False
    library: str = ""

    def chain(self, gpu: int) -> list[tuple[str, dict[str, str]]]:
        """What a session is opened with: itself, then what is beneath."""
        known = {provider.name: provider for provider in PROVIDERS.values()}
        number = {} if self.memory == "cpu" else {"device_id": str(gpu)}
        below = [entry for name in self.beneath for entry in known[name].chain(gpu)]
        return [(self.name, {**self.options, **number}), *below]

    def find(self, gpu: int) -> str:
        """The name of the device that it runs on; loads what the provider needs.

        Raises:
            ImportError: the installed ONNX Runtime is one without it, or there is no such device.
        """
        if self.name not in ort.get_available_providers():
            raise ImportError(f"the installed ONNX Runtime {ort.__version__} has no {self.name}")
        if self.memory == "cpu":
            return cpu_name()
        name = gpu_name(gpu)
        if name is None:
            raise ImportError(f"no NVIDIA driver here, or no GPU {gpu}; --device cpu works")
        # TensorFloat-32 is no fp32. CUDA's provider has an option for that, TensorRT's has none; NVIDIA's libraries
        # read this when they are loaded
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        ort.preload_dlls()  # CUDA and cuDNN where pip puts them
        if "Tensorrt" in self.name:
            with contextlib.suppress(ImportError):
                import tensorrt  # noqa: F401 (loads the libraries where pip puts them)
        return name

    def why_not(self) -> str:
        """What keeps its library from being loaded, which ONNX Runtime itself only logs; empty where it loads."""
        folder = Path(ort.__file__).parent / "capi"
        try:
            ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(folder / self.library))
        except OSError as error:
            return str(error)
        return ""

    def check(self, session: ort.InferenceSession) -> ort.InferenceSession:
        """`session`, where it is this provider that runs it.

        Raises:
            RuntimeError: ONNX Runtime fell back to another.
        """
        used = session.get_providers()[0]
        if used != self.name:
            raise RuntimeError(f"{self.name} does not run it, {used} would")
        return session


_CUDA = Provider(
    "onnxruntime-cuda",
    "CUDAExecutionProvider",
    {"use_tf32": "0"},
    beneath=(CPU,),
    memory="cuda",
    library="libonnxruntime_providers_cuda.so",
)
_TENSORRT = Provider(
    "onnxruntime-tensorrt",
    "TensorrtExecutionProvider",
    beneath=(_CUDA.name,),
    memory="cuda",
    graph=False,
    library="libonnxruntime_providers_tensorrt.so",
)

PROVIDERS: dict[str, Provider] = {
    provider.runtime: provider for provider in (Provider("onnxruntime", CPU, kernels=True), _CUDA, _TENSORRT)
}
"""Name in a profile -> provider."""


def options_of(provider: Provider, gpu: int) -> dict[str, Any]:
    """Arguments of an `onnxruntime.InferenceSession` that uses it, and does not fall back where it fails."""
    return {"providers": provider.chain(gpu), "enable_fallback": 0}
