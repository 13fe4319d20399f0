"""The single-path supernet: extraction gives the same output, unsampled weights stay untouched."""

import numpy as np
import pytest
import torch

from hwnas.errors import HwnasError
from hwnas.nn.sliced import Narrowed, SlicedConv2d
from hwnas.nn.supernet import SinglePathSupernet
from hwnas.spaces import SPACES, Arch, Space, get_space

IMAGES = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(5))
SPACE = get_space("proxyless-tiny")


@pytest.fixture(params=[name for name in SPACES if name.endswith("-tiny")])
def space(request: pytest.FixtureRequest) -> Space:
    """Each space for small images: those for large ones are made of the same blocks."""
    return get_space(request.param)


def test_every_space_has_a_small_one() -> None:
    assert {name for name in SPACES if not name.endswith("-tiny")} == {
        name.removesuffix("-tiny") for name in SPACES if name.endswith("-tiny")
    }


def _trained(space: Space, steps: int = 4) -> SinglePathSupernet:
    """A supernet whose weights and BatchNorm statistics are no longer the initial ones."""
    rng = np.random.default_rng(0)
    net = space.supernet(generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        net(IMAGES, space.sample(rng).genes).square().mean().backward()
        optimizer.step()
    return net


def _same(space: Space, found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Bit for bit; where weights are slices, torch may choose other kernels for their strides: up to rounding."""
    sliced = any(isinstance(part, Narrowed) for part in space.supernet().path((0,) * len(space.slots)))
    tolerance = 1e-5 if sliced else 0.0
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_an_extracted_architecture_has_the_same_output(space: Space) -> None:
    net, rng = _trained(space).eval(), np.random.default_rng(1)
    for arch in [space.sample(rng) for _ in range(4)]:
        module = net.extract(arch)
        assert not any(isinstance(part, SlicedConv2d | Narrowed) for part in module.modules())
        with torch.no_grad():
            _same(space, module(IMAGES), net(IMAGES, arch.genes))
        built = space.build(arch)
        built.load_state_dict(module.state_dict())  # the same names and shapes
        with torch.no_grad():
            assert torch.equal(built.eval()(IMAGES), module(IMAGES))


def test_an_extracted_architecture_trains_as_the_supernet_does(space: Space) -> None:
    net, arch = _trained(space, 1).train(), space.sample(np.random.default_rng(6))
    module = net.extract(arch)
    for part in (*net.modules(), *module.modules()):
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    _same(space, module(IMAGES), net(IMAGES, arch.genes))
    module(IMAGES).square().mean().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_an_extracted_architecture_shares_nothing(space: Space) -> None:
    net, arch = _trained(space, 1), space.sample(np.random.default_rng(2))
    module = net.extract(arch)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.zero_()
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(p.requires_grad for p in module.parameters())


def test_what_is_not_sampled_gets_no_gradient_and_does_not_move(space: Space) -> None:
    net = _trained(space, 3)
    arch = Arch(space.name, (0,) * len(space.slots))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer.zero_grad()
    net(IMAGES, arch.genes).square().mean().backward()
    optimizer.step()
    taken = {id(parameter) for part in net.path(arch.genes) for parameter in part.parameters()}
    for name, parameter in net.named_parameters():
        sampled = not name.startswith("slots.") or id(parameter) in taken
        assert (parameter.grad is not None) == sampled, name
        assert sampled or torch.equal(parameter, before[name]), name


SLICED = get_space("spos-joint-tiny")


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_what_a_slice_leaves_out_is_not_moved_by_decay_and_momentum(kind: str) -> None:
    """A path of narrow blocks after wide ones: outside of the slices weights and optimizer state stay, inside not."""
    net = SLICED.supernet(generator=torch.Generator().manual_seed(0))
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    if kind == "sgd":
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    net.guard(optimizer)
    wide, narrow = ([8 * (slot % 4) + width for slot in range(len(SLICED.slots))] for width in (6, 1))

    def step(genes: list[int]) -> None:
        optimizer.zero_grad()
        net(IMAGES, genes).square().mean().backward()
        optimizer.step()

    for genes in (wide, narrow, wide, narrow):
        saved = {name: p.detach().clone() for name, p in net.named_parameters()}
        states = {p: {k: v.clone() for k, v in state.items()} for p, state in optimizer.state.items()}
        step(genes)
        for slot, part in enumerate(net.path(genes)):
            kind_of = SLICED.slots[slot][genes[slot]].partition("@")[0]
            for name, region in part.regions().items():
                key = f"slots.{slot}.{kind_of}.{name}"
                parameter = dict(net.named_parameters()).get(key)
                if parameter is None:
                    continue
                outside = torch.ones_like(parameter, dtype=torch.bool)
                outside[region] = False
                assert torch.equal(parameter[outside], saved[key][outside]), key
                assert not torch.equal(parameter[region], saved[key][region]), key
                for entry, tensor in optimizer.state[parameter].items():
                    if tensor.shape == parameter.shape:
                        before = states.get(parameter, {}).get(entry, torch.zeros_like(parameter))
                        assert torch.equal(tensor[outside], before[outside]), (key, entry)


def test_slices_are_views_of_the_shared_weights() -> None:
    net = SLICED.supernet()
    narrow = net.path([0] * len(SLICED.slots))[1]
    conv = narrow.wide.main.expand.conv
    seen = []
    original = torch.nn.functional.conv2d
    try:
        torch.nn.functional.conv2d = lambda x, weight, *args: seen.append(weight) or original(x, weight, *args)
        narrow(torch.randn(1, 32, 8, 8))
    finally:
        torch.nn.functional.conv2d = original
    assert seen[0].shape == (3, 16, 1, 1)
    assert seen[0].untyped_storage().data_ptr() == conv.weight.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", ["proxyless-tiny", "fbnet-tiny"])
def test_skip_is_the_identity(name: str) -> None:
    space = get_space(name)
    net = space.supernet().eval()
    genes = [0] * len(space.slots)
    skipped = [slot for slot, choices in enumerate(space.slots) if "skip" in choices]
    for slot in skipped:
        genes[slot] = space.slots[slot].index("skip")
    assert len(net.path(genes)) == len(space.slots) - len(skipped)


def test_residual_blocks_start_as_the_identity() -> None:
    x = torch.randn(2, 24, 7, 7)
    block = SPACE.supernet().slots[1]["k5e6"]
    assert block.residual
    assert torch.equal(block(x), x)
    plain = SPACE.supernet(zero_init_residual=False).slots[1]["k5e6"]
    assert not torch.equal(plain(x), x)


def test_batchnorms_of_the_spos_supernet_have_no_scale_and_shift() -> None:
    def affine(module: torch.nn.Module) -> set[bool]:
        return {part.affine for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)}

    spos = get_space("spos-shufflenet-tiny")
    arch = spos.sample(np.random.default_rng(0))
    assert (affine(spos.supernet()), affine(spos.supernet().extract(arch))) == ({False}, {True})
    assert affine(spos.build(arch)) == {True}
    assert affine(SPACE.supernet()) == {True}


def test_names_are_stable() -> None:
    names = dict(SPACE.supernet().named_parameters())
    assert "slots.1.k5e6.convs.expand.conv.weight" in names
    assert "head.classifier.bias" in names
    assert list(names) == list(dict(SPACE.supernet().named_parameters()))


def test_an_architecture_of_another_space_is_refused() -> None:
    with pytest.raises(HwnasError, match="does not fit 'proxyless-tiny'"):
        SPACE.supernet().extract(Arch("proxyless", (0,) * 21))
