"""Atoms removed from a net while it trains (Mei et al. 2020, section 3.3), without a change of what it computes.

What a dead atom still emits is a constant: the activation of its BatchNorm's shift. It goes into the running mean of
the BatchNorm behind the sum (`hwnas.nn.silent`). The published code leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwnas.nn.atoms import AtomSum, Branch
from hwnas.nn.blocks import ChainNet, ConvNormAct
from hwnas.nn.prunable import PrunableGroup, Tied, extend, forget, select
from hwnas.nn.silent import absorb, through_layer, through_norm
from hwnas.spaces.atoms import Widths

NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class BranchRef:
    """Where a branch is: its block among the searchable ones, and its kernel's name (``k5``)."""

    block: int
    kernel: str


def atom_blocks(net: ChainNet) -> list[AtomSum]:
    """The searchable blocks, in order."""
    return [block for block in net.blocks if isinstance(block, AtomSum)]


def widths_of(net: ChainNet, kernels: Sequence[int]) -> Widths:
    """The atoms of each kernel that each block has."""
    return tuple(
        tuple(block.branches[f"k{k}"].atoms if f"k{k}" in block.branches else 0 for k in kernels)  # type: ignore[misc]
        for block in atom_blocks(net)
    )


def branches_of(net: ChainNet) -> dict[BranchRef, Branch]:
    """Every branch that is there, in order."""
    return {
        BranchRef(index, kernel): branch
        for index, block in enumerate(atom_blocks(net))
        for kernel, branch in block.branches.items()
        if isinstance(branch, Branch)
    }


def groups_of(net: ChainNet) -> dict[BranchRef, PrunableGroup]:
    """The atoms of every branch as a group."""
    paths = {id(module): path for path, module in net.named_modules()}
    found = {}
    for ref, branch in branches_of(net).items():
        path = paths[id(branch)]
        tied = [Tied(f"{path}.project.weight", 1)]
        for name in branch.convs._modules:
            tied.append(Tied(f"{path}.convs.{name}.conv.weight", 0))
            tied += [Tied(f"{path}.convs.{name}.norm.{tensor}", 0) for tensor in NORM_TENSORS]
        found[ref] = PrunableGroup(path, branch.atoms, tuple(tied), f"{path}.convs.depthwise.norm.weight")
    return found


def importances(net: ChainNet) -> dict[BranchRef, nn.Parameter]:
    """The importance factors of every branch's atoms: the scales of the BatchNorm behind its depthwise convolution."""
    return {ref: branch.norm.weight for ref, branch in branches_of(net).items()}


@torch.no_grad()
def remove_atoms(
    net: ChainNet,
    dead: Mapping[BranchRef, Tensor],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    shadows: Sequence[dict[str, Tensor]] = (),
) -> int:
    """Removes the atoms that `dead` marks (bool [atoms] of a branch). Returns how many went.

    In inference the net computes what it did, exactly where the importance of what goes is zero. A block that changes
    the shape keeps its most important atom; a residual block without atoms becomes the identity, and the constant that
    it still gives goes into the running means of the BatchNorms behind it.
    """
    dead = _with_a_survivor(net, dead)
    _fold(net, dead)
    groups, removed = groups_of(net), 0
    for ref, mask in dead.items():
        removed += int(mask.sum())
        if mask.all():
            _drop_branch(net, ref, optimizer, shadows)
        elif mask.any():
            select(net, groups[ref], torch.nonzero(~mask).flatten(), optimizer=optimizer, shadows=shadows)
    for index, block in enumerate(atom_blocks(net)):
        if not block.branches and block.norm is not None:
            _become_identity(net, index, optimizer, shadows)
    return removed


@torch.no_grad()
def add_atoms(
    net: ChainNet,
    ref: BranchRef,
    count: int,
    generator: torch.Generator,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    shadows: Sequence[dict[str, Tensor]] = (),
) -> None:
    """Adds fresh atoms to a branch that is there. Their projections are zero: the net computes what it did.

    Weights are drawn as those of a new net are; their importance is the mean of the branch's.
    """
    group = groups_of(net)[ref]
    scale = float(importances(net)[ref].abs().mean())
    added = {}
    for tied in group.tied:
        like: Tensor = net.get_parameter(tied.name) if _is_parameter(net, tied.name) else net.get_buffer(tied.name)
        shape = list(like.shape)
        shape[tied.dim] = count
        new = torch.zeros(shape)
        if tied.name == group.importance:
            new.fill_(scale)
        elif tied.name.endswith((".norm.weight", ".running_var")):
            new.fill_(1.0)
        elif tied.name.endswith(".conv.weight"):
            fan_out = like.shape[0] * like.shape[2] * like.shape[3]
            new.normal_(std=(2 / fan_out) ** 0.5, generator=generator)
        added[tied.name] = new
    extend(net, group, added, optimizer=optimizer, shadows=shadows)


