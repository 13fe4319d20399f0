"""Deployable ONNX files of trained modules, and how close they are to what was trained."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import HwnasError
from hwnas.ops import Shape

if TYPE_CHECKING:
    import onnx
    from torch import nn

OPSET = 20
"""Understood by every runtime here, and new enough for HardSwish and Gelu as single operators."""

_TINY = 1e-30
"""No number to speak of, but neither zero nor denormal."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the deployed net's outputs are from the trained one's.

    Attributes:
        max_abs_diff: the largest difference of any output.
        max_rel_diff: the same as a fraction of the largest output.
    """

    max_abs_diff: float
    max_rel_diff: float


def export_onnx(
    module: nn.Module,
    input_shape: Shape,
    path: Path,
    *,
    batch_size: int = 1,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes `module` in inference as an ONNX file with input "input" and output "output".

    BatchNorm is folded where torch.fx can trace the module, and by the exporter's own rules elsewhere. The batch is
    fixed. Quantised convolutions are written as fp32 arithmetic with the same results. The file is complete or absent:
    it is written beside its place and then moved there. The module is not changed. `metadata` is kept in the file, by
    key: see `preparation`.

    Raises:
        HwnasError: the exporter cannot export it, or the file cannot be written.
    """
    import onnx

    name = type(module).__name__
    try:
        model = _export(module, (batch_size, *input_shape))
    except Exception as error:  # the exporter runs the user's code and raises many types
        raise HwnasError(f"{name} cannot be exported to ONNX: {_line(error)}") from error
    if model.ByteSize() >= 2**31:
        raise HwnasError(f"{name} is larger than an ONNX file can be (2 GiB)")
    _pool_globally(model)
    onnx.helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model, full_check=True)
    write_whole(path, model.SerializeToString())


def preparation(mean: Sequence[float], std: Sequence[float], classes: Sequence[str]) -> dict[str, str]:
    """What an ONNX file says of its images and classes; values are JSON."""
    return {
        "hwnas.input": json.dumps("RGB of 0 to 255, as (image - mean) / std for each channel"),
        "hwnas.mean": json.dumps(list(mean)),
        "hwnas.std": json.dumps(list(std)),
        "hwnas.classes": json.dumps(list(classes)),
    }


def preparation_of(path: Path) -> dict[str, str]:
    """The same, read from a file; empty where it says nothing, or is not there."""
    import onnx

    if not path.is_file():
        return {}
    said = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    return {key: value for key, value in said.items() if key.startswith("hwnas.")}


def parity(module: nn.Module, onnx_path: Path, images: NDArray[np.float32], *, threads: int = 1) -> Parity:
    """Runs the module and the ONNX file (ONNX Runtime, CPU) on the same images and compares their outputs.

    Args:
        module: the trained net; it is left in the mode that it was in.
        onnx_path: the deployed net.
        images: float32 [images, channels, height, width]; as many as the file's batch, or a multiple.
        threads: of ONNX Runtime.

    Raises:
        HwnasError: the file does not load, or does not take such images.
    """
    import torch

    batch_size, deployed = _run_onnx(onnx_path, images, threads)
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    with torch.no_grad(), _in_eval(module):
        starts = range(0, len(images), batch_size)
        batches = [torch.from_numpy(images[start : start + batch_size]).to(device) for start in starts]
        trained = np.concatenate([module(batch).float().cpu().numpy() for batch in batches])
    if trained.shape != deployed.shape:
        raise HwnasError(f"{onnx_path} gives {deployed.shape}, the module {trained.shape}: they are not the same net")
    difference = float(np.abs(trained - deployed).max())
    if not math.isfinite(difference):
        return Parity(math.inf, math.inf)
    return Parity(difference, difference / max(float(np.abs(trained).max()), _TINY))


def _run_onnx(path: Path, images: NDArray[np.float32], threads: int) -> tuple[int, NDArray[np.float32]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0]
        batch_size = given.shape[0] if isinstance(given.shape[0], int) else len(images)
        if len(images) % batch_size:
            raise HwnasError(
                f"{path} takes batches of {batch_size}: compare it on a multiple of that, not {len(images)}"
            )
        batches = np.split(images, len(images) // batch_size)
        return batch_size, np.concatenate([session.run(None, {given.name: batch})[0] for batch in batches])
    except HwnasError:
        raise
    except Exception as error:  # ONNX Runtime has its own types, which its package does not export
        raise HwnasError(f"{path} does not run in ONNX Runtime: {_line(error)}") from error


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _export(module: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    import torch

    from hwnas.nn.deploy import deploy

    images = torch.zeros(shape)
    from hwnas.nn.quantise import emulate

    copied = deploy(copy.deepcopy(module).cpu().eval()).eval()
    emulate(copied)
    _keep_biases(copied)
    folded = _folded(copied)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            folded,
            (images,),
            dynamo=True,
            input_names=["input"],
            output_names=["output"],
            opset_version=OPSET,
            optimize=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # it is None only where torch.onnx.export writes the file itself
    return program.model_proto


def _keep_biases(module: nn.Module) -> None:
    """Sees to it that no bias is all zeros, as those of fresh nets are: the exporter would drop it.

    The file's operators would then not be the module's, nor those that tables are made of.
    """
    for name, tensor in module.named_parameters():
        if name.rpartition(".")[2] == "bias" and not tensor.any():
            tensor.data.view(-1)[0] = _TINY


def _folded(module: nn.Module) -> nn.Module:
    """The module with BatchNorm folded, which halves the exporter's time; the module itself if fx cannot trace it."""
    from torch.fx.experimental.optimization import fuse

    try:
        return fuse(module)
    except Exception:  # tracing runs the user's code; the exporter has its own way to trace
        return module


def _pool_globally(model: onnx.ModelProto) -> None:
    """Turns the mean over height and width, as the exporter spells it, into the pooling that runtimes are fast at."""
    import onnx

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants.update({node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"})
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*inferred.input, *inferred.value_info)}
    nodes = []
    for node in graph.node:
        axes = constants.get(node.input[1]) if node.op_type == "ReduceMean" and len(node.input) == 2 else None
        keep = all(attribute.i for attribute in node.attribute if attribute.name == "keepdims")
        if axes is None or ranks.get(node.input[0]) != 4 or not _is_image(onnx.numpy_helper.to_array(axes)):
            nodes.append(node)
            continue
        pooled = node.output[0] if keep else f"{node.output[0]}_pooled"
        nodes.append(onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name))
        if not keep:
            nodes.append(onnx.helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}_flat", axis=1))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # del invalidates what it deletes
    del graph.node[:]
    graph.node.extend(kept)
    read = {name for node in kept for name in node.input}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]


def _is_image(axes: NDArray[np.int64]) -> bool:
    """Whether the axes of a batch of images are height and width."""
    return sorted(axis % 4 for axis in axes.tolist()) == [2, 3]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter from printing, logging and warning."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@contextlib.contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def write_whole(path: Path, data: bytes) -> None:
    """Writes the file whole or not at all; its folders are made.

    Raises:
        HwnasError: it cannot be written.
    """
    try:
        _write(path, data)
    except OSError as error:
        raise HwnasError(f"{path} cannot be written: {error.strerror or error}") from None


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp gives 0600
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
