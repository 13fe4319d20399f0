"""Drift of a GPU: told from readings, paused for, repeated. The layers' second source, as text."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hwnas.measure.runtimes.cuda import numpy_type, rotation
from hwnas.measure.runtimes.gpu_state import ATTEMPTS, PAUSE_S, GpuState, GpuWatch, disturbed, settle, undisturbed
from hwnas.measure.runtimes.tensorrt_layers import layers_of_inspector, layers_of_log, owner

CALM = GpuState(1500, 5000, 60, 200.0, 0x4)


def test_what_disturbs() -> None:
    assert disturbed(CALM, CALM) == ""
    assert disturbed(CALM, replace(CALM, sm_mhz=1490)) == ""
    assert "1500 to 1400 MHz" in disturbed(CALM, replace(CALM, sm_mhz=1400))
    assert disturbed(CALM, replace(CALM, throttle=0x40)) == "hardware thermal"
    assert disturbed(replace(CALM, sm_mhz=None), CALM) == ""


def test_disturbed_stretches_are_repeated_after_a_pause() -> None:
    readings = iter([CALM, replace(CALM, sm_mhz=1200), CALM, CALM])
    pauses: list[float] = []
    counter = iter(range(10))
    samples, state, why = undisturbed(lambda: [float(next(counter))], lambda: next(readings), pauses.append)
    assert (samples, state, why, pauses) == ([1.0], CALM, "", [PAUSE_S])
    hot = replace(CALM, throttle=0x20)
    pauses.clear()
    samples, state, why = undisturbed(lambda: [1.0], lambda: hot, pauses.append)
    assert (state.slowed, why, len(pauses)) == (("software thermal",), "software thermal", ATTEMPTS - 1)


def test_it_waits_until_the_clock_has_settled() -> None:
    clocks = iter([900, 1200, 1400, 1500, 1500, 1500, 1500, 1500, 9])
    runs: list[int] = []
    assert settle(lambda: runs.append(1), lambda: replace(CALM, sm_mhz=next(clocks)))
    assert len(runs) == 8
    up_and_down = iter([900, 1500] * 100)
    assert not settle(lambda: None, lambda: replace(CALM, sm_mhz=next(up_and_down)), most=50)
    assert settle(lambda: None, lambda: replace(CALM, sm_mhz=None))


def test_where_nvml_says_nothing_nothing_is_known() -> None:
    watch = GpuWatch("0000:00:00.0")
    assert not watch.available
    assert watch.why_not
    assert watch.read() == GpuState(None, None, None, None, 0)
    assert watch.driver() == ""


def test_inputs_take_turns_until_they_exceed_the_cache() -> None:
    assert rotation(10, 100) * 10 > 100
    assert rotation(200, 100) == 1
    assert rotation(1, 10**9) == 64
    assert numpy_type("HALF") == "f2"
    with pytest.raises(ValueError, match="FP4"):
        numpy_type("FP4")


def test_both_sources_of_layers_say_the_same() -> None:
    tensor = {"Name": "a", "Dimensions": [2, 3, 8, 8], "Format": "Row major"}
    document = {
        "Layers": [
            {
                "Name": "n1.Conv_1 + n1.Relu_2",
                "LayerType": "CaskConvolution",
                "Inputs": [tensor],
                "Outputs": [{**tensor, "Dimensions": [2, 16, 8, 8]}],
                "Metadata": "[ONNX Layer: n1.Relu_2]\x1e[ONNX Layer: n1.Conv_1]",
            }
        ]
    }
    line = (
        "Name: n1.Conv_1 + n1.Relu_2, LayerType: CaskConvolution, Inputs: [ { Name: a, Dimensions: [2,3,8,8], "
        "Strides: [192,64,8,1] }], Constants: [], Outputs: [ { Name: b, Dimensions: [2,16,8,8], Strides: [1,1,1,1] }], "
        "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: n1.Conv_1][ONNX Layer: n1.Relu_2]"
    )
    (layer,) = layers_of_inspector(json.dumps(document))
    assert layers_of_log(["Layers:", line, "", "Engine Metadata:"]) == [layer]
    assert (layer.input_shape, layer.output_shape) == ((3, 8, 8), (16, 8, 8))
    assert owner(layer) == "n1.Conv_1"
    for bad in ("", "[]", '{"Layers": ["only a name"]}'):
        with pytest.raises(ValueError):
            layers_of_inspector(bad)
