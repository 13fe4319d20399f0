"""`hwnas export`: a network as a file that can be deployed without hwnas."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.errors import ClaimError, HwnasError, UsageError

from .options import Command, common, file_path, option
from .terminal import Terminal

if TYPE_CHECKING:
    from torch import nn

    from hwnas.devices import DeviceProfile
    from hwnas.models import LoadedModel

FORMATS = {".onnx": "onnx", ".pt2": "torch", ".engine": "engine"}
"""Suffix of the file -> format, where none is named."""


@click.command("export", cls=Command)
@click.argument("model", metavar="MODEL")
@option("--out", type=file_path, required=True, metavar="FILE", help="The file to write.")
@option("--format", "format", type=click.Choice(list(FORMATS.values())), help="[default: by FILE's suffix, else onnx]")
@option("--batch", type=click.IntRange(1), metavar="N", help="Images in one run  [default: 1; engine: the profile's]")
@option("--device", metavar="DEVICE", help="engine: profile whose TensorRT and options build it  [default: rtx]")
@option("--precision", metavar="NAME", help="engine: fp32, fp16 or int8  [default: the profile's]")
@option("--capability", metavar="SMxx", help="engine: GPUs it is for, as SM86  [default: the GPU here, else SM89]")
@common
@click.pass_obj
def command(
    terminal: Terminal,
    /,
    model: str,
    out: Path,
    format: str | None,  # noqa: A002
    batch: int | None,
    **engine: str | None,
) -> None:
    """Write a network as a deployable file: onnx (any runtime), torch (torch.export's .pt2) or engine (TensorRT).

    MODEL is a run with one net, RUN/nets/NAME, zoo:NAME or torchvision:NAME; for an engine an ONNX file too. Those of
    the zoo and of torchvision get random weights: they are for measuring. The file is run on the same images as the
    module, and has to agree; of an engine, the ONNX model that it is built from.

    An engine needs the TensorRT that built it, in the same version. tensorrt_rtx builds it without a GPU.

    \b
    Example:
      hwnas export runs/quickstart/nets/latency-60pct --out net.onnx
      hwnas export zoo:proxyless-r-mobile --out net.pt2
      hwnas export zoo:mobilenet-v2 --format engine --precision fp16 --capability SM86 --out m.engine
    """
    from hwnas.models import load_model
    from hwnas.network import NO_LOW_BITS

    loaded = load_model(model)
    chosen = format or FORMATS.get(out.suffix.lower(), "onnx")
    if chosen == "engine":
        if loaded.supernet:
            raise UsageError(f"{model} is a whole space: name a run's net, zoo:NAME or torchvision:NAME")
        document = _engine(terminal, loaded, out, batch, engine)
    else:
        for name, value in engine.items():
            if value is not None:
                raise UsageError(f"--{name} is for --format engine, not {chosen}")
        document = _file(loaded, model, out, batch or 1, chosen)
    document = {"model": model, "out": out, "format": chosen, "size_bytes": out.stat().st_size, **document}
    if terminal.json:
        terminal.document(document)
    else:
        terminal.table(_said(document))
    if loaded.network.quantised:
        computes = f"{out} computes in {document.get('precision', 'fp32')}"
        terminal.note(f"{computes} what few bits would: the same outputs, not their speed; {NO_LOW_BITS}")
    if document["max_rel_diff"] is not None:
        _judge(out, document["max_rel_diff"], loaded)


def _said(document: dict[str, Any]) -> str:
    """The line for people."""
    size = f"{document['size_bytes'] / 2**20:.1f} MiB"
    line = f"{document['out']}: {document['format']}, {size}, batch {document['batch_size']}"
    difference = document["max_rel_diff"]
    if document["format"] == "engine":
        layers = "layers unknown" if document["layers"] is None else f"{document['layers']} layers"
        where = document["capability"] or "the GPU here"
        line += f", {document['precision']}, {layers}, for {where} by {document['library']} {document['version']}"
        line += f"; not loaded here: {document['not_loaded']}" if document["not_loaded"] else "; loads here"
        if difference is not None:
            line += f"; the ONNX model that it is built from differs from the module by at most {difference:.1g}"
            line += " of the largest output"
        return line
    return f"{line}, differs from the module by at most {difference:.1g} of the largest output"


def _file(loaded: LoadedModel, model: str, out: Path, batch: int, chosen: str) -> dict[str, Any]:
    module = loaded.module()
    if module is None:
        what = "a whole space" if loaded.supernet else "an ONNX file already"
        raise UsageError(f"{model} is {what}: name a run's net, zoo:NAME or torchvision:NAME")
    return (_onnx if chosen == "onnx" else _torch)(loaded, module, out, batch)


def _engine(
    terminal: Terminal, loaded: LoadedModel, out: Path, batch: int | None, given: dict[str, str | None]
) -> dict[str, Any]:
    """Builds the engine, of an ONNX model that has been compared with the module where there is one."""
    from hwnas.export_engine import check_engine, export_engine, with_batch

    profile, capability = _target(terminal, **given)
    check_engine(profile, capability)  # before what takes long
    if batch is None and not _is_file(loaded):
        batch = profile.batch_size
        terminal.default("--batch", batch, f"profile {profile.name}")
    difference: dict[str, Any] = {"max_abs_diff": None, "max_rel_diff": None}
    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder:
        if _is_file(loaded):
            assert loaded.onnx_path is not None
            path = loaded.onnx_path
            if with_batch(path, batch)[1] is None:
                batch = profile.batch_size
                terminal.default("--batch", batch, f"profile {profile.name}; {path} leaves it open")
        else:
            module = loaded.module()
            assert module is not None
            path = Path(folder) / "model.onnx"
            difference = _onnx(loaded, module, path, batch or 1)
            _judge(path, difference["max_rel_diff"], loaded)
        model, size, shape = with_batch(path, batch)
    engine = export_engine(model, out, profile, capability)
    if engine.random_scales:
        terminal.note(
            "int8: the scales come from random images, good to time it; to deploy, give a quantised ONNX file"
        )
    return {**difference, "batch_size": size, "input_shape": shape, "precision": profile.precision, **asdict(engine)}


def _is_file(loaded: LoadedModel) -> bool:
    """Whether it is an ONNX file: a run's net is exported from its weights instead, for the batch that is wanted."""
    return loaded.build is None


def _target(
    terminal: Terminal, device: str | None, precision: str | None, capability: str | None
) -> tuple[DeviceProfile, str]:
    """What builds the engine, and for which GPUs; what was not given is said."""
    from hwnas.devices import find_profile
    from hwnas.export_engine import default_capability

    if device is None:
        device = "rtx"
        terminal.default("--device", device)
    profile = find_profile(device).override(precision=precision)
    if precision is None:
        terminal.default("--precision", profile.precision, f"profile {profile.name}")
    if capability is None:
        capability = default_capability(profile)
        why = "no GPU here" if capability else "the GPU here"
        terminal.default("--capability", capability or "of this machine", why)
    return profile, capability.upper()


ROUNDED = 0.1
"""As `hwnas.verify.TOLERANCE`, of quantised nets: where an activation is between two levels, rounding errors decide
which one it gets."""


def _judge(out: Path, difference: float, loaded: LoadedModel) -> None:
    """Raises:
    ClaimError: the file is another network than the module.
    """
    from hwnas.verify import TOLERANCE

    tolerance = ROUNDED if loaded.network.quantised else TOLERANCE
    if not difference <= tolerance:  # a difference that is no number fails too
        raise ClaimError(
            f"{out} differs from the module by {difference:.1g} of the largest output, more than {tolerance:g}: "
            "do not deploy it; try the other --format"
        )


def _onnx(loaded: LoadedModel, module: nn.Module, out: Path, batch: int) -> dict[str, Any]:
    import numpy as np

    from hwnas.export import export_onnx, parity, preparation_of

    shape = loaded.network.input_shape
    said = preparation_of(loaded.folder / "model.onnx") if loaded.folder is not None else {}
    export_onnx(module, shape, out, batch_size=batch, metadata=said)
    images = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
    same = parity(module, out, images)
    return {"batch_size": batch, "input_shape": shape, **asdict(same)}


def _torch(loaded: LoadedModel, module: nn.Module, out: Path, batch: int) -> dict[str, Any]:
    import os

    import torch

    shape = loaded.network.input_shape
    images = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            program = torch.export.export(module.eval(), (images,))
            expected = module(images)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0][:200]
        raise HwnasError(f"{loaded.name} cannot be exported by torch.export: {first}") from None
    draft = out.with_name(f".{out.name}.{os.getpid()}.pt2")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.export.save(program, draft)
        with torch.no_grad():
            deployed = torch.export.load(draft).module()(images)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    difference = float((deployed - expected).abs().max())
    relative = difference / max(float(expected.abs().max()), 1e-30)
    return {"batch_size": batch, "input_shape": shape, "max_abs_diff": difference, "max_rel_diff": relative}
