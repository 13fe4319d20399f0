"""From an ONNX model to a TensorRT engine: parsed, strongly typed, built for the GPU here or for another one.

Precision is what the ONNX file says (`hwnas.measure.precision` makes float16 and quantised files): TensorRT 11 has no
other way, and 10 has this one too. An engine for a GPU that is not here can only be built by ``tensorrt_rtx``, which
compiles for a compute capability; its kernels are finished on the device, when the engine is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hwnas.measure.runtimes.tensorrt_layers import Layer, layers_of_inspector, layers_of_log
from hwnas.measure.runtimes.tensorrt_library import in_use, trt
from hwnas.measure.runtimes.tensorrt_log import listen, logger

MIB = 2**20


class BuildError(ValueError):
    """TensorRT cannot parse or build the model; the message is one line and names the node where there is one."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How engines are built.

    Attributes:
        workspace_mib: memory that a kernel may use beside its tensors.
        optimisation_level: 0 (fast to build) to 5 (tries most kernels).
        tf32: whether float32 convolutions may round their inputs to 10 bits of mantissa, as TensorRT does by default.
        compute_capabilities: as in ``SM89``; one engine then serves all of these GPUs, and is not built where one of
            them is refused. Empty for the GPU of this machine.
    """

    workspace_mib: int = 2048
    optimisation_level: int = 3
    tf32: bool = False
    compute_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Built:
    """A serialised engine.

    Attributes:
        engine: its bytes.
        layers: what it runs, as the builder said; empty where it did not say.
        timing_cache: of the builder afterwards; empty where the library keeps none.
    """

    engine: bytes
    layers: tuple[Layer, ...]
    timing_cache: bytes = b""


def engine_key(model: bytes, options: BuildOptions, version: str, device: str) -> str:
    """What an engine is cached by: the model's content, the options, the library's version, and the GPU."""
    parts = [in_use(), version, device, repr(sorted(asdict(options).items()))]
    digest = hashlib.sha256("\0".join(parts).encode())
    digest.update(model)
    return digest.hexdigest()[:32]


def build_engine(model: bytes, options: BuildOptions, timing_cache: bytes = b"") -> Built:
    """Parses and builds; `use` has chosen the library.

    Args:
        model: a serialised ONNX model.
        options: of the builder.
        timing_cache: of earlier builds; one of another library or GPU is ignored.

    Raises:
        BuildError: the model cannot be parsed, an operator is not supported, or nothing can be built.
    """
    said = listen()
    builder = trt.Builder(logger())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger())
    if not parser.parse(model):
        raise BuildError(_parser_error(parser))
    if not network.num_outputs:
        raise BuildError("the model has no output")
    config = _config(builder, network, options)
    cache = _with_timing_cache(config, timing_cache)
    engine: Any = builder.build_serialized_network(network, config)  # a buffer, which the stubs do not know
    if engine is None:
        raise BuildError(f"TensorRT cannot build it: {said.reason}")
    learned: Any = cache.serialize() if cache is not None else None
    return Built(bytes(engine), tuple(layers_of_log(said.layers)), b"" if learned is None else bytes(learned))


def layers_of_engine(engine: bytes) -> int:
    """How many layers an engine has, as its inspector says once it is loaded; 0 where that says nothing of them.

    Raises:
        BuildError: it does not load here; what is not an engine of this library is told before what the GPU is asked.
    """
    said = listen()
    runtime = trt.Runtime(logger())
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise BuildError(f"the engine does not load: {said.reason}")
    text = loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        return len(layers_of_inspector(str(text)))
    except ValueError:
        return 0


def _config(builder: trt.Builder, network: trt.INetworkDefinition, options: BuildOptions) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB)
    config.builder_optimization_level = options.optimisation_level
    # else nothing says which ONNX nodes a layer was made from
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    _set_capabilities(config, options.compute_capabilities)
    _fix_shapes(builder, network, config)
    return config


def capabilities() -> tuple[str, ...]:
    """What engines can be built for without such a GPU, as in ``SM89``; empty where the library cannot."""
    known = getattr(trt, "ComputeCapability", None)
    return tuple(name for name in known.__members__ if name.startswith("SM")) if known is not None else ()


def _set_capabilities(config: trt.IBuilderConfig, names: Sequence[str]) -> None:
    """Raises:
    BuildError: the library does not build for one of them.
    """
    known = capabilities() if names else ()
    if unknown := [name for name in names if name not in known]:
        can = f"one of {', '.join(known)}" if known else "only for the GPU that is here; install tensorrt-rtx"
        raise BuildError(f"{in_use()} cannot build for {unknown[0]}: {can}")
    if names:
        config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
            raise BuildError(f"{in_use()} refuses to build for {' and '.join(names)}")


def _fix_shapes(builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> None:
    """Dynamic dimensions (a batch left open) are run as 1."""
    profile = builder.create_optimization_profile()
    dynamic = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(map(int, _sizes(tensor.shape)))
        if -1 in shape:
            dynamic = True
            fixed: Any = tuple(1 if size < 0 else size for size in shape)
            profile.set_shape(tensor.name, fixed, fixed, fixed)
    if dynamic:
        config.add_optimization_profile(profile)


def _with_timing_cache(config: trt.IBuilderConfig, known: bytes) -> trt.ITimingCache | None:
    if in_use() == "tensorrt_rtx":  # it times nothing when it builds, and warns
        return None
    for data in dict.fromkeys((known, b"")):  # what another version or GPU learned is refused
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _parser_error(parser: trt.OnnxParser) -> str:
    """The parser's first complaint as one line, with the node that it is about."""
    if not parser.num_errors:
        return "the model cannot be parsed"
    error = parser.get_error(0)
    what = " ".join(str(error.desc()).split())[:300]
    operator, name = error.node_operator(), error.node_name()
    where = " ".join(part for part in (operator, f"{name!r}" if name else "") if part)
    return f"TensorRT cannot parse {where}: {what}" if where else f"TensorRT cannot parse the model: {what}"


def _sizes(dims: Any) -> Any:
    """A `Dims`, which can be iterated over: the stubs do not say so."""
    return dims
