"""What each choice of a space adds in kernels: a space lowered, so that architectures add up slot by slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from hwnas.costs import Prices
from hwnas.latency.lowering import Lower, State, Step
from hwnas.network import Network
from hwnas.ops import Op
from hwnas.spaces.base import Arch, Space

Kernels = tuple[Op, ...]
"""Kernels in the order in which they run."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice in the state that the slots before it leave: what it adds, and the state that it leaves."""

    kernels: Kernels
    after: int


@dataclass(frozen=True, slots=True)
class SpaceKernels:
    """The kernels of a space's architectures.

    Where conversions of layout fall is settled between neighbours. What a slot sees of all before it is one state (in
    which layout its input arrives), so that an architecture is priced by a walk over its slots.

    Attributes:
        stem: kernels before the first slot, which starts in state 0.
        slots: for each slot and each state that it can be reached in, its choices.
        tail: for each state after the last slot, the kernels behind it.
    """

    stem: Kernels
    slots: tuple[dict[int, tuple[Choice, ...]], ...]
    tail: dict[int, Kernels]

    @classmethod
    def of(cls, space: Space, lower: Lower) -> SpaceKernels:
        """Lowers one architecture for each slot, state and choice.

        Raises:
            ValueError: the operators of the space's networks are not those of its slots, in their order.
        """
        numbers: dict[State, int] = {}
        first = (0,) * len(space.slots)
        lengths = [[len(space.slot_ops(s, c)) for c in range(len(choices))] for s, choices in enumerate(space.slots)]
        start = _start(space, first)

        def segments(genes: tuple[int, ...]) -> list[list[Step]]:
            """The steps of an architecture: before the slots, of each slot, behind them."""
            steps = lower.steps(space.network(Arch(space.name, genes)))
            ends = accumulate((row[gene] for row, gene in zip(lengths, genes, strict=True)), initial=start)
            cuts = [0, *ends, len(steps)]
            return [steps[begin:end] for begin, end in pairwise(cuts)]

        stem = segments(first)[0]
        prefixes: dict[int, tuple[int, ...]] = {numbers.setdefault(_state(stem), 0): ()}
        slots, tails = [], {}
        for slot, choices in enumerate(space.slots):
            found: dict[int, tuple[Choice, ...]] = {}
            following: dict[int, tuple[int, ...]] = {}
            for state, prefix in prefixes.items():
                row = []
                for choice in range(len(choices)):
                    parts = segments((*prefix, choice, *first[slot + 1 :]))
                    steps = parts[slot + 1]
                    after = numbers.setdefault(_state(steps), len(numbers)) if steps else state
                    following.setdefault(after, (*prefix, choice))
                    row.append(Choice(_kernels(steps), after))
                    if slot == len(space.slots) - 1:
                        tails[after] = _kernels(parts[-1])
                found[state] = tuple(row)
            slots.append(found)
            prefixes = following
        return cls(_kernels(stem), tuple(slots), tails)

    def every(self) -> list[Op]:
        """Each kernel that any architecture has, once."""
        return list(dict.fromkeys(op for kernels in self.chains() for op in kernels))

    def chains(self) -> Iterator[Kernels]:
        """All that is priced by itself: what stands before the slots, choices, what stands behind."""
        yield self.stem
        for states in self.slots:
            for row in states.values():
                yield from (choice.kernels for choice in row)
        yield from self.tail.values()

    def of_genes(self, genes: Sequence[int]) -> Kernels:
        """The kernels of one architecture."""
        found, state = self.stem, 0
        for states, gene in zip(self.slots, genes, strict=True):
            choice = states[state][gene]
            found += choice.kernels
            state = choice.after
        return found + self.tail[state]

    def prices(self, cost: Callable[[Kernels], float], offset: float = 0.0) -> Prices:
        """What choices cost where kernels that follow each other cost ``cost(kernels)``, and every net `offset`."""
        states = 1 + max(*(state for slot in self.slots for state in slot), *self.tail)
        width = max(len(row) for slot in self.slots for row in slot.values())
        table = np.full((len(self.slots), states, width), np.inf)
        after = np.zeros(table.shape, np.intp)
        for slot, found in enumerate(self.slots):
            for state, row in found.items():
                table[slot, state, : len(row)] = [cost(choice.kernels) for choice in row]
                after[slot, state, : len(row)] = [choice.after for choice in row]
        tail = np.full(states, np.inf)
        tail[list(self.tail)] = [cost(kernels) for kernels in self.tail.values()]
        return Prices.of_walk(cost(self.stem) + offset, table, after, tail)


def _kernels(steps: Sequence[Step]) -> Kernels:
    return tuple(op for step in steps for op in step.kernels)


def _state(steps: Sequence[Step]) -> State:
    return steps[-1].state


def _start(space: Space, genes: tuple[int, ...]) -> int:
    """Where the operators of the slots begin in every network of the space."""
    network: Network = space.network(Arch(space.name, genes))
    wanted = [op for slot, gene in enumerate(genes) for op in space.slot_ops(slot, gene)]
    for start in range(len(network.ops) - len(wanted) + 1):
        if list(network.ops[start : start + len(wanted)]) == wanted:
            return start
    raise ValueError(f"the networks of {space.name} do not have the operators of its slots, in their order")
