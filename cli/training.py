"""Options of the commands that train: where, with how many threads, and by how many processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from hwnas.errors import HwnasError

from .options import Function, option
from .torchrun import neighbours

if TYPE_CHECKING:
    from hwnas.train.ranks import Ranks


def train_options(function: Function) -> Function:
    """How many threads, and on what torch computes."""
    decorators = (
        option(
            "--train-threads", type=click.IntRange(1), metavar="N", help="CPU threads of training  [default: all cores]"
        ),
        option(
            "--train-device",
            type=click.Choice(("cpu", "cuda")),
            help="Where torch trains; under torchrun one GPU a process  [default: cpu]",
        ),
    )
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def thread_count(typed: int | None) -> int:
    """CPU threads of this process: its share of the machine's cores where nothing was typed."""
    return typed or max(1, len(os.sched_getaffinity(0)) // neighbours())


@contextmanager
def joined(device: str | None) -> Iterator[Ranks]:
    """The processes that work on this command: one, or those that torchrun started.

    Raises:
        HwnasError: there is no such device.
    """
    import torch

    from hwnas.train.ranks import joined_ranks

    if device == "cuda" and not torch.cuda.is_available():
        raise HwnasError("torch finds no CUDA device here: leave --train-device out to train on the CPU")
    with joined_ranks(device or "cpu") as ranks:
        yield ranks
