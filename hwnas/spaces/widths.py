"""Spaces whose architectures say how many channels there are, of each of many kinds: atoms, or gated channels.

An architecture has rows of whole numbers, a row a block. What searches and prices them knows this module only.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import HwnasError
from hwnas.network import Network
from hwnas.ops import Shape

if TYPE_CHECKING:
    import torch
    from torch import nn

STAIRS = ((64, 8), (128, 16), (512, 32), (2048, 128))
"""Up to so many channels (left) a branch grows by so many (right)."""

Widths = tuple[tuple[int, ...], ...]
"""Channels of each branch, of each block."""

Branch = tuple[int, int]
"""(block, place in its row)."""


@dataclass(frozen=True, slots=True)
class AtomArch:
    """One architecture: a space's name and the channels of each branch of its blocks."""

    space: str
    widths: Widths

    @property
    def atoms(self) -> int:
        """How many there are."""
        return sum(map(sum, self.widths))


class WidthSpace(ABC):
    """The architectures of a net with fewer channels, for one input shape and number of classes.

    Attributes:
        name: as typed on the command line.
        input_shape: one image, channels first.
        num_classes: outputs of the classifier.
        kernels: what the numbers of a row stand for, where that is a kernel.
        full: the numbers of the supernet.
    """

    name: str
    input_shape: Shape
    num_classes: int
    kernels: tuple[int, ...]
    full: Widths

    @abstractmethod
    def viable(self, empty: frozenset[Branch]) -> bool:
        """Whether there is a net in which these branches have nothing."""

    @abstractmethod
    def network(self, arch: AtomArch) -> Network:
        """The architecture as it is deployed."""

    @abstractmethod
    def build(self, arch: AtomArch, *, generator: torch.Generator | None = None) -> nn.Module:
        """The architecture as a module with fresh weights drawn from `generator`."""

    @abstractmethod
    def check(self, arch: AtomArch) -> None:
        """Refuses an architecture of another space or with impossible widths.

        Raises:
            HwnasError: it says what does not fit.
        """

    @abstractmethod
    def describe(self, arch: AtomArch) -> list[str]:
        """The blocks in words."""

    @property
    def supernet_arch(self) -> AtomArch:
        """The architecture with everything."""
        return AtomArch(self.name, self.full)

    @property
    def size(self) -> int:
        """How many architectures there are, counted as the papers do: any number in every branch."""
        return math.prod(atoms + 1 for widths in self.full for atoms in widths)

    @property
    def log10_size(self) -> float:
        """Logarithm of `size`."""
        return sum(math.log10(atoms + 1) for widths in self.full for atoms in widths)

    def branches(self) -> list[Branch]:
        """(block, place) of every branch, in order."""
        return [(block, place) for block, row in enumerate(self.full) for place in range(len(row))]

    def stairs(self, block: int, place: int) -> tuple[int, ...]:
        """Numbers that a branch of a net under a budget may have; the first is none.

        A device computes channels in blocks: those in between cost as much as the next stair, or more (a number that
        is no multiple of four makes ONNX Runtime leave its fast layout: a net of depthwise convolutions takes many
        times as long). Only these are profiled.
        """
        full = self.full[block][place]
        found, atoms = [0], 0
        while atoms < full:
            step = next((step for limit, step in STAIRS if atoms < limit), STAIRS[-1][1])
            atoms = min(full, atoms + step)
            found.append(atoms)
        return tuple(found)

    def next_stair(self, branch: Branch, number: int) -> int | None:
        """The least stair above a number of channels; None at the top."""
        return next((stair for stair in self.stairs(*branch) if stair > number), None)

    def aligned(self, arch: AtomArch) -> AtomArch:
        """The architecture with every branch filled up to its next stair."""
        widths = tuple(
            tuple(min(s for s in self.stairs(block, place) if s >= atoms) for place, atoms in enumerate(row))
            for block, row in enumerate(arch.widths)
        )
        return AtomArch(arch.space, widths)

    def empty_of(self, widths: Widths) -> frozenset[Branch]:
        """The branches that have nothing."""
        return frozenset((block, place) for block, row in enumerate(widths) for place, n in enumerate(row) if not n)

    def survivors(self, worth: Mapping[Branch, float]) -> set[Branch]:
        """Those of some branches of which something has to stay: the worthiest, where one of several has to.

        Args:
            worth: of the best of each branch that has something.
        """
        gone = frozenset(self.branches()) - worth.keys()
        for branch in sorted(worth, key=lambda branch: (worth[branch], branch)):
            if self.viable(gone | {branch}):
                gone |= {branch}
        return set(worth) - gone

    def revived(self, widths: Widths, worth: Mapping[Branch, float], count: int = 1) -> Widths:
        """`widths` with `count` channels in as few of the empty branches as a net needs, the worthiest first."""
        empty = self.empty_of(widths)
        if self.viable(empty):
            return widths
        there = {branch: math.inf for branch in self.branches() if branch not in empty}
        needed = self.survivors({**there, **{branch: worth.get(branch, 0.0) for branch in empty}}) & empty
        return tuple(
            tuple(min(count, self.full[b][p]) if (b, p) in needed else n for p, n in enumerate(row))
            for b, row in enumerate(widths)
        )

    def sample(self, rng: np.random.Generator) -> AtomArch:
        """An architecture with any number in each branch, uniformly and independently."""
        widths = tuple(tuple(int(rng.integers(atoms + 1)) for atoms in row) for row in self.full)
        return AtomArch(self.name, self.revived(widths, {}))

    def check_rows(self, arch: AtomArch) -> None:
        """Refuses an architecture of another space, or with another number of blocks."""
        if arch.space != self.name:
            raise HwnasError(f"an architecture of space {arch.space!r} does not fit {self.name!r}")
        if len(arch.widths) != len(self.full):
            raise HwnasError(f"{self.name} has {len(self.full)} blocks, the architecture has {len(arch.widths)}")

    def to_json(self, arch: AtomArch) -> dict[str, Any]:
        """The JSON form of `arch.json`; `hwnas.spaces.atoms_from_json` reads it."""
        return {
            "format": 1,
            "space": self.name,
            "input_shape": list(self.input_shape),
            "num_classes": self.num_classes,
            "kernels": list(self.kernels),
            "widths": [list(widths) for widths in arch.widths],
            "layers": self.describe(arch),
        }


def with_number(widths: Widths, branch: Branch, number: int) -> Widths:
    """`widths` with another number of channels in one branch."""
    block, place = branch
    row = (*widths[block][:place], number, *widths[block][place + 1 :])
    return (*widths[:block], row, *widths[block + 1 :])


def multiplied_by(full: Widths, factor: float) -> Widths:
    """Every number times `factor`, rounded down."""
    return tuple(tuple(int(factor * atoms) for atoms in row) for row in full)
