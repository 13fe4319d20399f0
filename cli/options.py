"""Options: where their values come from, and those that every command has.

A flag wins over its variable (`--latency`: HWNAS_LATENCY), that over `--config FILE.toml`, that over the default.
Variables and keys are checked: a misspelt one is an error that suggests the nearest, never ignored.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import click

from hwnas.errors import HwnasError, UsageError

from .groups import nearest
from .terminal import Terminal

Function = TypeVar("Function", bound=Callable[..., Any])

PREFIX = "HWNAS_"

LIBRARY_VARIABLES = ("HWNAS_FASHION_MNIST", "HWNAS_REMOTE_PYTHON", "HWNAS_SSH")
"""Variables that the library reads and that are no options."""


class Option(click.Option):
    """An option that is also read from its HWNAS_* variable."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.name is not None and self.name != "config":
            self.envvar = PREFIX + self.name.upper()


def option(*names: str, **kwargs: Any) -> Callable[[Function], Function]:
    """`click.option` with an HWNAS_* variable."""
    return click.option(*names, cls=Option, **kwargs)


class Command(click.Command):
    """A command that checks where its options come from and owns stdout while it runs."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        check_variables(kwargs["parent"].find_root() if kwargs.get("parent") else None)
        return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        terminal = ctx.find_object(Terminal)
        assert terminal is not None
        terminal.claim_stdout()
        return super().invoke(ctx)


def leaves(group: click.Command, ctx: click.Context, path: str = "") -> dict[str, click.Command]:
    """Every command under `group` that does something, by its path: ``search``, ``lut show``."""
    if not isinstance(group, click.Group):
        return {path: group}
    found: dict[str, click.Command] = {}
    for name in group.list_commands(ctx):
        child = group.get_command(ctx, name)
        assert child is not None
        found |= leaves(child, ctx, f"{path} {name}".strip())
    return found


def keys(command: click.Command) -> dict[str, click.Parameter]:
    """What a configuration file may say for `command`, by the option's long name without dashes."""
    return {
        param.name.replace("_", "-"): param
        for param in command.params
        if isinstance(param, Option) and param.name and param.name != "config"
    }


def check_variables(root: click.Context | None) -> None:
    """Refuses HWNAS_* variables that no command has.

    Raises:
        UsageError: it names the nearest variable.
    """
    given = [name for name in os.environ if name.startswith(PREFIX)]
    if not given or root is None:
        return
    options = {key for command in leaves(root.command, root).values() for key in keys(command)}
    known = sorted(key.upper().replace("-", "_") for key in options)
    for name in given:
        if name.removeprefix(PREFIX) not in known and name not in LIBRARY_VARIABLES:
            close = get_close_matches(name.removeprefix(PREFIX), known, n=1)
            hint = f"did you mean {PREFIX}{close[0]}?" if close else "unset it"
            raise UsageError(f"the variable {name} is no option of hwnas: {hint}")


def load_config(path: Path, ctx: click.Context) -> dict[str, Any]:
    """Values that the TOML file `path` gives the options of `ctx`'s command.

    Keys at the top are for every command that has such an option; a table named like the command (``[search]``,
    ``["lut show"]``) is for it alone and wins.

    Raises:
        HwnasError: the file cannot be read.
        UsageError: it is not TOML, or a key is unknown or has the wrong type.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise HwnasError(f"{path}: cannot be read ({error.strerror}): give a TOML file to --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from None
    root = ctx.find_root()
    commands = leaves(root.command, root)
    mine = ctx.command_path.removeprefix(root.info_name or "").strip()
    everywhere = {key for command in commands.values() for key in keys(command)}
    values: dict[str, Any] = {}
    for section, entries in {"": {}, **data}.items():
        if isinstance(entries, dict) and section:
            if section not in commands:
                raise UsageError(f"{path}: no command [{section}]{nearest(section, list(commands))}")
            _check_keys(path, section, entries, set(keys(commands[section])))
    _check_keys(path, "", {k: v for k, v in data.items() if not isinstance(v, dict)}, everywhere)
    for key, param in keys(ctx.command).items():
        for entries in (data, data.get(mine, {})):
            for spelling in (key, key.replace("-", "_")):
                if spelling in entries and not isinstance(entries[spelling], dict):
                    assert param.name is not None
                    values[param.name] = _value(path, key, param, entries[spelling])
    return values


def _check_keys(path: Path, section: str, entries: dict[str, Any], known: set[str]) -> None:
    for key in entries:
        if key.replace("_", "-") not in known:
            where = f"[{section}] " if section else ""
            raise UsageError(f"{path}: {where}unknown key {key!r}{nearest(key.replace('_', '-'), sorted(known))}")


def _value(path: Path, key: str, param: click.Parameter, value: Any) -> Any:
    """A TOML value as click takes it; a flag must be true or false, anything else must not."""
    assert isinstance(param, click.Option)
    if isinstance(value, bool) != param.is_flag:
        wanted = "true or false" if param.is_flag else "a value"
        raise UsageError(f"{path}: {key} must be {wanted}, not {value!r}")
    if param.multiple:
        return value if isinstance(value, list) else [value]
    if isinstance(value, list):
        return ",".join(map(str, value))  # several budgets in one go
    return value


def _set_flag(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    terminal = ctx.find_object(Terminal)
    assert terminal is not None
    assert param.name is not None
    setattr(terminal, param.name, value)


def _set_config(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.default_map = load_config(value, ctx)


def common(function: Function) -> Function:
    """The options every command has; their values are on the `Terminal`."""
    decorators = (
        option("--json", is_flag=True, expose_value=False, callback=_set_flag, help="Print one JSON document."),
        option(
            "--quiet",
            is_flag=True,
            expose_value=False,
            callback=_set_flag,
            help="No progress; notes that matter stay.",
        ),
        option("--debug", is_flag=True, expose_value=False, callback=_set_flag, help="Show tracebacks."),
        option(
            "--config",
            type=click.Path(path_type=Path),
            is_eager=True,
            expose_value=False,
            callback=_set_config,
            metavar="FILE.toml",
            help="Read options from a file.",
        ),
    )
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


file_path = click.Path(path_type=Path)


def fraction(text: str) -> float:
    """A share of one, typed as ``1%`` or ``0.01``."""
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a share: write it as 1% or 0.01") from None
    if not 0 < share < 1:
        raise click.BadParameter(f"{text!r} is not between 0 and 100%: write it as 1% or 0.01")
    return share
