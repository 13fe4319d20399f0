"""Nets of a user's own Python file as spaces: ``FILE.py:NAME``, where NAME makes the net, as torchvision's builders do.

NAME is called with ``num_classes``, and with ``input_shape`` (channels, height, width) where it takes that; a class of
modules will do. Dropouts and dropped layers are made repeatable, weights are drawn anew from the search's seed.

Runs and tables name such a space by what is in the file, ``nets.py:NAME@DIGEST``, and no path. Reading a found net runs
what the user has typed on this machine before (`typed`), wherever that lies now, and nothing else; what was digested is
what is run. The run keeps a copy (`COPY`) that is not executed. What the file imports from beside it is not digested,
and not copied.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
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

DIGITS = 16
"""Of the digest in a name; what is remembered has all of it."""

_TYPED = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)", re.ASCII | re.DOTALL)
_NAMED = re.compile(r"(?P<file>[^/\\]+\.py):(?P<name>[A-Za-z_]\w*)@(?P<digest>[0-9a-f]{16})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was typed, as it was read then.

    Attributes:
        path: where it lay.
        file: what it was called when it was typed first.
        name: of what makes the net.
        text: what is in it.
    """

    path: Path
    file: str
    name: str
    text: bytes

    @property
    def digest(self) -> str:
        """Of what is in it, whole."""
        return hashlib.sha256(self.text).hexdigest()

    @property
    def full_name(self) -> str:
        """The space's name."""
        return f"{self.file}:{self.name}@{self.digest[:DIGITS]}"


_known: dict[tuple[str, str], Source] = {}
"""What this process has read, by digest and name."""


def is_own(text: str) -> bool:
    """Whether a space, as typed or in full, is of a file of the user's own."""
    return _TYPED.fullmatch(text) is not None or _NAMED.fullmatch(text) is not None


def short_name(text: str) -> str:
    """What to call a space in the name of a folder."""
    found = _NAMED.fullmatch(text)
    if found is None:
        return re.sub(r"[:@]", "-", text)
    return re.sub(r"[^\w.-]", "-", f"{found['file'].removesuffix('.py')}-{found['name']}-{found['digest'][:6]}")


def typed(text: str) -> str:
    """The full name of a space that was typed, which is remembered; names in full stay as they are.

    To be called with what a user has typed alone, never with what is in a file.

    Raises:
        UsageError: there is no such file.
    """
    found = _TYPED.fullmatch(text)
    if found is None:
        return text
    path = Path(found["file"])
    try:
        path = path.expanduser().resolve()
        content = path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{str(path)!r} cannot be read: {why}") from None
    if not path.name.isprintable() or re.search(r"\s", path.name):
        raise UsageError(f"{path.name!r}: give the file a name without blanks")
    source = Source(path, path.name, found["name"], content)
    key = (source.digest[:DIGITS], source.name)
    entry = _entry(key)
    if entry is not None and entry[0] == source.digest:
        source = Source(path, entry[1], source.name, content)
    _known[key] = source
    _remember(key, source)
    return source.full_name


def own_family(name: str) -> GateFamily:
    """The space with a full name. The file is not run yet.

    Raises:
        UsageError: it was never typed on this machine, or it has changed since.
    """
    source = _source(name)
    make = _net(source)
    return GateFamily(lambda _: make, 224, (1, 4096), 1000)


def source_of(name: str) -> bytes | None:
    """What is in the file of a space; None of other spaces."""
    return _source(name).text if _NAMED.fullmatch(name) else None


def _source(name: str) -> Source:
    found = _NAMED.fullmatch(name)
    if found is None or not name.isprintable():
        raise UsageError(f"{name[:80]!r} is no space: runs and tables name a file by its content, FILE.py:NAME@DIGEST")
    key = (found["digest"], found["name"])
    if key not in _known:
        _known[key] = _read(name, key)
    return _known[key]


