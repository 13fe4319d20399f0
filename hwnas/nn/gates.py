"""Stochastic gates on every channel (Chaudhuri et al. 2020, "FiGS", section 3): `gate` puts them into any model.

A channel's mask is a sample of the logistic-sigmoid distribution, ``sigmoid((nu + l) / tau)`` with ``l`` from the
standard logistic distribution and ``pi = sigmoid(nu)`` the chance that the channel is there. All masks of a net come
from one flat vector of logits, in one go. Where a BatchNorm follows, the mask goes into its scale and shift, which
costs next to nothing; elsewhere the layer's output is multiplied.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.nn.cut import Readable, cut
from hwnas.nn.depthwise import DepthwiseConv2d
from hwnas.ops import Shape

TAU = 1e-3
"""Temperature: the paper's, without annealing; between 1e-4 and 1e-2 nothing changes."""

START = 2.5
"""Logits in the beginning: a channel is there with a chance of 0.924."""


CLOSED = 1e-6
"""A smaller mask is zero: products with numbers near 1e-38 take a processor many times as long."""


class _Gated(nn.Module):
    """A layer whose output has a mask; `mask` is set by the net before each forward, None is none."""

    mask: Tensor | None = None


class GatedNorm(_Gated, nn.BatchNorm2d):
    """A BatchNorm whose scale and shift take the mask."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.mask is None else _masked_norm(self, x, self.mask)


class GatedNorm1d(_Gated, nn.BatchNorm1d):
    """A BatchNorm of vectors whose scale and shift take the mask."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.mask is None else _masked_norm(self, x, self.mask)


def _masked_norm(norm: nn.BatchNorm2d | nn.BatchNorm1d, x: Tensor, mask: Tensor) -> Tensor:
    """As torch's BatchNorm, with the mask in its scale and shift."""
    weight = mask if norm.weight is None else norm.weight * mask
    bias = None if norm.bias is None else norm.bias * mask
    momentum = norm.momentum
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:  # the cumulative mean of a recalibration
            momentum = 1.0 / float(norm.num_batches_tracked)
    batch = norm.training or norm.running_mean is None
    return nn.functional.batch_norm(
        x, norm.running_mean, norm.running_var, weight, bias, batch, 0.0 if momentum is None else momentum, norm.eps
    )


class GatedConv(_Gated, nn.Conv2d):
    """A convolution whose output is multiplied by the mask."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.mask is None else y * self.mask.to(y).view(-1, 1, 1)


class GatedDepthwiseConv(GatedConv, DepthwiseConv2d):
    """A depthwise convolution whose output is multiplied by the mask."""


class GatedLinear(_Gated, nn.Linear):
    """A linear layer whose output is multiplied by the mask."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.mask is None else y * self.mask.to(y)


KINDS: dict[type[nn.Module], type[_Gated]] = {
    nn.BatchNorm2d: GatedNorm,
    nn.BatchNorm1d: GatedNorm1d,
    nn.Conv2d: GatedConv,
    DepthwiseConv2d: GatedDepthwiseConv,
    nn.Linear: GatedLinear,
}
"""What each layer becomes."""


