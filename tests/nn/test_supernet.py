"""The single-path supernet: extraction gives the same output, unsampled weights stay untouched."""

import numpy as np
import pytest
import torch

from hwnas.errors import HwnasError
from hwnas.spaces import Arch, get_space

IMAGES = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(5))
SPACE = get_space("proxyless-tiny")


def _trained(steps: int = 4):
    """A supernet whose weights and BatchNorm statistics are no longer the initial ones."""
    rng = np.random.default_rng(0)
    net = SPACE.supernet(generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        net(IMAGES, SPACE.sample(rng).genes).square().mean().backward()
        optimizer.step()
    return net


def test_an_extracted_architecture_has_exactly_the_same_output() -> None:
    net, rng = _trained().eval(), np.random.default_rng(1)
    for arch in [SPACE.sample(rng) for _ in range(4)]:
        module = net.extract(arch)
        with torch.no_grad():
            assert torch.equal(module(IMAGES), net(IMAGES, arch.genes))
        built = SPACE.build(arch)
        built.load_state_dict(module.state_dict())  # the same names and shapes
        with torch.no_grad():
            assert torch.equal(built.eval()(IMAGES), module(IMAGES))


def test_an_extracted_architecture_shares_nothing() -> None:
    net, arch = _trained(1), SPACE.sample(np.random.default_rng(2))
    module = net.extract(arch)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(p.requires_grad for p in module.parameters())


def test_what_is_not_sampled_gets_no_gradient_and_does_not_move() -> None:
    net = _trained(3)
    arch = Arch(SPACE.name, (0,) * len(SPACE.slots))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer.zero_grad()
    net(IMAGES, arch.genes).square().mean().backward()
    optimizer.step()
    for name, parameter in net.named_parameters():
        sampled = not name.startswith("slots.") or name.split(".")[2] == "k3e3"
        assert (parameter.grad is not None) == sampled, name
        assert sampled or torch.equal(parameter, before[name]), name


def test_skip_is_the_identity() -> None:
    net = SPACE.supernet().eval()
    genes = [0] * len(SPACE.slots)
    skipped = [slot for slot, choices in enumerate(SPACE.slots) if "skip" in choices]
    for slot in skipped:
        genes[slot] = SPACE.slots[slot].index("skip")
    assert len(net.path(genes)) == len(SPACE.slots) - len(skipped)


def test_residual_blocks_start_as_the_identity() -> None:
    x = torch.randn(2, 24, 7, 7)
    block = SPACE.supernet().slots[1]["k5e6"]
    assert block.residual
    assert torch.equal(block(x), x)
    plain = SPACE.supernet(zero_init_residual=False).slots[1]["k5e6"]
    assert not torch.equal(plain(x), x)


def test_names_are_stable() -> None:
    names = dict(SPACE.supernet().named_parameters())
    assert "slots.1.k5e6.convs.expand.conv.weight" in names
    assert "head.classifier.bias" in names
    assert list(names) == list(dict(SPACE.supernet().named_parameters()))


def test_an_architecture_of_another_space_is_refused() -> None:
    with pytest.raises(HwnasError, match="does not fit 'proxyless-tiny'"):
        SPACE.supernet().extract(Arch("proxyless", (0,) * 21))
