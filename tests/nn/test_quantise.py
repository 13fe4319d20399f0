"""Quantised convolutions, against the equations of PACT and DoReFa-Net."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from hwnas.export import export_onnx, parity
from hwnas.nn.quantise import CLIPS, QuantConv2d, emulate, quantised_activation, quantised_weight
from hwnas.spaces import get_space
from hwnas.spaces.chain import ConvSpec

BITS = [1, 2, 3, 4, 8]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", BITS)
def test_activations_are_clipped_and_rounded_to_the_nearest_level(bits: int) -> None:
    x, clip = 2 * normal(5000), torch.tensor(1.7)
    found = quantised_activation(x, clip, bits)
    levels = torch.arange(2**bits) * clip / (2**bits - 1)
    nearest = levels[(x.clamp(0, 1.7)[:, None] - levels).abs().argmin(1)]
    torch.testing.assert_close(found, nearest)
    assert len(found.unique()) == 2**bits


@pytest.mark.parametrize("bits", [2, 4])
def test_the_gradient_of_activations_is_pacts(bits: int) -> None:
    """Choi et al. 2018, equation 3: to the input between 0 and the clip, to the clip from what is above it."""
    x = torch.tensor([-1.0, -0.1, 0.2, 0.9, 1.6, 1.8, 5.0], requires_grad=True)
    clip = torch.tensor(1.7, requires_grad=True)
    given = torch.arange(1.0, 8.0)
    quantised_activation(x, clip, bits).backward(given)
    assert x.grad is not None
    assert clip.grad is not None
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 0, 0]
    assert float(clip.grad) == 6 + 7


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_of_several_bits_are_dorefas(bits: int) -> None:
    weight = normal(8, 4, 3, 3)
    found = quantised_weight(weight, bits)
    steps = 2**bits - 1
    placed = np.tanh(weight.double().numpy()) / (2 * np.abs(np.tanh(weight.double().numpy())).max()) + 0.5
    np.testing.assert_allclose(found.numpy(), 2 * np.round(placed * steps) / steps - 1, atol=1e-6)
    assert set(np.round((found.numpy() + 1) / 2 * steps, 4).ravel()) <= set(range(steps + 1))


def test_weights_of_one_bit_are_signs_times_their_mean_size() -> None:
    weight = normal(8, 4, 3, 3)
    weight[0, 0, 0, 0] = 0.0  # a sign of zero would be a third level
    found = quantised_weight(weight, 1)
    size = weight.abs().mean()
    torch.testing.assert_close(found, torch.where(weight < 0, -size, size))


def test_gradients_of_weights_pass_straight_through_the_rounding() -> None:
    """At one bit unchanged; at several that of the tanh scaled to its largest, as if nothing were rounded."""
    given = normal(6, 3, 3, 3, seed=1)
    weight = normal(6, 3, 3, 3).requires_grad_()
    quantised_weight(weight, 1).backward(given)
    assert weight.grad is not None
    assert torch.equal(weight.grad, given)
    weight.grad = None
    quantised_weight(weight, 3).backward(given)
    found = weight.grad
    smooth = weight.detach().clone().requires_grad_()
    bent = torch.tanh(smooth)
    (bent / bent.abs().max()).backward(given)
    torch.testing.assert_close(found, smooth.grad)


@pytest.mark.parametrize("bits", sorted(CLIPS))
def test_a_clip_is_the_best_for_half_normal_inputs(bits: int) -> None:
    x = torch.linspace(0, 8, 40001, dtype=torch.float64)
    density = torch.exp(-x * x / 2)

    def error(clip: float) -> float:
        rounded = quantised_activation(x, torch.tensor(clip, dtype=torch.float64), bits)
        return float((density * (x - rounded) ** 2).sum())

    best = CLIPS[bits]
    assert error(best) <= min(error(best * factor) for factor in (0.5, 0.8, 0.95, 1.05, 1.25, 2.0))


def test_a_convolution_quantises_what_arrives_and_its_weights() -> None:
    conv = QuantConv2d(ConvSpec("c", 4, 6, 3, 2, bits=(2, 4)))
    x = normal(2, 4, 9, 9)
    with torch.no_grad():
        conv.scale.fill_(1.3)
        arriving = quantised_activation(x, torch.tensor(1.3 * CLIPS[4]), 4)
        expected = functional.conv2d(arriving, quantised_weight(conv.weight, 2), stride=2, padding=1)
        torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)
    conv(x).square().sum().backward()
    assert conv.scale.grad is not None
    assert float(conv.scale.grad) != 0


def test_an_exported_net_gives_the_outputs_of_the_quantised_one(tmp_path: Path) -> None:
    space = get_space("resnet18-quant-tiny")
    arch = space.sample(np.random.default_rng(3))
    module = space.build(arch, generator=torch.Generator().manual_seed(0)).eval()
    images = normal(16, *space.input_shape)
    with torch.no_grad():
        expected = module(images)
        emulated = space.build(arch)
        emulated.load_state_dict(module.state_dict())
        emulate(emulated.eval())
        torch.testing.assert_close(emulated(images), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
    assert not any(isinstance(part, QuantConv2d) for part in emulated.modules())
    assert any(isinstance(part, QuantConv2d) for part in module.modules())
    export_onnx(module, space.input_shape, tmp_path / "net.onnx")
    assert parity(module, tmp_path / "net.onnx", images.numpy()).max_rel_diff < 0.05
