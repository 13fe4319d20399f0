"""Engines built for GPUs that are not here, by the real `tensorrt_rtx`, and what their layers say."""

from __future__ import annotations

import ast
import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from quick import tiny_network

from hwnas.errors import HwnasError
from hwnas.latency.kernels import assign
from hwnas.latency.lowering import AsWritten
from hwnas.latency.terms import LAYERS, TERMS
from hwnas.measure.onnx_models import network_to_onnx, op_to_onnx
from hwnas.measure.precision import CONVERSIONS, to_float16, to_int8
from hwnas.measure.runtimes import INSTALL, engine_cache, tensorrt_library
from hwnas.measure.runtimes.base import WHOLE
from hwnas.measure.runtimes.cuda import driver_is_here
from hwnas.measure.runtimes.tensorrt import cache_of
from hwnas.measure.runtimes.tensorrt_build import (
    BuildError,
    BuildOptions,
    build_engine,
    capabilities,
    engine_key,
    layers_of_engine,
)
from hwnas.measure.runtimes.tensorrt_layers import ABSORBED, NOBODYS, REFORMAT, kernel_times
from hwnas.measure.runtimes.tensorrt_library import in_use, trt, use
from hwnas.measure.runtimes.tensorrt_log import last_complaint, listen, logger
from hwnas.network import Network
from hwnas.ops import Op
from hwnas.spaces import get_space

SM89 = BuildOptions(compute_capabilities=("SM89",))


@pytest.fixture(autouse=True)
def library() -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip(f"tensorrt_rtx is not installed here: {INSTALL['tensorrt_rtx']}")
    use("tensorrt_rtx")


def sampled(name: str, seed: int = 0) -> Network:
    space = get_space(name)
    return space.network(space.sample(np.random.default_rng(seed)))


def graph(*nodes: onnx.NodeProto) -> bytes:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 3]) for name in "xz"]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return bytes(
        helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    )


def test_it_is_told_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert use("tensorrt_rtx") == trt.__version__
    assert in_use() == "tensorrt_rtx"
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt/__init__.py").write_text("")  # what PyPI's tensorrt-stubs leaves behind
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match="is no TensorRT"):
        use("tensorrt")
    with pytest.raises(ValueError, match="one of tensorrt, tensorrt_rtx"):
        use("torch")
    assert in_use() == "tensorrt_rtx"


