"""The single-path supernet of SPOS (Guo et al. 2020, section 3.2): one set of weights for all architectures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hwnas.nn.blocks import ChainNet, with_scale_and_shift
from hwnas.nn.sliced import Narrowed, Region

if TYPE_CHECKING:
    from hwnas.spaces.base import Arch, Space
    from hwnas.spaces.chain import Slice


class SinglePathSupernet(nn.Module):
    """Every choice of every slot as a module of its own, or as a slice of one that it shares; a pass runs one path.

    What a path does not touch gets no gradient (`grad` stays None, so that an optimizer leaves it alone: neither weight
    decay nor momentum moves it), provided that gradients are cleared to None between steps, as torch does by default.
    Parameters are named by slot and choice (``slots.3.k5e6.convs.expand.conv.weight``).

    The BatchNorms of its modules may have no scale and shift, as SPOS trains its own space; those of an extracted
    architecture always do, beginning at one and zero, to be fine-tuned.

    Args:
        space: what the slots belong to; it judges architectures.
        stem: what every path starts with.
        fixed: blocks after the stem that every path has.
        slots: for each slot the modules, by the name of the choice or of what choices share; a choice that has none is
            the identity.
        head: what every path ends with.
        slices: for each slot the choices that are slices of a shared module.
    """

    def __init__(
        self,
        space: Space,
        stem: nn.Module,
        fixed: nn.Sequential,
        slots: Sequence[Mapping[str, nn.Module]],
        head: nn.Sequential,
        slices: Sequence[Mapping[str, Slice]],
    ) -> None:
        super().__init__()
        self.space = space
        self.stem = stem
        self.fixed = fixed
        self.slots = nn.ModuleList(nn.ModuleDict(dict(modules)) for modules in slots)
        self.head = head
        self._slices = slices
        self._taken: tuple[int, ...] = ()

    def path(self, genes: Sequence[int]) -> list[nn.Module]:
        """The chosen modules in order; what is left out is not among them."""
        chosen: list[nn.Module] = []
        for slot, (gene, names) in enumerate(zip(genes, self.space.slots, strict=True)):
            modules, name = self.slots[slot], names[gene]
            assert isinstance(modules, nn.ModuleDict)
            if part := self._slices[slot].get(name):
                chosen.append(Narrowed(modules[part.key], part.block))
            elif name in modules:
                chosen.append(modules[name])
        return chosen

    def forward(self, x: Tensor, genes: Sequence[int]) -> Tensor:
        """Class scores of a batch of images along the path `genes`."""
        self._taken = tuple(genes)
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
        path = (part.plain() if isinstance(part, Narrowed) else deepcopy(part) for part in self.path(arch.genes))
        blocks = nn.Sequential(*deepcopy(self.fixed), *path)
        module = ChainNet(deepcopy(self.stem), blocks, deepcopy(self.head))
        with_scale_and_shift(module)
        return module

    def guard(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the steps of `optimizer` leave alone what the last path did not use of the weights that it sliced.

        The gradient of a sliced weight is zero outside of the slice, but weight decay and momentum would move it. A
        step then changes neither the weight nor the optimizer's state there.
        """
        kept: list[tuple[Tensor, Region, Tensor]] = []

        def tensors() -> Iterator[tuple[Tensor, Region]]:
            for part in self.path(self._taken) if self._taken else ():
                if not isinstance(part, Narrowed):
                    continue
                regions = part.regions()
                for name, parameter in part.wide.named_parameters():
                    region = regions[name]
                    if parameter.grad is None or parameter[region].shape == parameter.shape:
                        continue
                    yield parameter, region
                    for state in optimizer.state.get(parameter, {}).values():
                        if isinstance(state, Tensor) and state.shape == parameter.shape:
                            yield state, region

        @torch.no_grad()
        def before(*_: object) -> None:
            kept.extend((tensor, region, tensor.detach().clone()) for tensor, region in tensors())

        @torch.no_grad()
        def after(*_: object) -> None:
            known = {id(tensor) for tensor, _, _ in kept}
            for tensor, region in tensors():
                if id(tensor) not in known:  # state that this step made: nothing was there before
                    kept.append((tensor, region, torch.zeros_like(tensor)))
            for tensor, region, saved in kept:
                saved[region] = tensor[region]
                tensor.copy_(saved)
            kept.clear()

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
