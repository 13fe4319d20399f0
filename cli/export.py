"""`hwnas export`: a network as a file that can be deployed without hwnas."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.errors import ClaimError, HwnasError, UsageError

from .options import Command, common, file_path, option
from .terminal import Terminal

if TYPE_CHECKING:
    from torch import nn

    from hwnas.models import LoadedModel

FORMATS = {".onnx": "onnx", ".pt2": "torch"}
"""Suffix of the file -> format, where none is named."""


@click.command("export", cls=Command)
@click.argument("model", metavar="MODEL")
@option("--out", type=file_path, required=True, metavar="FILE", help="The file to write.")
@option("--format", "format", type=click.Choice(list(FORMATS.values())), help="[default: by FILE's suffix, else onnx]")
@option("--batch", type=click.IntRange(1), default=1, metavar="N", help="Images in one run  [default: 1]")
@common
@click.pass_obj
def command(terminal: Terminal, model: str, out: Path, format: str | None, batch: int) -> None:  # noqa: A002
    """Write a network as a deployable file: onnx (any runtime) or torch (torch.export's .pt2).

    MODEL is a run with one net, RUN/nets/NAME, zoo:NAME or torchvision:NAME. Those of the zoo and of torchvision get
    random weights: they are for measuring. The file is run on the same images as the module, and has to agree.

    \b
    Example:
      hwnas export runs/quickstart/nets/latency-60pct --out net.onnx
      hwnas export zoo:proxyless-r-mobile --out net.pt2
    """
    from hwnas.models import load_model
    from hwnas.network import NO_LOW_BITS
    from hwnas.verify import TOLERANCE

    loaded = load_model(model)
    module = loaded.module()
    if module is None:
        what = "a whole space" if loaded.supernet else "an ONNX file already"
        raise UsageError(f"{model} is {what}: name a run's net, zoo:NAME or torchvision:NAME")
    chosen = format or FORMATS.get(out.suffix.lower(), "onnx")
    document = _onnx(loaded, module, out, batch) if chosen == "onnx" else _torch(loaded, module, out, batch)
    document = {"model": model, "out": out, "format": chosen, "size_bytes": out.stat().st_size, **document}
    if terminal.json:
        terminal.document(document)
    else:
        size = f"{out.stat().st_size / 2**20:.1f} MiB"
        difference = f"differs from the module by at most {document['max_rel_diff']:.1g} of the largest output"
        terminal.table(f"{out}: {chosen}, {size}, batch {batch}, {difference}")
    quantised = loaded.network.quantised
    if quantised:
        terminal.note(f"{out} computes in fp32 what few bits would: the same outputs, not their speed; {NO_LOW_BITS}")
    _judge(out, document["max_rel_diff"], ROUNDED if quantised else TOLERANCE)


ROUNDED = 0.1
"""The same for quantised nets: of an activation between two levels, rounding errors decide which one it gets."""


def _judge(out: Path, difference: float, tolerance: float) -> None:
    """Raises:
    ClaimError: the file is another network than the module.
    """
    if not difference <= tolerance:  # a difference that is no number fails too
        raise ClaimError(
            f"{out} differs from the module by {difference:.1g} of the largest output, more than {tolerance:g}: "
            "do not deploy it; try the other --format"
        )


def _onnx(loaded: LoadedModel, module: nn.Module, out: Path, batch: int) -> dict[str, Any]:
    import numpy as np

    from hwnas.export import export_onnx, parity

    shape = loaded.network.input_shape
    export_onnx(module, shape, out, batch_size=batch)
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
