"""The runtimes that a measuring process can own, one file each. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hwnas.measure.runtimes.base import Runtime


def _onnxruntime(options: dict[str, Any]) -> Runtime:
    from hwnas.measure.runtimes.onnx_runtime import OnnxRuntime

    return OnnxRuntime(threads=int(options["threads"]))


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
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
    "tensorrt_rtx": _tensorrt_rtx,
}
"""Name in a profile -> what opens it in the measuring process."""

INSTALL = {
    "onnxruntime": "pip install --force-reinstall onnxruntime",
    "openvino": "pip install 'hwnas[openvino]'",
    "tensorrt": "pip install 'hwnas[tensorrt]'",
    "tensorrt_rtx": "pip install 'hwnas[tensorrt-rtx]'",
}
"""Name in a profile -> the command that mends a runtime which cannot be imported."""
