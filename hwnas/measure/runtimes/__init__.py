"""The runtimes that a measuring process can own, one file each. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hwnas.measure.runtimes.base import Runtime


def _onnxruntime(name: str, options: dict[str, Any]) -> Runtime:
    from hwnas.measure.runtimes.onnx_providers import PROVIDERS
    from hwnas.measure.runtimes.onnx_runtime import OnnxRuntime

    return OnnxRuntime(int(options["threads"]), PROVIDERS[name], int(options.get("gpu", 0)))


def _openvino(options: dict[str, Any]) -> Runtime:
    from hwnas.measure.runtimes.openvino import OpenVino

    return OpenVino(threads=int(options["threads"]))


def _tensorrt(options: dict[str, Any]) -> Runtime:
    from hwnas.measure.runtimes.tensorrt import open_tensorrt

    return open_tensorrt("tensorrt", options)


def _tensorrt_rtx(options: dict[str, Any]) -> Runtime:
    from hwnas.measure.runtimes.tensorrt import open_tensorrt

    return open_tensorrt("tensorrt_rtx", options)


RUNTIMES: dict[str, Callable[[dict[str, Any]], Runtime]] = {
    "onnxruntime": partial(_onnxruntime, "onnxruntime"),
    "onnxruntime-cuda": partial(_onnxruntime, "onnxruntime-cuda"),
    "onnxruntime-tensorrt": partial(_onnxruntime, "onnxruntime-tensorrt"),
    "openvino": _openvino,
    "tensorrt": _tensorrt,
    "tensorrt_rtx": _tensorrt_rtx,
}
"""Name in a profile -> what opens it in the measuring process."""

INSTALL = {
    "onnxruntime": "pip install --force-reinstall onnxruntime",
    # two packages with the same files: the second one in place of the first
    "onnxruntime-cuda": "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'",
    "onnxruntime-tensorrt": "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]' 'tensorrt<11'",
    "openvino": "pip install 'hwnas[openvino]'",
    "tensorrt": "pip install 'hwnas[tensorrt]'",
    "tensorrt_rtx": "pip install 'hwnas[tensorrt-rtx]'",
}
"""Name in a profile -> the command that mends a runtime which cannot be used."""
