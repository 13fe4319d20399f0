"""Modules that are deployed in another form than they are trained in."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn


class Deployable:
    """A module that is replaced by another one, of the same function in inference, before it is deployed."""

    @abstractmethod
    def deployed(self) -> nn.Module:
        """The module that is deployed."""


def deploy(module: nn.Module) -> nn.Module:
    """`module` with every `Deployable` part in its deployed form. Changed in place: give it a copy."""
    if isinstance(module, Deployable):
        return module.deployed()
    for name, child in list(module.named_children()):
        changed = deploy(child)
        if changed is not child:
            setattr(module, name, changed)
    return module
