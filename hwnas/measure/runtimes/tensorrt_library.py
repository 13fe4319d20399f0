"""The TensorRT module of this process: ``tensorrt`` (10 and 11) or ``tensorrt_rtx``, whose interfaces are alike.

`trt` stands for whichever was chosen with `use`; nothing is imported before. It is told by its ``__version__``: a
package of stubs leaves an empty `tensorrt` behind that imports as well.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["LIBRARIES", "chosen", "in_use", "trt", "use"]

LIBRARIES = ("tensorrt", "tensorrt_rtx")
LEAST = {"tensorrt": 10, "tensorrt_rtx": 1}
"""Oldest major version of each that has strongly typed networks as they are used here."""


class _Chosen:
    """Attributes are those of the chosen module."""

    module: ModuleType | None = None
    name = ""

    def __getattr__(self, name: str) -> Any:
        if self.module is None:
            raise AttributeError(f"no TensorRT was chosen yet: {name}")
        return getattr(self.module, name)


_chosen = _Chosen()

if TYPE_CHECKING:
    import tensorrt_rtx as trt
else:
    trt = _chosen


def use(name: str) -> str:
    """Imports the library `name` and makes `trt` stand for it. Returns its version.

    Raises:
        ImportError: it is not installed, is something else of that name, or is too old.
        ValueError: it is none of `LIBRARIES`.
    """
    if name not in LIBRARIES:
        raise ValueError(f"{name} is no TensorRT: one of {', '.join(LIBRARIES)}")
    module = importlib.import_module(name)
    version = getattr(module, "__version__", None)
    if not isinstance(version, str) or not hasattr(module, "Builder"):
        raise ImportError(f"the package {name} that is installed here is no TensorRT: it has no version and no builder")
    if int(version.split(".")[0]) < LEAST[name]:
        raise ImportError(f"{name} {version} is too old: {LEAST[name]}.0 or newer is needed")
    _chosen.module, _chosen.name = module, name
    return version


def chosen() -> object:
    """The module that `trt` stands for; None where none was chosen."""
    return _chosen.module


def in_use() -> str:
    """Name of the library that `trt` stands for; empty where none was chosen."""
    return _chosen.name
