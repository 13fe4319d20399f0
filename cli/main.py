"""The `hwnas` command: finds the subcommand, runs it, and turns whatever happens into an exit code.

0 done and the claim holds, 1 failed, 2 usage, 3 the claim does not hold, 130 interrupted. A subcommand's module is
imported when it is named; it imports the library inside its function, so that help needs neither torch nor numpy.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import cast

import click

from .failures import exit_code_and_line
from .groups import SuggestingGroup
from .terminal import Terminal
from .torchrun import follows, several

COMMANDS = ("devices", "profile", "lut", "predict", "search", "train", "verify", "export")
"""In the order of the work. Each is a module of this package with a click command named `command`."""


class LazyGroup(SuggestingGroup):
    """A group that imports a subcommand only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        return cast(click.Command, import_module(f".{cmd_name}", __package__).command)


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from hwnas import __version__

        click.echo(f"hwnas {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print it.")
def hwnas() -> None:
    """Architecture search that measures the device, keeps its latency budget and proves it.

    \b
    Example:
      hwnas profile --device cpu      time every operator the search space can use
      hwnas search --latency 17ms     train and search under a budget
      hwnas verify                    build what was found, measure it, compare

    \b
    Options also come from HWNAS_* variables (HWNAS_DEVICE=cpu) and from --config FILE.toml.
    Exit codes: 0 done, 1 failed, 2 usage, 3 the claim does not hold, 130 interrupted.
    """


def run(argv: Sequence[str]) -> int:
    """Runs one command line (without the program's name) and returns its exit code; errors are printed as one line."""
    terminal = Terminal(tuple(argv), mute=follows())
    try:
        with hwnas.make_context("hwnas", list(argv), obj=terminal) as context:
            hwnas.invoke(context)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except BaseException as error:
        if terminal.debug and not isinstance(error, click.exceptions.NoArgsIsHelpError):
            import traceback

            traceback.print_exc()
        code, line = exit_code_and_line(error, terminal)
        if line:
            terminal.error(line)
        return code
    return 0


def _terminated(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of the installed command."""
    signal.signal(signal.SIGTERM, _terminated)  # a polite kill keeps what was finished, as Ctrl-C does
    # Waiting threads of training spin for microseconds, then sleep: as fast as spinning on a quiet machine, and several
    # times faster beside other work. OpenMP reads it when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if not sys.warnoptions and "--debug" not in sys.argv:
        warnings.simplefilter("ignore")  # other packages' deprecations are not for users
    code = run(sys.argv[1:])
    if several():
        # gloo's threads may outlive the group; where they meet the end of the interpreter, a process whose work is done
        # aborts now and then, and torchrun calls that a failure (pytorch/pytorch issue 190489)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