def test_everything_that_is_asked_of_tensorrt_is_there() -> None:
    """Also what only a GPU would reach; types and signatures are mypy's affair."""
    asked = set()
    for path in Path(tensorrt_library.__file__).parent.glob("tensorrt*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            while isinstance(node, ast.Attribute):
                names.insert(0, node.attr)
                node = node.value
            if names and isinstance(node, ast.Name) and node.id == "trt":
                asked.add(tuple(names))
    assert ("IProfiler",) in asked
    assert ("ILogger", "Severity", "ERROR") in asked
    for names in asked:
        found = trt
        for name in names:
            assert hasattr(found, name), f"tensorrt_rtx has no {'.'.join(names)}"
            found = getattr(found, name)


@pytest.mark.parametrize("precision", CONVERSIONS)
@pytest.mark.parametrize("capability", ["SM86", "SM89"])
def test_every_precision_is_built(precision: str, capability: str) -> None:
    model = CONVERSIONS[precision](network_to_onnx(tiny_network(), batch_size=2))
    built = build_engine(model, BuildOptions(compute_capabilities=(capability,)))
    assert len(built.engine) > 1000
    assert built.layers
    assert {operator for layer in built.layers for operator in layer.operators} >= {"n0"}


@pytest.mark.parametrize("name", ["proxyless-tiny", "fbnet-tiny", "spos-shufflenet-tiny"])
def test_every_operator_of_a_network_is_in_a_layer(name: str) -> None:
    network = sampled(name)
    layers = build_engine(network_to_onnx(network), SM89).layers
    told = {operator for layer in layers for operator in layer.operators}
    assert told == {f"n{index}" for index in range(len(network.nodes))}


def test_layers_become_times_of_operators_and_terms_of_their_own() -> None:
    network = sampled("spos-shufflenet-tiny")
    layers = build_engine(network_to_onnx(network), SM89).layers
    samples = {layer.name: [1.0, 2.0] for layer in layers}
    times = kernel_times(layers, samples, [3.0 * len(layers)] * 2)
    timed = assign(AsWritten().steps(network), times)
    assert not timed.unexpected
    assert set(timed.samples_ms) == {op.key for op in AsWritten()(network)}
    assert {time.kind for time in times} >= {ABSORBED, REFORMAT, WHOLE}
    # the profiler's cost is taken off once for each layer that was timed, and not for what runs in another one's
    names = [time.node.split(".")[0] for time in times if time.kind not in (ABSORBED, WHOLE, *NOBODYS)]
    counts = {op.key: 0.0 for op in AsWritten()(network)}
    for index, op in enumerate(network.ops):
        counts[op.deployed().key] += names.count(f"n{index}")
    occurrences = Counter(op.deployed().key for op in network.ops)
    terms = {key: timed.launches.pop(key) for key in timed.terms_ms}
    assert timed.launches == {key: count / occurrences[key] for key, count in counts.items()}
    assert 0.0 in timed.launches.values()
    assert {WHOLE, LAYERS} < set(timed.terms_ms) <= set(TERMS)
    assert (terms[WHOLE], terms[LAYERS]) == (1, len(layers))
    assert terms[REFORMAT] == sum(time.kind == REFORMAT for time in times)
    # nothing is lost: every layer is in the sum, and the whole run is beside it
    assert timed.terms_ms[LAYERS].tolist() == [len(layers), 2 * len(layers)]
    assert timed.terms_ms[WHOLE].tolist() == [3 * len(layers)] * 2
    assert float(np.sum([time.samples_ms for time in times if time.kind == ABSORBED])) == 0


def test_a_batch_left_open_is_one_image() -> None:
    model = onnx.load_from_string(network_to_onnx(tiny_network()))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    assert build_engine(model.SerializeToString(), SM89).engine


def test_errors_are_one_line_that_names_the_node() -> None:
    with pytest.raises(BuildError, match="NoSuch 'foo'") as caught:
        build_engine(graph(helper.make_node("NoSuch", ["x"], ["z"], name="foo")), SM89)
    assert "\n" not in str(caught.value)
    for model in (b"", b"garbage"):
        with pytest.raises(BuildError):
            build_engine(model, SM89)
    with pytest.raises(BuildError, match="cannot build for SM1: one of SM"):
        build_engine(network_to_onnx(tiny_network()), BuildOptions(compute_capabilities=("SM1",)))
    assert {"SM86", "SM89"} <= set(capabilities())


def test_engines_are_read_as_far_as_the_library_goes() -> None:
    engine = build_engine(network_to_onnx(tiny_network()), SM89).engine
    if driver_is_here():
        pytest.skip("a driver is here: what the GPU says of it is tested by 'pytest -m gpu'")
    with pytest.raises(BuildError, match=r"does not load: .*cudaError 35"):  # all of it was read
        layers_of_engine(engine)
    for damaged, why in ((engine[: len(engine) // 2], "blobSize"), (bytes(2000), "magicTag"), (b"", "empty")):
        with pytest.raises(BuildError, match=why) as caught:
            layers_of_engine(damaged)
        assert "\n" not in str(caught.value)


def test_what_is_said_is_heard_whatever_else_lives() -> None:
    """TensorRT writes to the first logger that it was given as long as anything of it lives."""
    runtime, said = trt.Runtime(logger()), listen()
    assert runtime.deserialize_cuda_engine(b"none") is None
    assert said.reason != "it does not say why"
    before = said.reason
    built = build_engine(network_to_onnx(tiny_network()), SM89)
    assert built.layers
    with pytest.raises(BuildError, match="FP32 GEMM is not supported"):
        build_engine(op_to_onnx(Op.linear(64, 10)), BuildOptions(compute_capabilities=("SM75",)))
    assert "FP32 GEMM" in last_complaint()
    assert said.reason == before  # who listened before hears no more
    assert logger() is logger()
    del runtime


def test_one_engine_serves_several_gpus_or_none() -> None:
    model = op_to_onnx(Op.linear(64, 10))
    both = build_engine(model, BuildOptions(compute_capabilities=("SM86", "SM89"))).engine
    assert len(both) > len(build_engine(model, SM89).engine)
    with pytest.raises(BuildError, match="SM75"):
        build_engine(model, BuildOptions(compute_capabilities=("SM89", "SM75")))


def test_engines_are_known_by_everything_that_changes_them() -> None:
    model = network_to_onnx(tiny_network())
    keys = {
        engine_key(model, SM89, "1", "SM89"),
        engine_key(model + b" ", SM89, "1", "SM89"),
        engine_key(model, BuildOptions(), "1", "SM89"),
        engine_key(model, SM89, "2", "SM89"),
        engine_key(model, SM89, "1", "SM86"),
    }
    assert len(keys) == 5
    assert engine_key(model, SM89, "1", "SM89") in keys


def test_the_cache_keeps_what_was_used_last(tmp_path: Path) -> None:
    import os

    cache = engine_cache.EngineCache(tmp_path / "cache", most_bytes=25)
    assert cache.engine("a") is None
    for age, key in enumerate("abc"):
        cache.keep(key, key.encode() * 10, b"timing")
        os.utime(tmp_path / f"cache/{key}.engine", (age, age))
    cache.keep("d", b"d" * 10)
    assert [cache.engine(key) is not None for key in "abcd"] == [False, False, True, True]
    assert cache.timing_cache() == b"timing"
    nothing = engine_cache.EngineCache(None)
    nothing.keep("a", b"a", b"t")
    assert (nothing.engine("a"), nothing.timing_cache()) == (None, b"")


def test_engines_of_those_who_measure_from_elsewhere_stay_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert engine_cache.folder_of_host("cuda-fp16") == tmp_path / "home/.cache/hwnas/cuda-fp16.engines"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = engine_cache.folder_of_host("../../rtx")  # nobody names a folder of this machine from elsewhere
    assert folder == tmp_path / "cache/hwnas/rtx.engines"
    cache = engine_cache.EngineCache(folder)
    cache.keep("key", b"engine", b"timing")
    assert (engine_cache.EngineCache(folder).engine("key"), cache.timing_cache()) == (b"engine", b"timing")
    assert cache_of({"cache_name": "rtx"}) == folder
    assert cache_of({"cache": "/here"}) == Path("/here")
    assert cache_of({}) is None


@pytest.mark.parametrize(("convert", "close"), [(to_float16, 0.02), (to_int8, 0.2)])
def test_conversions_compute_about_the_same(convert: object, close: float) -> None:
    model = network_to_onnx(sampled("proxyless-tiny"))
    assert callable(convert)
    changed = convert(model)
    onnx.checker.check_model(onnx.load_from_string(changed), full_check=True)
    outputs = []
    for proto in (model, changed):
        session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
        value = session.get_inputs()[0]
        image = np.random.default_rng(1).standard_normal(value.shape)
        kind = np.float16 if "float16" in value.type else np.float32
        outputs.append(np.asarray(session.run(None, {value.name: image.astype(kind)})[0], np.float32))
    assert np.abs(outputs[0] - outputs[1]).max() < close * np.abs(outputs[0]).max()


def test_conversions_refuse_what_they_cannot_do() -> None:
    model = onnx.load_from_string(network_to_onnx(tiny_network()))
    quantised = to_int8(model.SerializeToString())
    assert to_int8(quantised) == quantised
    with pytest.raises(HwnasError, match="is quantised"):
        to_float16(quantised)
    weight = model.graph.initializer[0]
    weight.raw_data = np.full(list(weight.dims), 1e6, np.float32).tobytes()
    with pytest.raises(HwnasError, match="beyond what float16 holds"):
        to_float16(model.SerializeToString())
    with pytest.raises(HwnasError, match="not an ONNX model"):
        to_int8(b"garbage")
