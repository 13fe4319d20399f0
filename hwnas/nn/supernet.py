"""The single-path supernet of SPOS (Guo et al. 2020, section 3.2): one set of weights for all architectures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hwnas.nn.blocks import ChainNet, with_scale_and_shift

if TYPE_CHECKING:
    from hwnas.spaces.base import Arch, Space


class SinglePathSupernet(nn.Module):
    """Every choice of every slot as a module of its own; a forward pass runs one path.

    What a path does not touch gets no gradient (`grad` stays None, so that an optimizer leaves it alone: neither weight
    decay nor momentum moves it), provided that gradients are cleared to None between steps, as torch does by default.
    Parameters are named by slot and choice (``slots.3.k5e6.convs.expand.conv.weight``).

    The BatchNorms of its modules may have no scale and shift, as SPOS trains its own space; those of an extracted
    architecture always do, beginning at one and zero, to be fine-tuned.

    Args:
        space: what the slots belong to; it judges architectures.
        stem: what every path starts with.
        fixed: blocks after the stem that every path has.
        slots: for each slot the choices by name, in the space's order; None is the identity.
        head: what every path ends with.
    """

    def __init__(
        self,
        space: Space,
        stem: nn.Module,
        fixed: nn.Sequential,
        slots: Sequence[Mapping[str, nn.Module | None]],
        head: nn.Sequential,
    ) -> None:
        super().__init__()
        self.space = space
        self.stem = stem
        self.fixed = fixed
        self.slots = nn.ModuleList(
            nn.ModuleDict({name: choice for name, choice in choices.items() if choice is not None}) for choices in slots
        )
        self.head = head

    def path(self, genes: Sequence[int]) -> list[nn.Module]:
        """The chosen modules in order; what is left out is not among them."""
        chosen = []
        for slot, (gene, names) in enumerate(zip(genes, self.space.slots, strict=True)):
            choices = self.slots[slot]
            assert isinstance(choices, nn.ModuleDict)
            if names[gene] in choices:
                chosen.append(choices[names[gene]])
        return chosen

    def forward(self, x: Tensor, genes: Sequence[int]) -> Tensor:
        """Class scores of a batch of images along the path `genes`."""
        x = self.fixed(self.stem(x))
        for block in self.path(genes):
            x = block(x)
        y: Tensor = self.head(x)
        return y

    @torch.no_grad()
    def extract(self, arch: Arch) -> ChainNet:
        """The architecture alone, with a copy of its weights and BatchNorm statistics: a plain module, same output.

        It has the names and shapes of ``space.build(arch)``.

        Raises:
            HwnasError: the architecture is not of this space.
        """
        self.space.check(arch)
        module = deepcopy(ChainNet(self.stem, nn.Sequential(*self.fixed, *self.path(arch.genes)), self.head))
        with_scale_and_shift(module)
        return module
