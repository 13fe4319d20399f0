"""Nets with gates on their channels (Chaudhuri et al. 2020, "FiGS"): any number of channels of every group.

A space is a net, whole; its groups of channels are found by reading it (`hwnas.trace.channels`). An architecture says
how many channels of each group are there. A group with none takes its operator with it (`hwnas.trace.narrow`). It has
one row for each group, with one number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from hwnas.errors import HwnasError
from hwnas.network import Network
from hwnas.ops import Shape
from hwnas.spaces.widths import AtomArch, Branch, Widths, WidthSpace

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hwnas.nn.cut import Readable
    from hwnas.trace.channels import Channels, Group
    from hwnas.trace.narrow import Remains

MakeNet = Callable[[Shape, int], "nn.Module"]
"""A net for images of a shape and so many classes."""


class GateSpace(WidthSpace):
    """The architectures of one net.

    Attributes:
        name: as typed on the command line.
        input_shape: one image, channels first.
        num_classes: outputs of the classifier.
        full: channels of each group.
        groups: of channels that are there together or not at all.
    """

    kernels: tuple[int, ...] = ()

    def __init__(self, name: str, make: MakeNet, input_shape: Shape, num_classes: int) -> None:
        self.name, self.input_shape, self.num_classes = name, input_shape, num_classes
        self._make = make
        self._left = lru_cache(4096)(self._remains)
        self._networks = lru_cache(64)(self._network)

    @cached_property
    def readable(self) -> Readable:
        """What was read of the net; no weights are made for it."""
        import torch

        from hwnas.nn.cut import Readable
        from hwnas.trace.chance import unseeded
        from hwnas.trace.torch_fx import skeleton

        with torch.random.fork_rng(devices=[]):
            net = skeleton(lambda: self._make(self.input_shape, self.num_classes))
        found = Readable.of(net, self.input_shape)
        shapes = [value.shape for value in found.channels.outputs]
        if shapes != [(self.num_classes,)]:
            raise HwnasError(
                f"{self.name} gives {' and '.join('x'.join(map(str, shape)) for shape in shapes)} for an image: "
                f"{self.num_classes} numbers, one for each class, were expected"
            )
        if not found.channels.groups:
            raise HwnasError(f"{self.name} has no channels that could go: {found.channels.why_none}")
        if chance := unseeded(found.reading.traced):
            raise HwnasError(
                f"{self.name}: {chance} draws from torch's own generator, and the same seed would give another net: "
                "use nn.Dropout, or leave it out"
            )
        return found

    @property
    def channels(self) -> Channels:
        """The groups, and which values have them."""
        return self.readable.channels

    @property
    def groups(self) -> tuple[Group, ...]:
        """Of channels, in the order of the net."""
        return self.channels.groups

    @cached_property
    def full(self) -> Widths:  # type: ignore[override]
        """Channels of each group."""
        return tuple((group.size,) for group in self.groups)

    # -- architectures -----------------------------------------------------------------------------------------------

    def viable(self, empty: frozenset[Branch]) -> bool:
        return self._left(frozenset(group for group, _ in empty)) is not None

    def _remains(self, empty: frozenset[int]) -> Remains | None:
        from hwnas.trace.narrow import Severed, remains

        try:
            return remains(self.channels, empty)
        except Severed:
            return None

    def check(self, arch: AtomArch) -> None:
        self.check_rows(arch)
        for group, row in zip(self.groups, arch.widths, strict=True):
            if len(row) != 1 or not 0 <= row[0] <= group.size:
                raise HwnasError(f"{self.name}: {group.name} has 0 to {group.size} channels, not {list(row)}")
        if not self.viable(self.empty_of(arch.widths)):
            raise HwnasError(f"{self.name}: nothing of the image would reach the output of this architecture")

    def network(self, arch: AtomArch) -> Network:
        return self._networks(arch)

    def _network(self, arch: AtomArch) -> Network:
        from hwnas.trace.narrow import narrowed

        self.check(arch)
        left = self._left(frozenset(group for group, _ in self.empty_of(arch.widths)))
        assert left is not None
        found = narrowed(self.channels, left, [row[0] for row in arch.widths])
        if found.unknown:
            names = ", ".join(sorted(set(found.unknown))[:3])
            raise HwnasError(
                f"{self.name}: nobody here knows what {names} costs, so that no budget can be kept: make it without"
            )
        return replace(found, space=self.name)

    def supernet(self, *, generator: torch.Generator | None = None) -> nn.Module:
        """The whole net with fresh weights drawn from `generator`."""
        import torch

        from hwnas.nn.blocks import init_weights

        with torch.random.fork_rng(devices=[]):
            net = self._make(self.input_shape, self.num_classes)
        init_weights(net, generator=generator)
        return net

    def build(self, arch: AtomArch, *, generator: torch.Generator | None = None) -> nn.Module:
        import torch

        from hwnas.nn.blocks import init_weights
        from hwnas.nn.cut import cut

        self.check(arch)
        with torch.random.fork_rng(devices=[]):
            net = self._make(self.input_shape, self.num_classes)
        alive = torch.zeros(self.channels.count, dtype=torch.bool)
        for group, row in zip(self.groups, arch.widths, strict=True):
            alive[group.first : group.first + row[0]] = True
        found = cut(net, self.readable, alive)
        init_weights(found, generator=generator)
        return found

    def describe(self, arch: AtomArch) -> list[str]:
        """The groups in words: ``layer1.0.conv1: 40 of 64``."""
        return [f"{group.name}: {row[0]} of {group.size}" for group, row in zip(self.groups, arch.widths, strict=True)]


@dataclass(frozen=True, slots=True)
class GateFamily:
    """A named space before its image size and number of classes are chosen; as `hwnas.spaces.base.Family`."""

    net: Callable[[str], MakeNet]
    image_size: int
    image_sizes: tuple[int, int]
    num_classes: int
    variants: str = ""

    def make(self, name: str, input_shape: Shape, num_classes: int) -> GateSpace:
        """The space; `name` may have a variant behind an ``@``."""
        return GateSpace(name, self.net(name.partition("@")[2]), input_shape, num_classes)