def _become(layer: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A layer of another kind with the very same tensors and settings."""
    new = kind.__new__(kind)
    new.__dict__.update(layer.__dict__)
    new.__dict__.pop("mask", None)
    for name in ("_parameters", "_buffers", "_modules"):
        new.__dict__[name] = dict(layer.__dict__[name])
    return new


def without_gate(layer: nn.Module) -> nn.Module:
    """A copy of a layer as it was before it was gated."""
    import copy

    plain = next((plain for plain, gated in KINDS.items() if type(layer) is gated), None)
    if plain is None:
        return copy.deepcopy(layer)
    return copy.deepcopy(_become(layer, plain))


class GatedNet(nn.Module):
    """A net with gates on its channels. In training each forward draws its masks, unless they are set.

    Attributes:
        net: the model; its layers keep their names and tensors.
        logits: float32 [channels], of all groups side by side.
        readable: what was read of the model; `report` says what was tied and what could not be gated.
        tau: temperature of the masks.
        backward_tau: temperature of the gradient's path; None is `tau`, as in the paper. At 0.001 a mask has a gradient
            in one step of a thousand: good for the paper's 250,000 steps, not for a few thousand.
    """

    def __init__(
        self,
        net: nn.Module,
        input_shape: Shape,
        *,
        tau: float = TAU,
        start: float = START,
        backward_tau: float | None = None,
        readable: Readable | None = None,
    ) -> None:
        super().__init__()
        self.tau, self.backward_tau = tau, backward_tau
        self.readable = Readable.of(net, input_shape) if readable is None else readable
        channels = self.readable.channels
        if not channels.count:
            raise HwnasError(f"{type(net).__name__} has no channels that could go: {channels.why_none}")
        self.net = net
        self.logits = nn.Parameter(torch.full((channels.count,), start, dtype=torch.float32))
        places = torch.from_numpy(channels.group_of())
        self.register_buffer("group_of", places, persistent=False)
        indices = [torch.from_numpy(mask.ids) for mask in channels.masks]
        self._sizes = [len(index) for index in indices]
        flat = torch.cat(indices)
        self.register_buffer("_flat", torch.where(flat >= 0, flat, channels.count), persistent=False)
        self._layers: list[_Gated] = []
        for mask in channels.masks:
            path, _, leaf = mask.layer.rpartition(".")
            owner = net.get_submodule(path)
            layer = getattr(owner, leaf)
            if type(layer) not in KINDS:
                raise HwnasError(f"{mask.layer} ({type(layer).__name__}) cannot be gated: use the plain layer of torch")
            gated = _become(layer, KINDS[type(layer)])
            setattr(owner, leaf, gated)
            assert isinstance(gated, _Gated)
            self._layers.append(gated)
        self._masks: Tensor | None = None
        self._noisy: Tensor | None = None

    # -- masks -------------------------------------------------------------------------------------------------------

    def chances(self) -> Tensor:
        """``pi`` of each channel, float32 [channels]."""
        return torch.sigmoid(self.logits.float())

    def alive(self) -> Tensor:
        """Which channels are more likely there than not, bool [channels]."""
        return self.logits.detach() > 0

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Masks of one step, float32 [channels]; a gradient goes through them into the logits.

        Args:
            generator: of the noise, on the CPU; None is torch's default.
        """
        uniform = torch.rand(len(self.logits), generator=generator).to(self.logits.device)
        uniform = uniform.clamp(1e-7, 1 - 1e-7)
        noisy = self.logits.float() + (torch.log(uniform) - torch.log1p(-uniform))
        self._noisy = noisy.detach()
        mask = torch.sigmoid(noisy / self.tau)
        mask = torch.where(mask < CLOSED, 0.0, mask)
        if self.backward_tau is not None:
            smooth = torch.sigmoid(noisy / self.backward_tau)
            mask = smooth + (mask - smooth).detach()
        return mask

    def last_masks(self) -> Tensor:
        """The masks of the last `sample` [channels], without their gradient."""
        return self.alive().float() if self._noisy is None else torch.sigmoid(self._noisy / self.tau)

    def last_slope(self) -> Tensor:
        """The derivative of the last masks by their logits [channels]."""
        tau = self.backward_tau or self.tau
        smooth = torch.sigmoid((self.logits.detach() if self._noisy is None else self._noisy) / tau)
        return smooth * (1 - smooth) / tau

    def set_masks(self, masks: Tensor | None) -> None:
        """Masks [channels] of all further forwards; None draws them in training and has none in inference."""
        self._masks = masks

    def hard(self, alive: Tensor | None = None) -> None:
        """Zeros and ones for masks: those of `alive`, or of the channels that are more likely there."""
        self.set_masks((self.alive() if alive is None else alive).to(self.logits))

    def _hand_out(self, masks: Tensor | None) -> None:
        """Gives each layer its masks; channels that are in every net have a one."""
        if masks is None:
            for layer in self._layers:
                layer.mask = None
            return
        with_one = torch.cat([masks.to(self.logits.dtype), masks.new_ones(1, dtype=self.logits.dtype)])
        index = self._flat
        assert isinstance(index, Tensor)
        parts = torch.split_with_sizes(with_one.index_select(0, index), self._sizes)
        for layer, mask in zip(self._layers, parts, strict=True):
            layer.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        masks = self._masks
        if masks is None:
            masks = self.sample() if self.training else self.alive().to(self.logits)
        device = x.device.type
        with torch.autocast(device, enabled=False):
            self._hand_out(masks)
        try:
            y: Tensor = self.net(x)
        finally:
            self._hand_out(None)
        return y

    # -- what comes of it --------------------------------------------------------------------------------------------

    def report(self) -> list[str]:
        """What was tied, and what could not be gated and why."""
        return self.readable.channels.report()

    def expected(self) -> list[int]:
        """Channels of each group by the paper's rule: the sum of their chances, rounded down (section 3.2)."""
        sums = torch.zeros(len(self.readable.channels.groups), dtype=torch.float64)
        sums.index_add_(0, torch.from_numpy(self.readable.channels.group_of()), self.chances().detach().double().cpu())
        return [math.floor(value + 1e-9) for value in sums.tolist()]

    def keeping(self, widths: list[int] | tuple[int, ...]) -> Tensor:
        """Which channels stay where each group keeps so many: those with the largest chances, bool [channels]."""
        keep = torch.zeros(len(self.logits), dtype=torch.bool)
        for group, width in zip(self.readable.channels.groups, widths, strict=True):
            part = self.logits.detach()[group.first : group.first + group.size].cpu()
            order = part.argsort(descending=True, stable=True)
            keep[group.first + order[:width]] = True
        return keep

    def cut(self, alive: Tensor) -> nn.Module:
        """The plain net of the channels `alive` (bool [channels]), with the weights of this one.

        Raises:
            Severed: nothing of the image would reach the output.
        """
        return cut(self.net, self.readable, alive)


def gate(model: nn.Module, input_shape: Shape, **options: Any) -> GatedNet:
    """Puts a gate on every channel of `model` that can go; the model's layers keep their tensors.

    Args:
        model: anything that torch.fx can trace; its masked layers are replaced by gated ones in place.
        input_shape: one image, (channels, height, width).
        options: those of `GatedNet`.

    Raises:
        HwnasError: it cannot be traced, or has no channel that could go; it says why.
    """
    return GatedNet(model, input_shape, **options)
