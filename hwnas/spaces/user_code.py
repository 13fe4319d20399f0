"""A user's own Python file, run: the net that it makes, and the modules that it imports from beside it."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hwnas.errors import HwnasError, UsageError
from hwnas.ops import Shape

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was typed, as it was read then.

    Attributes:
        path: where it lay.
        name: of what makes the net.
        text: what is in it.
        helpers: what it imports from its folder, by path from there, and what is in that.
    """

    path: Path
    name: str
    text: bytes
    helpers: tuple[tuple[str, bytes], ...] = ()

    @property
    def digest(self) -> str:
        """Of all of it."""
        whole = hashlib.sha256(self.text)
        for path, text in self.helpers:
            whole.update(b"\0" + os.fsencode(path) + b"\0" + hashlib.sha256(text).digest())
        return whole.hexdigest()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file that was run, and the modules that came from beside it, which no other file shares."""

    module: ModuleType
    helpers: dict[str, ModuleType]


_loaded: dict[tuple[Path, str], Loaded] = {}
"""What it has run, by path and digest."""


def helpers_of(source: Source) -> tuple[tuple[str, bytes], ...]:
    """Runs a file whose helpers are not known yet: these, by path from its folder, and what is in them.

    Raises:
        UsageError: it does not run.
    """
    loaded = _run(source)
    files = {Path(file).resolve() for module in loaded.helpers.values() if (file := module.__file__)}
    folder = source.path.parent
    return tuple(sorted((file.relative_to(folder).as_posix(), file.read_bytes()) for file in files))


def make_net(source: Source, input_shape: Shape, num_classes: int) -> nn.Module:
    """The net that a file makes. Callers fork torch's generator: what is not drawn anew is always the same.

    Raises:
        UsageError: the file does not run, or has nothing that makes a net.
        HwnasError: what it has fails.
        NotImplementedError: it fails while tensors are made without data; with data it may do.
    """
    import torch
    from torch import nn

    from hwnas.nn.figs import repeatable

    at = (source.path, source.digest)
    if at not in _loaded:
        _loaded[at] = _run(source)
    loaded, what = _loaded[at], f"{source.path}:{source.name}"
    builder = _builder(loaded.module, source)
    torch.default_generator.manual_seed(0)
    try:
        net = _call(builder, source, loaded.helpers, input_shape, num_classes)
    except (Exception, SystemExit) as error:
        if torch.get_default_device().type == "meta":  # it looks at numbers while it is made
            raise NotImplementedError from error
        raise HwnasError(f"{what} made no net of {num_classes} classes: {_said(error, source)}") from error
    if not isinstance(net, nn.Module):
        raise UsageError(f"{what} gave {type(net).__name__}: a torch.nn.Module was expected")
    return repeatable(net)


def _run(source: Source) -> Loaded:
    """Runs the file: what was read, and nothing that is cached beside it. The net is made once, for what is imported
    only then; what goes wrong with it is said when a net is wanted."""
    import torch

    name = f"hwnas_own_{hashlib.sha256(os.fsencode(source.path)).hexdigest()[:16]}_{source.digest[:16]}"
    module = ModuleType(name)
    module.__file__ = str(source.path)
    helpers: dict[str, ModuleType] = {}
    sys.modules[name] = module  # dataclasses look for it there
    try:
        code = compile(source.text, str(source.path), "exec", dont_inherit=True)
        # on the CPU also where nets are made without data, and with numbers that are always the same
        with _beside(source.path.parent, helpers), torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"{source.path} does not run: {_said(error, source)}") from error
    with contextlib.suppress(Exception, SystemExit), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        _call(_builder(module, source), source, helpers, (3, 224, 224), 10)
    return Loaded(module, helpers)


def _call(
    builder: Callable[..., object],
    source: Source,
    helpers: dict[str, ModuleType],
    input_shape: Shape,
    num_classes: int,
) -> object:
    with _beside(source.path.parent, helpers):
        return builder(**_arguments(builder, input_shape, num_classes))


def _arguments(builder: Callable[..., object], input_shape: Shape, num_classes: int) -> dict[str, Any]:
    """What a builder is called with, of what it takes."""
    known = {"num_classes": num_classes, "input_shape": input_shape}
    taken = inspect.signature(builder).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    if "num_classes" not in taken and not anything:
        raise TypeError(f"it takes no num_classes: write def {getattr(builder, '__name__', 'make')}(num_classes: int)")
    return {key: value for key, value in known.items() if key in taken or (anything and key == "num_classes")}


@contextlib.contextmanager
def _beside(folder: Path, helpers: dict[str, ModuleType]) -> Iterator[None]:
    """While it lasts, modules of `folder` can be imported; they become `helpers`, and are no others' afterwards.

    Two files may each have a ``blocks.py`` beside them. Bytecode is neither read nor written: it need not be of what is
    in the files. What they print goes to standard error.
    """
    before = set(sys.modules)
    hidden = {name: sys.modules[name] for name in helpers if name in sys.modules}
    cached = sys.pycache_prefix, sys.dont_write_bytecode
    sys.modules.update(helpers)
    sys.path.insert(0, str(folder))
    sys.pycache_prefix, sys.dont_write_bytecode = os.devnull, True
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.pycache_prefix, sys.dont_write_bytecode = cached
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            if name in helpers or (name not in before and _lies_in(module, folder)):
                helpers[name] = sys.modules.pop(name)
        sys.modules.update(hidden)


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Whether a module was imported from a folder, and from no packages that are installed in it, nor from hwnas."""
    if module.__name__.partition(".")[0] in ("hwnas", "cli"):
        return False
    places = [module.__file__] if getattr(module, "__file__", None) else list(getattr(module, "__path__", ()))
    inside = [Path(place).resolve() for place in places if place and Path(place).resolve().is_relative_to(folder)]
    return any("site-packages" not in place.relative_to(folder).parts for place in inside)


def _builder(module: ModuleType, source: Source) -> Callable[..., object]:
    """The function or class that makes the net."""
    builder: Callable[..., object] | None = getattr(module, source.name, None)
    if builder is None or not callable(builder):
        import difflib

        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(source.name, names, n=1)
        hint = f": did you mean {near[0]!r}?" if near else f"; it has {', '.join(names[:8])}" if names else ""
        raise UsageError(f"{source.path} has no function or class {source.name!r}{hint}")
    if not inspect.isclass(builder) and hasattr(builder, "state_dict"):
        raise UsageError(f"{source.path}:{source.name} is a net: a function or class that makes one was expected")
    return builder


def _said(error: BaseException, source: Source) -> str:
    """An error of the user's code in one line, with where in the file it came from."""
    text = " ".join(str(error).split())[:200]
    file, line = str(source.path), None
    if isinstance(error, SyntaxError):
        file, line, text = error.filename or file, error.lineno, error.msg
    trace = error.__traceback__
    while trace is not None and not isinstance(error, SyntaxError):
        if Path(trace.tb_frame.f_code.co_filename).is_relative_to(source.path.parent):
            file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    name = "" if file == str(source.path) else f"{os.path.relpath(file, source.path.parent)} "
    where = f" ({name}line {line})" if line else ""
    return f"{type(error).__name__}: {text}{where}"
