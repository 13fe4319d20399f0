"""What a MODEL on the command line stands for: a net of torchvision or the zoo, a space, an ONNX file, or a run."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import HwnasError, UsageError
from hwnas.network import Network, Node

if TYPE_CHECKING:
    from torch import nn

    from hwnas.spaces.chain import NetSpec

FORMS = "an ONNX file, a run folder, torchvision:NAME, zoo:NAME or space:NAME"
"""What can be typed for a MODEL."""

_MAX_JSON_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One net to be priced, measured, exported or verified.

    Attributes:
        name: what to call it: as typed, or the found net's name.
        network: its operators.
        onnx_path: its deployed file, where there is one.
        supernet: it is a whole space: MACs and parameters only, its operators are not wired and have no latency.
        folder: of a found net.
        notes: what else there is to say, by JSON key.
    """

    name: str
    network: Network
    onnx_path: Path | None = None
    supernet: bool = False
    folder: Path | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[[], nn.Module] | None = field(default=None, repr=False, compare=False)

    def module(self) -> nn.Module | None:
        """The net with its weights, built now; None where there is only an ONNX file, or a space.

        Raises:
            HwnasError: its weights are missing, damaged, or of another net.
        """
        return None if self.build is None else self.build()


def load_models(text: str) -> list[LoadedModel]:
    """The nets that `text` stands for: several for a run folder, else one.

    Raises:
        UsageError: there is no such name or path.
        HwnasError: what is there cannot be read.
    """
    prefix, colon, name = text.partition(":")
    if colon and prefix in _PREFIXES:
        return [_PREFIXES[prefix](name)]
    path = Path(text)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        from hwnas.trace import ops_of

        return [LoadedModel(path.name, ops_of(path), onnx_path=path)]
    raise UsageError(f"{text[:200]!r} is no model: {_meant(text)}{FORMS} was expected")


def load_model(text: str) -> LoadedModel:
    """The one net that `text` stands for.

    Raises:
        UsageError: there is no such name or path, or it is a run with several nets.
        HwnasError: what is there cannot be read.
    """
    models = load_models(text)
    if len(models) > 1:
        paths = ", ".join(str(model.folder) for model in models)
        raise UsageError(f"{text} has {len(models)} nets, name one of them: {paths}")
    return models[0]


def space_name(text: str) -> str:
    """The name of a space as `find_space` takes it, of what a user has typed: never of what is in a file.

    ``spos-channels@zoo:spos-319m`` and ``spos-channels@RUN``, the blocks of a net, become ``spos-channels@33x5…``, and
    ``FILE.py:NAME`` becomes ``FILE.py:NAME@DIGEST``.

    Raises:
        UsageError: there is no such net, or it has no choice blocks.
        HwnasError: what is there cannot be read.
    """
    from hwnas.spaces import own
    from hwnas.spaces.channels import blocks_of

    if own.is_own(text):
        return own.typed(text)
    base, at, source = text.partition("@")
    if not at or not (source.startswith("zoo:") or Path(source).is_dir()):
        return text
    try:
        return f"{base}@{blocks_of(_table_of(source), base)}"
    except UsageError as error:
        raise UsageError(f"{text[:80]!r} stands on no net of choice blocks: {error}") from None


def _table_of(source: str) -> NetSpec:
    """The table of layers of a net of the zoo, or of the one found net of a folder."""
    from hwnas.spaces import arch_from_json
    from hwnas.spaces.chain import ChainSpace
    from hwnas.zoo import zoo_net

    if source.startswith("zoo:"):
        return zoo_net(source.removeprefix("zoo:"))
    folder = load_model(source).folder
    assert folder is not None
    space, arch = arch_from_json(json.loads((folder / "arch.json").read_text(encoding="utf-8")))
    assert isinstance(space, ChainSpace)
    return space.net(arch)


def _meant(text: str) -> str:
    """A hint where the text is a known name without its prefix."""
    from hwnas.spaces import ATOM_SPACES, GATE_SPACES, SPACES
    from hwnas.spaces.own import is_own
    from hwnas.zoo import ZOO

    if is_own(text):
        return f"did you mean space:{text}? "
    for prefix, names in (
        ("zoo", ZOO),
        ("space", [*SPACES, *ATOM_SPACES, *GATE_SPACES]),
        ("torchvision", _torchvision_names()),
    ):
        if text in names:
            return f"did you mean {prefix}:{text}? "
    return ""


def _torchvision(name: str) -> LoadedModel:
    from hwnas.trace import ops_of

    names = _torchvision_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"names are as in torchvision.models, e.g. {names[0]}"
        raise UsageError(f"torchvision has no classification model {name[:80]!r}: {hint}")
    size = _torchvision_size(name)
    network = ops_of(_torchvision_module(name, meta=True), (3, size, size))
    return LoadedModel(f"torchvision:{name}", network, build=lambda: _torchvision_module(name))


