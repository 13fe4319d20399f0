"""A click group that answers a misspelt subcommand with the nearest one."""

from __future__ import annotations

from difflib import get_close_matches

import click


class SuggestingGroup(click.Group):
    """A group whose unknown subcommand is an error that names the nearest, or all of them."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(f"no command {args[0]!r}{nearest(args[0], self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)


def nearest(text: str, names: list[str]) -> str:
    """The end of an error about an unknown name: the nearest of `names`, else all of them."""
    close = get_close_matches(text, names, n=1)
    return f": did you mean {close[0]!r}?" if close else f": one of {', '.join(names)}"
