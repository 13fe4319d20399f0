"""Reads the operators of a model, an `nn.Module` (`torch_fx`) or an ONNX file (`onnx_file`), by one set of rules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.errors import HwnasError
from hwnas.network import Network
from hwnas.ops import Shape

if TYPE_CHECKING:
    from torch import nn


def ops_of(model: nn.Module | Path | str, input_shape: Shape | None = None) -> Network:
    """The deployed operators of `model`, as in inference. No weights are read, and the module is not changed.

    Args:
        model: a module, or the path of an ONNX file.
        input_shape: one image, (channels, height, width); a module needs it, of a file it fixes what the
            file leaves open.

    Returns:
        The operators and how they are wired. What is not understood is named in ``unknown``: no operator is dropped.

    Raises:
        HwnasError: the model cannot be read at all; it says why and what to do.
    """
    if isinstance(model, str | Path):
        from hwnas.trace.onnx_file import read_onnx

        return read_onnx(Path(model), input_shape)
    from hwnas.trace.torch_fx import read_module

    if input_shape is None:
        raise HwnasError("a module does not know the size of its images: pass input_shape=(channels, height, width)")
    return read_module(model, input_shape)
