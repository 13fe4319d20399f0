"""Nets of a user's own Python file as spaces: ``FILE.py:NAME``, where NAME makes the net, as torchvision's builders do.

NAME is called with ``num_classes``, and with ``input_shape`` (channels, height, width) where it takes that; a class of
modules will do. Dropouts and dropped layers are made repeatable, weights are drawn anew from the search's seed.

Runs and tables name such a space by what is in the file and in those that it imports from beside it,
``nets.py:NAME@DIGEST``, and no path. Reading a found net runs what the user has typed on this machine before (`typed`),
wherever that lies now, and nothing else. The run keeps a copy (`COPY`) that is not executed. What is read, but not
imported, is neither digested nor copied.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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

COPY = "source"
"""The folder in that of a run that has a copy of the file, and of what it imports from beside it."""

DIGITS = 16
"""Of the digest in a name; what is remembered has all of it."""

MOST_BYTES = 2**24
"""Of a file that is read."""

_TYPED = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)", re.ASCII | re.DOTALL)
_NAMED = re.compile(r"(?P<file>[^/\\]+\.py):(?P<name>[A-Za-z_]\w*)@(?P<digest>[0-9a-f]{16})", re.ASCII)


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

    @property
    def key(self) -> tuple[str, str]:
        """What names it: digest and name."""
        return self.digest[:DIGITS], self.name


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file that was run, and the modules that came from beside it, which no other file shares."""

    module: ModuleType
    helpers: dict[str, ModuleType]


_known: dict[tuple[str, str], Source] = {}
"""What this process has read, by digest and name."""

_loaded: dict[tuple[Path, str], Loaded] = {}
"""What it has run, by path and digest."""


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
    """The full name of a space that was typed, which is remembered; names in full stay as they are. The file is run.

    To be called with what a user has typed alone, never with what is in a file.

    Raises:
        UsageError: there is no such file, or it does not run.
    """
    found = _TYPED.fullmatch(text)
    if found is None:
        return text
    path = Path(found["file"])
    try:
        path = path.expanduser().resolve()
        if path.exists() and not (path.is_file() and path.stat().st_size <= MOST_BYTES):
            raise ValueError("no file of Python's")
        source = Source(path, found["name"], path.read_bytes())
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{str(path)!r} cannot be read: {why}") from None
    if not path.name.isprintable() or re.search(r"\s", path.name):
        raise UsageError(f"{path.name!r}: give the file a name without blanks")
    loaded = _run(source)
    source = replace(source, helpers=_files_of(loaded.helpers, path.parent))
    _loaded.setdefault((path, source.digest), loaded)
    _known[source.key] = source
    _remember(source)
    return f"{path.name}:{source.name}@{source.digest[:DIGITS]}"


def own_family(name: str) -> GateFamily:
    """The space with a full name.

    Raises:
        UsageError: it was never typed on this machine, or it has changed since.
    """
    make = _net(_source(name))
    return GateFamily(lambda _: make, 224, (1, 4096), 1000)


def source_of(name: str) -> dict[str, bytes]:
    """What is in the files of a space, by what to call them in `COPY`; nothing of other spaces."""
    if _NAMED.fullmatch(name) is None:
        return {}
    source = _source(name)
    return {source.path.name: source.text, **dict(source.helpers)}


def _source(name: str) -> Source:
    found = _NAMED.fullmatch(name)
    if found is None or not name.isprintable():
        raise UsageError(f"{name[:80]!r} is no space: runs and tables name a file by its content, FILE.py:NAME@DIGEST")
    key = (found["digest"], found["name"])
    if key not in _known:
        _known[key] = _read(name, found["file"], key)
    return _known[key]