def _read(name: str, key: tuple[str, str]) -> Source:
    mend = f"name a file with that content, as the run's {COPY}, once: hwnas predict 'space:FILE.py:{key[1]}'"
    entry = _entry(key)
    if entry is None:
        raise UsageError(f"{name}: no such file was used on this machine; {mend}")
    digest, file, path = entry
    try:
        source = Source(path, file, key[1], path.read_bytes())
    except OSError as error:
        raise UsageError(f"{name} was {path}, which cannot be read ({error.strerror or error}); {mend}") from None
    if source.digest != digest:
        raise UsageError(f"{name} was {path}, which has changed since: restore it; or {mend}")
    return source


def _registry() -> Path:
    """The folder that says of each file that was typed what it was called and where it lay."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():
        state = Path.home() / ".local" / "state"
    return state / "hwnas" / "sources"


def _entry(key: tuple[str, str]) -> tuple[str, str, Path] | None:
    """Digest, first name and path of what was remembered; None where nothing was, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        digest, file, path = os.fsdecode((_registry() / ".".join(key)).read_bytes()).split("\n", 2)
        if digest.startswith(key[0]) and Path(path).is_absolute():
            return digest, file, Path(path)
    return None


def _remember(key: tuple[str, str], source: Source) -> None:
    content = os.fsencode(f"{source.digest}\n{source.file}\n{source.path}")
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that is read-only or full
        entry = _registry() / ".".join(key)
        if not entry.is_file() or entry.read_bytes() != content:
            entry.parent.mkdir(parents=True, exist_ok=True)
            part = entry.with_name(f"{entry.name}.{os.getpid()}")
            part.write_bytes(content)
            part.replace(entry)


def _net(source: Source) -> MakeNet:
    def make(input_shape: Shape, num_classes: int) -> nn.Module:
        import torch
        from torch import nn

        from hwnas.nn.figs import repeatable

        builder = _builder(source)
        torch.default_generator.manual_seed(0)  # callers fork it; what is not drawn anew is always the same
        what = f"{source.path}:{source.name}"
        try:
            net = builder(**_arguments(builder, input_shape, num_classes))
        except (Exception, SystemExit) as error:
            if torch.get_default_device().type == "meta":  # it looks at numbers while it is made
                raise NotImplementedError from error
            raise HwnasError(f"{what} made no net of {num_classes} classes: {_said(error, source)}") from error
        if not isinstance(net, nn.Module):
            raise UsageError(f"{what} gave {type(net).__name__}: a torch.nn.Module was expected")
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


def _builder(source: Source) -> Callable[..., object]:
    """The function or class that makes the net; the file is run once."""
    import torch

    module_name = f"hwnas_own_{hashlib.sha256(os.fsencode(source.path)).hexdigest()[:DIGITS]}_{source.digest[:DIGITS]}"
    module = sys.modules.get(module_name)
    if module is None:
        module = ModuleType(module_name)
        module.__file__ = str(source.path)
        sys.modules[module_name] = module
        if str(source.path.parent) not in sys.path:  # for what it imports from beside it
            sys.path.append(str(source.path.parent))
        try:
            # what was digested, and nothing that is cached beside it
            code = compile(source.text, str(source.path), "exec", dont_inherit=True)
            with torch.device("cpu"):  # also where the net is to be made without data
                exec(code, module.__dict__)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise UsageError(f"{source.path} does not run: {_said(error, source)}") from error
    builder: Callable[..., object] | None = getattr(module, source.name, None)
    if builder is None or not callable(builder):
        import difflib

        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(source.name, names, n=1)
        hint = f": did you mean {near[0]!r}?" if near else f"; it has {', '.join(names[:8])}" if names else ""
        raise UsageError(f"{source.path} has no function or class {source.name!r}{hint}")
    return builder


def _said(error: BaseException, source: Source) -> str:
    """An error of the user's code in one line, with where in the file it came from."""
    text = " ".join(str(error).split())[:200]
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(source.path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{type(error).__name__}: {text}{f' (line {line})' if line else ''}"
