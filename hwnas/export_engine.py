"""TensorRT engines of networks, as files: for the GPU of this machine or, by tensorrt_rtx, for another one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hwnas.devices import ENGINE_RUNTIMES, DeviceProfile
from hwnas.errors import HwnasError, RuntimeMissing, UsageError
from hwnas.export import write_whole

ELSEWHERE = "SM89"
"""What engines are built for where no GPU is here: Ada, the newest that every TensorRT served here builds for."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine file that was written.

    Attributes:
        library: that built it, and alone can load it, in the same version.
        version: of the library.
        capability: of the GPUs that it is for, as in ``SM89``; empty for the GPU of this machine.
        layers: how many it runs, as the engine inspector says of the loaded engine, else as the builder's log says;
            None where neither did.
        not_loaded: why it was not loaded here to see that it can be, as where no driver is; empty where it was.
        size_bytes: of the file.
        random_scales: it was brought to int8 here, with scales from random images: for timing, not to be deployed.
    """

    library: str
    version: str
    capability: str
    layers: int | None
    size_bytes: int
    random_scales: bool
    not_loaded: str


def check_engine(profile: DeviceProfile, capability: str) -> str:
    """Chooses the library of `profile` for this process; returns its version.

    Raises:
        UsageError: the profile's runtime builds no engines, or none for such a GPU.
        RuntimeMissing: TensorRT is not installed, or needs a GPU that is not here.
    """
    from hwnas.measure.runtimes import INSTALL
    from hwnas.measure.runtimes.cuda import NO_DRIVER, driver_is_here
    from hwnas.measure.runtimes.tensorrt_build import capabilities
    from hwnas.measure.runtimes.tensorrt_library import use

    library = profile.runtime
    if library not in ENGINE_RUNTIMES:
        raise UsageError(f"{profile.name} is deployed by {library}, which has no engines: give --device rtx or cuda")
    if profile.retired:
        raise RuntimeMissing(profile.retired)
    try:
        version = use(library)
    except ImportError as error:
        raise RuntimeMissing(f"{library} cannot be imported here ({error})", INSTALL[library]) from None
    known = capabilities() if library == "tensorrt_rtx" else ()
    if capability and capability not in known:
        can = f"one of {', '.join(known)}" if known else "only for the GPU of this machine; --device rtx builds for any"
        raise UsageError(f"{library} cannot build for {capability}: {can}")
    if not capability and not driver_is_here():
        raise RuntimeMissing(f"{library} builds for the GPU of this machine, and there is {NO_DRIVER}; "
                             "--device rtx with --capability builds for another one")  # fmt: skip
    return version


def default_capability(profile: DeviceProfile) -> str:
    """The GPU of this machine (empty) where there is one or nothing else can be built for, else `ELSEWHERE`."""
    from hwnas.measure.runtimes.cuda import driver_is_here

    return "" if profile.runtime != "tensorrt_rtx" or driver_is_here() else ELSEWHERE


def export_engine(model: bytes, path: Path, profile: DeviceProfile, capability: str) -> Engine:
    """Builds an ONNX model in the profile's precision, with its builder options, and writes the engine.

    The file is complete or absent.

    Args:
        model: a serialised ONNX model with a fixed batch (`with_batch`); what is quantised stays as it is.
        path: of the engine.
        profile: of a TensorRT runtime.
        capability: of the GPU that it is for, as in ``SM89``; empty for that of this machine.

    Raises:
        UsageError, RuntimeMissing: as `check_engine`.
        HwnasError: it cannot be brought to the precision, parsed, built or written; one line, which names the node.
    """
    from hwnas.measure.precision import CONVERSIONS
    from hwnas.measure.runtimes.tensorrt_build import BuildError, BuildOptions, build_engine

    version = check_engine(profile, capability)
    options = BuildOptions(**profile.builder.model_dump(), compute_capabilities=(capability,) if capability else ())
    converted = CONVERSIONS[profile.precision](model)
    try:
        built = build_engine(converted, options)
    except BuildError as error:
        raise HwnasError(str(error)) from None
    layers, not_loaded = _opened(built.engine, capability)
    write_whole(path, built.engine)
    random_scales = profile.precision == "int8" and converted != model
    count = layers or len(built.layers) or None
    return Engine(profile.runtime, version, capability, count, len(built.engine), random_scales, not_loaded)


def _opened(engine: bytes, capability: str) -> tuple[int, str]:
    """The layers of an engine that was just built, as its inspector says; 0 and why where it is not for this machine.

    Raises:
        HwnasError: the library cannot read what it built.
    """
    from hwnas.measure.runtimes.cuda import NO_DRIVER, driver_is_here
    from hwnas.measure.runtimes.tensorrt_build import BuildError, layers_of_engine

    try:
        return layers_of_engine(engine), ""
    except BuildError as error:
        if not driver_is_here() and "cudaError" in str(error):  # it was read, up to where the GPU is needed
            return 0, NO_DRIVER
        if capability and driver_is_here():
            return 0, str(error)
        raise HwnasError(f"the engine was built and cannot be read again: {error}") from None


def with_batch(path: Path, batch: int | None) -> tuple[bytes, int | None, tuple[int, ...]]:
    """An ONNX file with its first dimension fixed.

    Args:
        path: of the file.
        batch: images in one run; None where the file says it.

    Returns:
        The serialised model, its batch (None where it is open and `batch` is None), and the shape of one image.

    Raises:
        UsageError: the file's batch is another one.
        HwnasError: it cannot be read, is no ONNX model, or does not take one batch of images.
    """
    import onnx

    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's errors have no common type
        raise HwnasError(f"{path} is not an ONNX model that can be read ({type(error).__name__})") from None
    weights = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in weights]
    sizes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in given]
    if len(given) != 1 or len(sizes[0]) < 2 or not all(sizes[0][1:]):
        raise HwnasError(f"{path} must have one input [batch, …] whose other sizes are fixed: export it so")
    fixed = sizes[0][0]
    if fixed and batch not in (None, fixed):
        raise UsageError(f"{path} is for batches of {fixed}, not {batch}: leave --batch out, or export it anew")
    chosen = fixed or batch
    if chosen and not fixed:
        for value in (*given, *model.graph.output):
            dims = value.type.tensor_type.shape.dim
            if dims and not dims[0].dim_value:
                dims[0].dim_value = chosen
        del model.graph.value_info[:]  # it may name the open batch
    return bytes(model.SerializeToString()), chosen or None, tuple(sizes[0][1:])