def _read(name: str, file: str, key: tuple[str, str]) -> Source:
    copied = f"hwnas predict 'space:RUN/{COPY}/{file}:{key[1]}'"
    mend = f"name a file with that content once, as the run's folder has one: {copied}"
    entry = _entry(key)
    if entry is None:
        raise UsageError(f"{name}: no such file was used on this machine; {mend}")
    digest, path, helpers = entry
    try:
        texts = tuple((helper, (path.parent / helper).read_bytes()) for helper in helpers)
        source = Source(path, key[1], path.read_bytes(), texts)
    except OSError as error:
        raise UsageError(f"{name} was {path}, which cannot be read ({error}); {mend}") from None
    if source.digest != digest:
        files = " and what it imports" if helpers else ""
        raise UsageError(f"{name} was {path}{files}, which has changed since: restore it; or {mend}")
    return source


def _registry() -> Path:
    """The folder that says of each file that was typed what is in it and where it lay."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():
        state = Path.home() / ".local" / "state"
    return state / "hwnas" / "sources"


def _entry(key: tuple[str, str]) -> tuple[str, Path, list[str]] | None:
    """Digest, path and helpers of what was remembered; None where nothing was, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        digest, path, *helpers = os.fsdecode((_registry() / ".".join(key)).read_bytes()).split("\0")
        if digest.startswith(key[0]) and Path(path).is_absolute():
            return digest, Path(path), helpers
    return None


def _remember(source: Source) -> None:
    content = os.fsencode("\0".join([source.digest, str(source.path), *(helper for helper, _ in source.helpers)]))
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that is read-only or full
        entry = _registry() / ".".join(source.key)
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

        at = (source.path, source.digest)
        if at not in _loaded:
            _loaded[at] = _run(source)
        loaded, what = _loaded[at], f"{source.path}:{source.name}"
        builder = _builder(loaded.module, source)
        torch.default_generator.manual_seed(0)  # callers fork it; what is not drawn anew is always the same
        try:
            with _beside(source.path.parent, loaded.helpers):
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


def _run(source: Source) -> Loaded:
    """Runs the file: what was read, and nothing that is cached beside it."""
    import torch

    name = f"hwnas_own_{hashlib.sha256(os.fsencode(source.path)).hexdigest()[:DIGITS]}_{source.digest[:DIGITS]}"
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
    loaded = Loaded(module, helpers)
    _made_once(source, loaded)
    return loaded


@contextlib.contextmanager
def _beside(folder: Path, helpers: dict[str, ModuleType]) -> Iterator[None]:
    """While it lasts, modules of `folder` can be imported; they become `helpers`, and are no others' afterwards.

    Two files may each have a ``blocks.py`` beside them. What they print goes to standard error.
    """
    before = set(sys.modules)
    hidden = {name: sys.modules[name] for name in helpers if name in sys.modules}
    sys.modules.update(helpers)
    sys.path.insert(0, str(folder))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            if name in helpers or (name not in before and _lies_in(module, folder)):
                helpers[name] = sys.modules.pop(name)
        sys.modules.update(hidden)


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Whether a module was imported from a folder, and from no packages that are installed in it."""
    places = [module.__file__] if getattr(module, "__file__", None) else list(getattr(module, "__path__", ()))
    inside = [Path(place).resolve() for place in places if place and Path(place).resolve().is_relative_to(folder)]
    return any("site-packages" not in place.relative_to(folder).parts for place in inside)


def _files_of(helpers: dict[str, ModuleType], folder: Path) -> tuple[tuple[str, bytes], ...]:
    """The files that modules came from, by path from the folder, and what is in them."""
    files = {Path(file).resolve() for module in helpers.values() if (file := module.__file__)}
    return tuple(sorted((file.relative_to(folder).as_posix(), file.read_bytes()) for file in files))


def _made_once(source: Source, loaded: Loaded) -> None:
    """Makes the net, for what is imported only then; what goes wrong is said when a net is wanted."""
    import torch

    with contextlib.suppress(Exception, SystemExit), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        builder = _builder(loaded.module, source)
        with _beside(source.path.parent, loaded.helpers):
            builder(**_arguments(builder, (3, 224, 224), 10))


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
