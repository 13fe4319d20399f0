"""What each choice of a space adds in kernels: a space lowered, so that architectures add up slot by slot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import and_

from hwnas.latency.lowering import Lower
from hwnas.ops import Op
from hwnas.spaces.base import Arch, Space

Kernels = Counter[Op]
"""Kernels, with how often each is run."""


@dataclass(frozen=True, slots=True)
class SpaceKernels:
    """The kernels of an architecture are `fixed` and, of each slot, those of its choice.

    Attributes:
        fixed: what every architecture has.
        slots: for each slot and choice, what the choice adds.
    """

    fixed: Kernels
    slots: tuple[tuple[Kernels, ...], ...]

    @classmethod
    def of(cls, space: Space, lower: Lower) -> SpaceKernels:
        """Lowers one architecture for each choice: the cheapest way to what a runtime makes of it in its place.

        Where conversions of layout fall is settled between neighbours; in every space of hwnas a choice settles it the
        same whatever its neighbours are (a test draws architectures and compares).
        """
        first = (0,) * len(space.slots)

        def kernels(slot: int, choice: int) -> Kernels:
            genes = (*first[:slot], choice, *first[slot + 1 :])
            return Counter(lower(space.network(Arch(space.name, genes))))

        base = Counter(lower(space.network(Arch(space.name, first))))
        fixed, slots = Counter(base), []
        for slot, choices in enumerate(space.slots):
            found = [base if choice == 0 else kernels(slot, choice) for choice in range(len(choices))]
            common = reduce(and_, found)
            slots.append(tuple(kernels - common for kernels in found))
            fixed.subtract(slots[-1][0])
        return cls(+fixed, tuple(slots))

    def every(self) -> list[Op]:
        """Each kernel that any architecture has, once."""
        found = dict.fromkeys(self.fixed)
        for choices in self.slots:
            for kernels in choices:
                found.update(dict.fromkeys(kernels))
        return list(found)

    def of_genes(self, genes: tuple[int, ...]) -> Kernels:
        """The kernels of one architecture."""
        total = Counter(self.fixed)
        for choices, gene in zip(self.slots, genes, strict=True):
            total.update(choices[gene])
        return total

    def priced(self, price: Callable[[Op], float]) -> tuple[float, Iterator[list[float]]]:
        """What the fixed part costs, and slot by slot what each choice costs."""

        def cost(kernels: Kernels) -> float:
            return sum(price(op) * count for op, count in kernels.items())

        return cost(self.fixed), ([cost(kernels) for kernels in choices] for choices in self.slots)
