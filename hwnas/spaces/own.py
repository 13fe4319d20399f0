"""Nets of a user's own Python file as spaces: ``FILE.py:NAME``, where NAME makes the net, as torchvision's builders do.

NAME is called with ``num_classes``, and with ``input_shape`` (channels, height, width) where it takes that; a class of
modules will do. Dropouts and dropped layers are made repeatable, weights are drawn anew from the search's seed.

Runs and tables name such a space by what is in the file, ``nets.py:NAME@DIGEST``, and no path: reading a found net runs
a file that the user has typed on this machine before, wherever that lies now, and no other. The run keeps a copy
(`COPY`) that is never executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import HwnasError, UsageError
from hwnas.ops import Shape
from hwnas.spaces.gated import GateFamily, MakeNet

if TYPE_CHECKING:
    from torch import nn

FORM = "FILE.py:NAME"
"""How such a space is typed."""

COPY = "source.py"
"""The copy of the file in the folder of a run."""

_SPEC = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)(?:@(?P<digest>[0-9a-f]{16}))?", re.DOTALL)

_typed: dict[str, Path] = {}
"""The files that were typed in this process, by digest."""


def is_own(text: str) -> bool:
    """Whether a space, as typed, is of a file of the user's own."""
    return _SPEC.fullmatch(text) is not None


def short_name(text: str) -> str:
    """What to call a space in the name of a folder."""
    found = _SPEC.fullmatch(text)
    if found is None:
        return re.sub(r"[:@]", "-", text)
    version = f"-{found['digest'][:6]}" if found["digest"] else ""
    return re.sub(r"[^\w.-]", "-", f"{Path(found['file']).stem}-{found['name']}{version}")


def own_family(text: str) -> tuple[str, GateFamily]:
    """The space that `text` names, and its name in full. The file is not run yet.

    Raises:
        UsageError: there is no such file, it has changed since it was typed, or it was never typed here.
    """
    found = _SPEC.fullmatch(text)
    assert found is not None
    if found["digest"] is None:
        path = Path(found["file"]).expanduser().resolve()
        try:
            digest = _digest(path.read_bytes())
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
        _remember(digest, path)
    else:
        path, digest = _remembered(found), found["digest"]
    make = _net(path, found["name"], digest)
    return f"{Path(found['file']).name}:{found['name']}@{digest}", GateFamily(lambda _: make, 224, (1, 4096), 1000)


def source_of(text: str) -> bytes | None:
    """What is in the file of a space, by its name in full; None of other spaces, and where the file has changed."""
    found = _SPEC.fullmatch(text)
    if found is None or found["digest"] is None:
        return None
    with contextlib.suppress(OSError, UsageError):
        source = _remembered(found).read_bytes()
        return source if _digest(source) == found["digest"] else None
    return None


def _registry() -> Path:
    """The folder that has the path of each file that was typed, by digest."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():
        state = Path.home() / ".local" / "state"
    return state / "hwnas" / "sources"


def _remember(digest: str, path: Path) -> None:
    from hwnas.train.checkpoint import write_atomically

    _typed[digest] = path
    with contextlib.suppress(OSError, RuntimeError, HwnasError):  # no home, or one that is read-only or full
        entry = _registry() / digest
        if not entry.is_file() or entry.read_bytes() != os.fsencode(path):
            write_atomically(entry, os.fsencode(path))


def _remembered(found: re.Match[str]) -> Path:
    """The file with a digest, as it was typed.

    Raises:
        UsageError: it never was, or it is not what it was then.
    """
    digest, path = found["digest"], _typed.get(found["digest"])
    with contextlib.suppress(OSError, RuntimeError):
        path = path or Path(os.fsdecode((_registry() / digest).read_bytes()))
    mend = f"name a file with that content, as the run's {COPY}, once: hwnas predict 'space:FILE.py:{found['name']}'"
    if path is None:
        raise UsageError(f"{found[0]}: no such file was used on this machine; {mend}")
    try:
        now = _digest(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{found[0]} was {path}, which cannot be read ({error.strerror or error}); {mend}") from None
    if now != digest:
        raise UsageError(f"{found[0]} was {path}, which has changed since: restore it; or {mend}")
    return path


def _digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:16]


def _net(path: Path, name: str, digest: str) -> MakeNet:
    def make(input_shape: Shape, num_classes: int) -> nn.Module:
        import torch
        from torch import nn

        from hwnas.nn.figs import repeatable

        builder = _builder(path, name, digest)
        torch.default_generator.manual_seed(0)  # callers fork it; what is not drawn anew is always the same
        try:
            net = builder(**_arguments(builder, input_shape, num_classes))
        except Exception as error:
            if torch.get_default_device().type == "meta":  # it looks at numbers while it is made
                raise NotImplementedError from error
            raise HwnasError(f"{path}:{name} made no net of {num_classes} classes: {_said(error, path)}") from error
        if not isinstance(net, nn.Module):
            raise UsageError(f"{path}:{name} gave {type(net).__name__}: a torch.nn.Module was expected")
        return repeatable(net)

    return make


def _arguments(builder: Callable[..., object], input_shape: Shape, num_classes: int) -> dict[str, Any]:
    """What a builder is called with, of what it takes."""
    known = {"num_classes": num_classes, "input_shape": input_shape}
    taken = inspect.signature(builder).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    if "num_classes" not in taken and not anything:
        raise TypeError(f"it takes no num_classes: write def {getattr(builder, '__name__', 'make')}(num_classes: int)")
    return {key: value for key, value in known.items() if key in taken or (anything and key == "num_classes")}


def _builder(path: Path, name: str, digest: str) -> Callable[..., object]:
    """The function or class `name` of the file, which is run once."""
    import torch

    module_name = f"hwnas_own_{_digest(os.fsencode(path))}_{digest}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        if str(path.parent) not in sys.path:  # for what it imports from beside it
            sys.path.append(str(path.parent))
        try:
            with torch.device("cpu"):  # also where the net is to be made without data
                spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise UsageError(f"{path} does not run: {_said(error, path)}") from error
    builder: Callable[..., object] | None = getattr(module, name, None)
    if builder is None or not callable(builder):
        import difflib

        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f": did you mean {near[0]!r}?" if near else f"; it has {', '.join(names[:8])}" if names else ""
        raise UsageError(f"{path} has no function or class {name!r}{hint}")
    return builder


def _said(error: BaseException, path: Path) -> str:
    """An error of the user's code in one line, with where in the file it came from."""
    text = " ".join(str(error).split())[:200]
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{type(error).__name__}: {text}{f' (line {line})' if line else ''}"
