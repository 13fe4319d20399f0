"""`Space` and `Arch`: what a search chooses from.

A space has slots; an architecture picks one choice for each. Everything that has a price is arithmetic on `Op`s, so
that costs need no weights; only `build` and `supernet` import torch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import HwnasError
from hwnas.network import Network
from hwnas.ops import Op, Shape

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hwnas.nn.supernet import SinglePathSupernet


@dataclass(frozen=True, slots=True)
class Family:
    """A named space before its image size and number of classes are chosen.

    Attributes:
        make: the space, from its name, input shape and number of classes.
        image_size: default height and width in pixels.
        image_sizes: smallest and largest height and width that it is meant for.
        num_classes: default number of classes.
        variants: what may stand behind the name and an ``@``; empty where nothing may.
    """

    make: Callable[[str, Shape, int], Space]
    image_size: int
    image_sizes: tuple[int, int]
    num_classes: int
    variants: str = ""


@dataclass(frozen=True, slots=True)
class Arch:
    """One architecture: a space's name and one gene (choice index) for each of its slots."""

    space: str
    genes: tuple[int, ...]


class Space(ABC):
    """The architectures that a search chooses from, for one input shape and number of classes.

    Attributes:
        name: as typed on the command line.
        input_shape: one image, channels first.
        num_classes: outputs of the classifier.
        slots: the names of each slot's choices, e.g. ``("k3e3", "k3e6", …, "skip")``.
    """

    name: str
    input_shape: Shape
    num_classes: int
    slots: tuple[tuple[str, ...], ...]

    @abstractmethod
    def fixed_ops(self) -> tuple[Op, ...]:
        """Operators that every architecture has (stem, head)."""

    @abstractmethod
    def slot_ops(self, slot: int, choice: int) -> tuple[Op, ...]:
        """Operators that a choice adds, independent of the other slots."""

    @abstractmethod
    def network(self, arch: Arch) -> Network:
        """The architecture as wired operators; its operators are `fixed_ops` and the `slot_ops` of its genes."""

    @abstractmethod
    def build(self, arch: Arch, *, generator: torch.Generator | None = None) -> nn.Module:
        """The architecture as a plain module with fresh weights, on the CPU, drawn from `generator`."""

    @abstractmethod
    def supernet(
        self, *, generator: torch.Generator | None = None, zero_init_residual: bool = True
    ) -> SinglePathSupernet:
        """The shared weights of all architectures, fresh, drawn from `generator`.

        Args:
            generator: where the weights come from; None is torch's default generator.
            zero_init_residual: every residual block starts as the identity (the scale of its last BatchNorm is zero).
        """

    def supernet_ops(self) -> tuple[Op, ...]:
        """All that a supernet holds: every choice of every slot, those that share their weights once, at the widest."""
        slots = enumerate(self.slots)
        choices = (op for slot, names in slots for choice in range(len(names)) for op in self.slot_ops(slot, choice))
        return (*self.fixed_ops(), *choices)

    def widened(self, genes: tuple[int, ...], progress: float) -> tuple[int, ...]:
        """`genes` with widths that a channel search may take while it warms up; where there are none, as they are.

        Args:
            genes: of an architecture.
            progress: of the warm-up: at 0 only the widest are taken, at 1 all.
        """
        del progress
        return genes

    @property
    def size(self) -> int:
        """How many architectures there are."""
        return math.prod(len(choices) for choices in self.slots)

    def sample(self, rng: np.random.Generator) -> Arch:
        """An architecture uniformly at random."""
        return Arch(self.name, tuple(int(rng.integers(len(choices))) for choices in self.slots))

    def check(self, arch: Arch) -> None:
        """Refuses an architecture of another space or with impossible genes.

        Raises:
            HwnasError: it says what does not fit.
        """
        if arch.space != self.name:
            raise HwnasError(f"an architecture of space {arch.space!r} does not fit {self.name!r}")
        if len(arch.genes) != len(self.slots):
            raise HwnasError(f"{self.name} has {len(self.slots)} slots, the architecture has {len(arch.genes)} genes")
        for slot, (gene, choices) in enumerate(zip(arch.genes, self.slots, strict=True)):
            if not 0 <= gene < len(choices):
                raise HwnasError(f"{self.name}: slot {slot} has choices 0 to {len(choices) - 1}, not {gene}")

    def describe(self, arch: Arch) -> list[str]:
        """The names of the choices, slot by slot."""
        return [choices[gene] for gene, choices in zip(arch.genes, self.slots, strict=True)]

    def to_json(self, arch: Arch) -> dict[str, Any]:
        """The JSON form of `arch.json`; `hwnas.spaces.arch_from_json` reads it."""
        return {
            "format": 1,
            "space": self.name,
            "input_shape": list(self.input_shape),
            "num_classes": self.num_classes,
            "genes": list(arch.genes),
            "layers": self.describe(arch),
        }
