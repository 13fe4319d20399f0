"""Outlines say the same as the models that they stand for, and what is badly described is refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from hwnas.latency.plan import whole_subject
from hwnas.measure.link import MeasurementError
from hwnas.measure.onnx_models import network_outline, network_to_onnx, weight_bytes
from hwnas.measure.outlines import LOCATION, MAX_BYTES, POOL_SIZE, described, filled, weights_of
from hwnas.measure.process import MeasuringProcess, Subject
from hwnas.measure.runtimes import onnx_runtime
from hwnas.measure.runtimes.onnx_runtime import OnnxRuntime
from hwnas.network import Network, NetworkBuilder
from hwnas.ops import Op
from tests.quick import quick_profile, tiny_network

IMAGE = np.random.default_rng(0).standard_normal((1, 3, 64, 64), dtype=np.float32)


def model_of(*tensors: TensorProto) -> onnx.ModelProto:
    return onnx.helper.make_model(onnx.helper.make_graph([], "weights", [], [], list(tensors)))


def values_of(*tensors: TensorProto) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: values for tensor, values in weights_of(model_of(*tensors))}


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.integers(0, 90), min_size=1, max_size=3),
    seed=st.integers(0, 5),
    start=st.integers(0, POOL_SIZE - 1),
    std=st.floats(1e-3, 10),
)
def test_weights_are_those_of_the_description(shape: list[int], seed: int, start: int, std: float) -> None:
    """Any turn of the pool, as often as it takes, times the spread."""
    tensor = described("w", shape, seed=seed, start=start, std=std)
    values = values_of(tensor)["w"]
    pool = np.random.default_rng(seed).standard_normal(POOL_SIZE, dtype=np.float32)
    expected = np.resize(np.roll(pool, -start), shape) * np.float32(std) if 0 not in shape else np.empty(shape)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)
    (whole,) = onnx.load_from_string(filled(model_of(tensor).SerializeToString())).graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(whole), values)


def test_an_outline_is_small_and_its_model_whole() -> None:
    network = tiny_network(channels=256, size=64, classes=1000)
    outline, whole = network_outline(network), network_to_onnx(network)
    assert len(outline) < len(whole) / 50
    assert len(whole) == pytest.approx(weight_bytes(network.ops), rel=0.02)
    assert filled(outline) == whole
    assert filled(whole) == whole
    onnx.checker.check_model(onnx.load_from_string(whole), full_check=True)


def test_the_runtime_makes_the_same_network_and_keeps_no_hold_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was given is overwritten, as memory that is given back would be."""
    given: list[NDArray[np.float32]] = []

    def watched(outline: onnx.ModelProto) -> Iterator[tuple[TensorProto, NDArray[np.float32]]]:
        for tensor, values in weights_of(outline):
            given.append(values)
            yield tensor, values

    monkeypatch.setattr(onnx_runtime, "weights_of", watched)
    network = depthwise_network()
    with OnnxRuntime(1) as runtime:
        session = runtime.load_network(network_outline(network))
        assert sum(values.nbytes for values in given) == weight_bytes(network.ops) - 2 * 4 * 32  # ones of the affine
        for values in given:
            values[...] = np.nan
        np.testing.assert_array_equal(session.run(IMAGE), runtime.load_network(network_to_onnx(network)).run(IMAGE))


def depthwise_network() -> Network:
    """Runtimes keep some weights as they are and turn others: of depthwise, plain and linear layers, and biases."""
    builder = NetworkBuilder((3, 64, 64))
    builder.add(Op.conv((3, 64, 64), 32, kernel=3, stride=2, norm=True, act="relu6"))
    builder.add(Op.conv(builder.shape(), 32, kernel=3, groups=32, bias=True))
    builder.add(Op.affine(builder.shape()))
    builder.add(Op.conv(builder.shape(), 30, kernel=1))
    builder.add(Op.global_avg_pool(builder.shape()))
    builder.add(Op.linear(30, 1000))
    return builder.build()


def test_a_process_computes_the_same_from_an_outline() -> None:
    """Nobody else holds the weights there until the session has them."""
    network = depthwise_network()
    with MeasuringProcess(quick_profile()) as process:
        outline, whole = (
            process.run(Subject(name, "network", partial(write, network)), IMAGE)
            for name, write in (("outline", network_outline), ("whole", network_to_onnx))
        )
    assert np.ptp(whole) > 0
    np.testing.assert_array_equal(outline, whole)


@pytest.mark.parametrize("role", ["network", "operator", "kernels"])
def test_every_role_takes_outlines(role: str) -> None:
    subject = Subject("tiny", role, lambda: network_outline(tiny_network()))
    with MeasuringProcess(quick_profile()) as process:
        assert process.load(subject) >= 1


def test_the_memory_of_weights_counts_before_they_are_made() -> None:
    network = tiny_network(channels=256, size=64, classes=1000)
    for role in ("network", "cover"):
        assert whole_subject(role, "tiny", network, 1).memory_bytes > weight_bytes(network.ops)


def _negative() -> TensorProto:
    return described("w", (-1, 3), seed=0, start=0, std=1.0)


def _vast() -> TensorProto:
    return described("w", (MAX_BYTES // 4 + 1,), seed=0, start=0, std=1.0)


def _without(key: str) -> TensorProto:
    tensor = described("w", (3,), seed=0, start=0, std=1.0)
    kept = [entry for entry in tensor.external_data if entry.key != key]
    tensor.ClearField("external_data")
    tensor.external_data.extend(kept)
    return tensor


def _no_number() -> TensorProto:
    tensor = _without("std")
    tensor.external_data.add(key="std", value="much")
    return tensor


def _whole_numbers() -> TensorProto:
    tensor = described("w", (3,), seed=0, start=0, std=1.0)
    tensor.data_type = TensorProto.INT64
    return tensor


BAD: dict[str, tuple[Callable[[], TensorProto], str]] = {
    "a negative size": (_negative, "2 GiB"),
    "a vast size": (_vast, "2 GiB"),
    "no seed": (lambda: _without("seed"), "without 'seed'"),
    "no number": (_no_number, "much"),
    "no finite number": (lambda: described("w", (3,), seed=0, start=0, std=float("inf")), "inf wide"),
    "whole numbers": (_whole_numbers, "float32"),
}


@pytest.mark.parametrize(("make", "says"), BAD.values(), ids=BAD)
def test_bad_descriptions_are_refused(make: Callable[[], TensorProto], says: str) -> None:
    outline = model_of(make()).SerializeToString()
    with pytest.raises(ValueError, match=says):
        filled(outline)
    with MeasuringProcess(quick_profile()) as process:
        for role in ("network", "operator"):
            with pytest.raises(MeasurementError, match=says) as caught:
                process.time_ms(Subject("bad", role, lambda: outline), 1)
            assert not caught.value.process_died


def test_other_external_data_is_left_alone() -> None:
    """A model whose weights are in a file, which happens to have the word in a name."""
    tensor = _without("location")
    tensor.external_data.add(key="location", value="weights.bin")
    model = model_of(tensor)
    model.doc_string = LOCATION
    assert onnx.load_from_string(filled(model.SerializeToString())) == model
