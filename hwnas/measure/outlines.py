"""Outlines: ONNX models whose random weights are described instead of contained.

What is timed has random weights, so that 30 kB say as much as the 20 MB of a model: an outline crosses the pipe to the
measuring process, or the network to a device that is elsewhere, and its weights are made where they are used. In ONNX's
terms they are external data, of a location that stands for no file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

LOCATION = "hwnas:random"

POOL_SIZE = 65_537
"""Random numbers that weights are cut from; a prime, so that no two filters of a layer are alike."""

MAX_BYTES = 2**31
"""Of an ONNX file."""


def described(name: str, shape: Sequence[int], *, seed: int, start: int, std: float) -> TensorProto:
    """A float32 initialiser of normal values of mean 0, cut from the pool of `seed`, from `start` on."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    what = {"location": LOCATION, "length": 4 * math.prod(shape), "seed": seed, "start": start, "std": repr(float(std))}
    for key, value in what.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def is_outline(model: bytes) -> bool:
    """Whether something of a serialised model is only described; what happens to look so is read, and found whole."""
    return LOCATION.encode() in model


def filled(model: bytes) -> bytes:
    """A whole model, of an outline; what is none is returned as it is.

    Raises:
        ValueError: the weights are more than a file holds (2 GiB), or are badly described.
    """
    if not is_outline(model):
        return model
    proto = onnx.load_from_string(model)
    for tensor, values in weights_of(proto):
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = values.tobytes()
    whole: bytes = proto.SerializeToString()
    return whole


def weights_of(outline: onnx.ModelProto) -> Iterator[tuple[TensorProto, NDArray[np.float32]]]:
    """The initialisers that are described, and their values.

    Raises:
        ValueError: they are more than a file holds (2 GiB), or badly described.
    """
    left = MAX_BYTES
    for tensor in outline.graph.initializer:
        what = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.data_location != TensorProto.EXTERNAL or what.get("location") != LOCATION:
            continue
        count = math.prod(tensor.dims)
        left -= 4 * count
        if left < 0 or min(tensor.dims, default=1) < 0:
            raise ValueError("its weights are more than an ONNX file can be (2 GiB)")
        if tensor.data_type != TensorProto.FLOAT:
            raise ValueError("its weights are described as other numbers than float32")
        try:
            seed, start, std = int(what["seed"]), int(what["start"]), float(what["std"])
        except KeyError as error:
            raise ValueError(f"its weights are described without {error}") from None
        if not math.isfinite(std):
            raise ValueError(f"its weights are described as {std} wide")
        turned = _pool(seed)[start % POOL_SIZE :][:POOL_SIZE]
        values = np.empty(count, np.float32)
        for begin in range(0, count, POOL_SIZE):  # piece by piece: each number is written once
            part = values[begin : begin + POOL_SIZE]
            np.multiply(turned[: len(part)], np.float32(std), out=part)
        yield tensor, values.reshape(tuple(tensor.dims))


@lru_cache(maxsize=4)
def _pool(seed: int) -> NDArray[np.float32]:
    """Normal values, twice over: any turn of them is a slice."""
    return np.tile(np.random.default_rng(seed).standard_normal(POOL_SIZE, dtype=np.float32), 2)
