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
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from hwnas.errors import UsageError
from hwnas.spaces.gated import GateFamily
from hwnas.spaces.user_code import Source, helpers_of, make_net

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
    source = replace(source, helpers=helpers_of(source))
    key = (source.digest[:DIGITS], source.name)
    _known[key] = source
    _remember(key, source)
    return f"{path.name}:{source.name}@{source.digest[:DIGITS]}"


def own_family(name: str) -> GateFamily:
    """The space with a full name.

    Raises:
        UsageError: it was never typed on this machine, or it has changed since.
    """
    make = partial(make_net, _source(name))
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


def _remember(key: tuple[str, str], source: Source) -> None:
    content = os.fsencode("\0".join([source.digest, str(source.path), *(helper for helper, _ in source.helpers)]))
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that is read-only or full
        entry = _registry() / ".".join(key)
        if not entry.is_file() or entry.read_bytes() != content:
            entry.parent.mkdir(parents=True, exist_ok=True)
            part = entry.with_name(f"{entry.name}.{os.getpid()}")
            part.write_bytes(content)
            part.replace(entry)
