"""What the environment says of torchrun, without importing torch."""

from __future__ import annotations

import os

from hwnas.train.ranks import started_by_torchrun

TRAINING = ("search", "train")
"""The commands that several processes can do together."""


def several() -> bool:
    """Whether this process is one of several that torchrun started."""
    return started_by_torchrun()


def follows() -> bool:
    """Whether this process is one of several, and not the first."""
    return several() and int(os.environ.get("RANK", "0")) > 0


def neighbours() -> int:
    """How many of them share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if several() else 1