def _is_parameter(net: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    return leaf in net.get_submodule(path)._parameters


def cut_to(
    net: ChainNet,
    kernels: Sequence[int],
    widths: Widths,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    shadows: Sequence[dict[str, Tensor]] = (),
) -> None:
    """Gives a net the shape of `widths`, its first atoms kept: a place to load a smaller net's tensors into."""
    for ref, branch in branches_of(net).items():
        wanted = widths[ref.block][kernels.index(int(ref.kernel[1:]))]
        group = groups_of(net)[ref]
        if not wanted:
            _drop_branch(net, ref, optimizer, shadows)
        elif wanted < branch.atoms:
            select(net, group, torch.arange(wanted), optimizer=optimizer, shadows=shadows)
    for index, block in enumerate(atom_blocks(net)):
        if not block.branches and block.norm is not None:
            _become_identity(net, index, optimizer, shadows)


def _with_a_survivor(net: ChainNet, dead: Mapping[BranchRef, Tensor]) -> dict[BranchRef, Tensor]:
    """`dead` without the most important atom of a block that would lose all and cannot be the identity."""
    found = {ref: mask.clone() for ref, mask in dead.items()}
    branches = branches_of(net)
    for index, block in enumerate(atom_blocks(net)):
        mine = [ref for ref in branches if ref.block == index]
        if block.residual or not mine or not all(ref in found and bool(found[ref].all()) for ref in mine):
            continue
        best = max(mine, key=lambda ref: float(branches[ref].norm.weight.abs().max()))
        found[best][int(branches[best].norm.weight.abs().argmax())] = False
    return found


def _fold(net: ChainNet, dead: Mapping[BranchRef, Tensor]) -> None:
    """Takes what the dead atoms emit off the running mean of their block's BatchNorm."""
    blocks, branches = atom_blocks(net), branches_of(net)
    for ref, mask in dead.items():
        branch, norm, last = branches[ref], blocks[ref.block].norm, branches[ref].convs[-1]
        assert norm is not None
        assert isinstance(last, ConvNormAct)
        emitted = torch.zeros_like(branch.norm.bias, dtype=torch.float64)
        emitted[mask] = last.act(branch.norm.bias[mask].double())
        absorb(norm, through_layer(branch.project, emitted))


def _drop_branch(
    net: ChainNet, ref: BranchRef, optimizer: torch.optim.Optimizer | None, shadows: Sequence[dict[str, Tensor]]
) -> None:
    block = atom_blocks(net)[ref.block]
    branch = branches_of(net)[ref]
    gone = {id(parameter) for parameter in branch.parameters()}
    names = [name for name, parameter in net.named_parameters() if id(parameter) in gone]
    forget(names, net, optimizer=optimizer, shadows=shadows)
    del block.branches[ref.kernel]


def _become_identity(
    net: ChainNet, index: int, optimizer: torch.optim.Optimizer | None, shadows: Sequence[dict[str, Tensor]]
) -> None:
    """A residual block without atoms gives its input and a constant; the constant moves on to where it is undone."""
    blocks = atom_blocks(net)
    norm = blocks[index].norm
    assert norm is not None
    constant = through_norm(norm, torch.zeros_like(norm.bias, dtype=torch.float64))
    consumers: list[ConvNormAct] = []
    for block in blocks[index + 1 :]:
        consumers += [branch.convs[0] for branch in block.branches.values()]  # type: ignore[index,misc]
        if not block.residual:
            break
    else:
        head = net.head[0]
        assert isinstance(head, ConvNormAct)
        consumers.append(head)
    for consumer in consumers:
        absorb(consumer.norm, through_layer(consumer.conv, constant))
    gone = {id(norm.weight), id(norm.bias)}
    names = [name for name, parameter in net.named_parameters() if id(parameter) in gone]
    forget(names, net, optimizer=optimizer, shadows=shadows)
    blocks[index].norm = None
