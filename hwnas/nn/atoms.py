"""The module of an `AtomBlock`: as it is trained, and as it is deployed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hwnas.nn.blocks import ACTIVATIONS, ConvNormAct, Norm
from hwnas.nn.deploy import Deployable
from hwnas.spaces.atoms import AtomBlock


class Branch(nn.Module):
    """The atoms of one kernel: expand, depthwise and project convolution, the last one bare."""

    def __init__(self, block: AtomBlock, kernel: int, atoms: int, norm: Norm) -> None:
        super().__init__()
        self.convs = nn.Sequential()
        for layer in block.layers(kernel, atoms):
            self.convs.add_module(layer.name, ConvNormAct(layer, norm))
        self.project = nn.Conv2d(atoms, block.cout, 1, bias=False)

    @property
    def atoms(self) -> int:
        """How many there are."""
        return self.project.in_channels

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The BatchNorm behind the depthwise convolution: its scales are the importance factors (section 3.2)."""
        norm = self.convs[-1].norm
        assert isinstance(norm, nn.BatchNorm2d)
        return norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.convs(x))
        return y


class Excitation(nn.Module):
    """Squeeze and excitation over the atoms of all branches together (Hu et al. 2018)."""

    def __init__(self, sections: tuple[int, ...], width: int, act: str) -> None:
        super().__init__()
        self.sections = sections
        atoms = sum(sections)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(atoms, width, 1)
        self.act = ACTIVATIONS[act]()
        self.excite = nn.Conv2d(width, atoms, 1)
        self.gate = nn.Sigmoid()

    def forward(self, parts: list[Tensor]) -> list[Tensor]:
        pooled = [self.pool(part) for part in parts]
        squeezed = torch.cat(pooled, 1) if len(pooled) > 1 else pooled[0]
        gates = self.gate(self.excite(self.act(self.reduce(squeezed))))
        if len(parts) == 1:
            return [parts[0] * gates]
        cut = torch.split(gates, list(self.sections), 1)
        return [part * cut[place] for place, part in enumerate(parts)]  # indexed: torch.fx cannot iterate


class AtomSum(nn.Module, Deployable):
    """A block as it is trained: the sum of its branches through one BatchNorm, and the residual if it has one.

    Its branches are named by kernel: ``branches.k3``. One whose atoms are all gone is not there; without any branch a
    residual block is the identity, and its BatchNorm is gone too.
    """

    norm: nn.BatchNorm2d | None

    def __init__(self, block: AtomBlock, norm: Norm) -> None:
        super().__init__()
        self.residual = block.residual
        branches = {f"k{kernel}": Branch(block, kernel, atoms, norm) for kernel, atoms in block.branches}
        self.branches = nn.ModuleDict(branches)
        squeezed = block.squeeze and branches
        self.excitation = (
            Excitation(tuple(atoms for _, atoms in block.branches), block.squeeze, block.act) if squeezed else None
        )
        self.norm = norm(block.cout) if branches else None

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return x
        y: Tensor = self.norm(sum_of(self.branches, self.excitation, x))
        return y + x if self.residual else y

    @torch.no_grad()
    def deployed(self) -> nn.Module:
        """The same function in inference, as `AtomBlock.wire` has it; its tensors are copies."""
        return DeployedAtoms(self) if self.norm is not None else nn.Identity()


def sum_of(branches: nn.ModuleDict, excitation: Excitation | None, x: Tensor) -> Tensor:
    """The sum of what the branches give."""
    parts: list[Branch] = list(branches.values())  # type: ignore[arg-type]
    ends: list[Tensor] = [branch.convs(x) for branch in parts]
    if excitation is not None:
        ends = excitation(ends)
    total: Tensor = parts[0].project(ends[0])
    for branch, end in zip(parts[1:], ends[1:], strict=True):
        total = total + branch.project(end)
    return total


class DeployedAtoms(nn.Module):
    """A block in inference: the BatchNorm's scale is in all projections, its shift in the first one's."""

    def __init__(self, block: AtomSum) -> None:
        super().__init__()
        assert block.norm is not None
        assert block.norm.running_var is not None
        self.residual = block.residual
        self.norm = block.norm
        self.excitation = block.excitation
        self.convs = nn.ModuleList()
        self.projects = nn.ModuleList()
        scale = block.norm.weight / torch.sqrt(block.norm.running_var + block.norm.eps)
        for place, branch in enumerate(block.branches.values()):
            assert isinstance(branch, Branch)
            project = branch.project
            if place:
                project = nn.Conv2d(branch.atoms, project.out_channels, 1, bias=False, device=scale.device)
                project.weight.copy_(branch.project.weight * scale.view(-1, 1, 1, 1))
            self.convs.append(branch.convs)
            self.projects.append(project)

    def forward(self, x: Tensor) -> Tensor:
        if self.excitation is not None:
            ends = self.excitation([convs(x) for convs in self.convs])
            y = self._first(self.projects[0](ends[0]), x)
            for project, end in zip(list(self.projects)[1:], ends[1:], strict=True):
                y = y + project(end)
            return y
        y = self._first(self.projects[0](self.convs[0](x)), x)
        for convs, project in zip(list(self.convs)[1:], list(self.projects)[1:], strict=True):
            y = y + project(convs(x))
        return y

    def _first(self, projected: Tensor, x: Tensor) -> Tensor:
        y: Tensor = self.norm(projected)
        return y + x if self.residual else y