def _torchvision_names() -> Sequence[str]:
    import torchvision  # type: ignore[import-untyped]

    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _torchvision_size(name: str) -> int:
    """Height and width that the published weights are meant for."""
    from torchvision.models import get_model_weights  # type: ignore[import-untyped]

    transforms: Any = next(iter(get_model_weights(name))).transforms
    size = getattr(transforms, "keywords", {}).get("crop_size", 224)
    return int(size)


_TORCHVISION_OPTIONS: dict[str, dict[str, bool]] = {
    # The auxiliary classifiers are for training only, and their absence keeps torchvision from warning.
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}


def _torchvision_module(name: str, *, meta: bool = False) -> nn.Module:
    """The model with random weights, always the same; with `meta` without data where torchvision can build it so."""
    from torchvision.models import get_model

    from hwnas.trace.torch_fx import skeleton

    options = _TORCHVISION_OPTIONS.get(name, {})

    def make() -> nn.Module:
        module: nn.Module = get_model(name, weights=None, **options)
        return module

    with _fixed_rng():
        module = skeleton(make) if meta else make()
    return module.eval()


@contextlib.contextmanager
def _fixed_rng() -> Iterator[None]:
    """Random weights that are the same each time, with the global generator left as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def _zoo(name: str) -> LoadedModel:
    from hwnas.zoo import zoo_module, zoo_network

    def build() -> nn.Module:
        with _fixed_rng():
            return zoo_module(name).eval()

    return LoadedModel(f"zoo:{name}", zoo_network(name), build=build)


def _space(name: str) -> LoadedModel:
    from hwnas.spaces import GateSpace, WidthSpace, find_space

    space = find_space(space_name(name))
    if isinstance(space, WidthSpace):
        arch = space.supernet_arch
        unit = "channels" if isinstance(space, GateSpace) else "atoms"
        sums = [sum(widths) for widths in arch.widths]
        notes = {"log10_architectures": space.log10_size, "atoms": sums, "unit": unit}
        return LoadedModel(f"space:{name}", space.network(arch), supernet=True, notes=notes)
    ops = space.supernet_ops()
    network = Network(space.input_shape, tuple(Node(op, ()) for op in ops), (len(ops) - 1, 0))
    return LoadedModel(f"space:{name}", network, supernet=True)


_PREFIXES: dict[str, Callable[[str], LoadedModel]] = {"torchvision": _torchvision, "zoo": _zoo, "space": _space}


def _folder(folder: Path) -> list[LoadedModel]:
    """Every found net of a run folder, or the one of a net's folder."""
    if (folder / "arch.json").is_file():
        return [_found(folder)]
    if (folder / "run.toml").is_file():
        nets = sorted(path.parent for path in folder.glob("nets/*/arch.json"))
        if not nets:
            raise HwnasError(f"{folder} has no found net yet: give the same hwnas search command again")
        return [_found(net) for net in nets]
    raise UsageError(f"{folder} is neither a run (run.toml) nor a found net (arch.json): {FORMS} was expected")


def _found(folder: Path) -> LoadedModel:
    path = folder / "arch.json"
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise HwnasError(f"{path} is too large for an architecture")
        network, plain = _described(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise HwnasError(f"{path} cannot be read: {_line(error)}") from None
    except HwnasError as error:
        raise HwnasError(f"{path}: {error}") from None

    def build() -> nn.Module:
        with _fixed_rng():
            return _with_weights(plain(), folder)

    onnx_path = folder / "model.onnx"
    return LoadedModel(
        folder.resolve().name,
        network,
        onnx_path=onnx_path if onnx_path.is_file() else None,
        folder=folder,
        build=build,
    )


def _described(data: Any) -> tuple[Network, Callable[[], nn.Module]]:
    """The operators of an architecture's document, and what builds its module."""
    from hwnas.spaces import arch_from_json, atoms_from_json

    if isinstance(data, dict) and "widths" in data:
        atoms, widths = atoms_from_json(data)
        return atoms.network(widths), lambda: atoms.build(widths)
    space, arch = arch_from_json(data)
    return space.network(arch), lambda: space.build(arch)


def _with_weights(module: nn.Module, folder: Path) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "weights.safetensors"
    if not path.is_file():
        raise HwnasError(f"{folder} has no weights.safetensors: give the same hwnas search command again")
    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise HwnasError(
            f"{path} is damaged ({_line(error)}): remove it and give the same hwnas search command again"
        ) from None
    except RuntimeError:  # torch names every tensor that does not fit
        raise HwnasError(f"{path} holds the weights of another net than arch.json describes") from None
    return module.eval()


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]
