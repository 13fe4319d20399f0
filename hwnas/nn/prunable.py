"""Channels that live and die together, and the surgery that removes them, by parameter name.

A `PrunableGroup` says which tensors of a module have one entry for each channel of a group. What decides which channels
go (AtomNAS' importance factors, or a gate) knows the group only; what removes them knows nothing of why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Tied:
    """A tensor of a module that has one entry for each channel of a group.

    Attributes:
        name: of the parameter or buffer.
        dim: along which its channels lie.
        start: where the group's first channel is, in a tensor of several groups.
    """

    name: str
    dim: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class PrunableGroup:
    """Channels each of which is there in all of `tied`, or in none.

    Attributes:
        name: of the group.
        size: channels.
        tied: all tensors that have them.
        importance: the name of the vector that scales what each channel gives, where there is one.
    """

    name: str
    size: int
    tied: tuple[Tied, ...]
    importance: str = ""


Change = Callable[[Tensor, Tied, str], Tensor]
"""Makes of a tensor, where its channels lie, and what it is (``value``, ``state``) the changed one."""


def select(
    module: nn.Module,
    group: PrunableGroup,
    keep: Tensor,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    shadows: Sequence[dict[str, Tensor]] = (),
) -> None:
    """Keeps the channels `keep` of a group: in the module, its optimizer's state, and `shadows` of its parameters.

    Everything is matched by name and by parameter, never by position. Values are copied, not changed.

    Args:
        module: its parameters become new ones, at the same names.
        group: of the module.
        keep: whole numbers [n], rising: the channels that stay; at least one.
        optimizer: every state that has a parameter's shape is cut as the parameter is.
        shadows: tensors by the parameter's name, such as moving averages.
    """

    def cut(tensor: Tensor, tied: Tied, _: str) -> Tensor:
        rows = torch.arange(tensor.shape[tied.dim], device=tensor.device)
        wanted = torch.cat([rows[: tied.start], tied.start + keep.to(tensor.device), rows[tied.start + group.size :]])
        return tensor.index_select(tied.dim, wanted)

    _change(module, group, cut, optimizer, shadows)


def extend(
    module: nn.Module,
    group: PrunableGroup,
    added: Mapping[str, Tensor],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    shadows: Sequence[dict[str, Tensor]] = (),
) -> None:
    """Adds channels behind those of a group, with the values `added` of each of its tensors, by name.

    The optimizer's state of what is new is zero; in `shadows` it is the new values.
    """

    def append(tensor: Tensor, tied: Tied, what: str) -> Tensor:
        new = added[tied.name].to(tensor)
        new = torch.zeros_like(new) if what == "state" else new
        end = tied.start + group.size
        before, behind = tensor.narrow(tied.dim, 0, end), tensor.narrow(tied.dim, end, tensor.shape[tied.dim] - end)
        return torch.cat([before, new, behind], tied.dim)

    _change(module, group, append, optimizer, shadows)


def _change(
    module: nn.Module,
    group: PrunableGroup,
    change: Change,
    optimizer: torch.optim.Optimizer | None,
    shadows: Sequence[dict[str, Tensor]],
) -> None:
    """Applies `change` to all of a group's tensors, wherever they are kept."""
    touched: dict[nn.Module, bool] = {}
    for tied in group.tied:
        path, _, leaf = tied.name.rpartition(".")
        owner = module.get_submodule(path)
        touched.setdefault(owner, _is_depthwise(owner))
        old = getattr(owner, leaf)

        def changed(tensor: Tensor, what: str, tied: Tied = tied) -> Tensor:
            return _laid_out_like(change(tensor, tied, what), tensor)

        if isinstance(old, nn.Parameter):
            new = nn.Parameter(changed(old.detach(), "value"), requires_grad=old.requires_grad)
            setattr(owner, leaf, new)
            if optimizer is not None:
                _replace(optimizer, old, new, changed)
            for shadow in shadows:
                shadow[tied.name] = changed(shadow[tied.name], "value")
        else:
            setattr(owner, leaf, changed(old, "value"))
    for owner, depthwise in touched.items():
        _refit(owner, depthwise)


def _laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    if tensor.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.contiguous()


def _replace(
    optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, changed: Callable[[Tensor, str], Tensor]
) -> None:
    for entry in optimizer.param_groups:
        entry["params"] = [new if parameter is old else parameter for parameter in entry["params"]]
    state = optimizer.state.pop(old, None)
    if state is not None:
        optimizer.state[new] = {
            key: changed(value, "state") if isinstance(value, Tensor) and value.shape == old.shape else value
            for key, value in state.items()
        }


def forget(
    names: Iterable[str],
    module: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    shadows: Sequence[dict[str, Tensor]] = (),
) -> None:
    """Drops parameters, which are about to leave the module, from its optimizer and from `shadows`."""
    parameters: Mapping[str, nn.Parameter] = dict(module.named_parameters())
    for name in names:
        if optimizer is not None:
            for entry in optimizer.param_groups:
                entry["params"] = [p for p in entry["params"] if p is not parameters[name]]
            optimizer.state.pop(parameters[name], None)
        for shadow in shadows:
            shadow.pop(name, None)


def _is_depthwise(owner: nn.Module) -> bool:
    return isinstance(owner, nn.Conv2d) and owner.weight.shape[1] == 1 and owner.in_channels == owner.out_channels


def _refit(owner: nn.Module, depthwise: bool) -> None:
    """Makes a layer's numbers fit its tensors."""
    if isinstance(owner, nn.Conv2d):
        owner.out_channels = owner.weight.shape[0]
        owner.groups = owner.out_channels if depthwise else owner.groups
        owner.in_channels = owner.weight.shape[1] * owner.groups
    elif isinstance(owner, nn.BatchNorm1d | nn.BatchNorm2d):
        assert owner.running_mean is not None
        owner.num_features = owner.running_mean.shape[0]
    elif isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape
