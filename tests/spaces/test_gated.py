"""Spaces of gates: their nets, architectures and JSON; what a gated net computes is what the cut one does."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from scrambled import scrambled
from torch import Tensor

from hwnas.errors import HwnasError, UsageError
from hwnas.nn.gates import GatedNet
from hwnas.spaces import AtomArch, GateSpace, atoms_from_json, find_space
from hwnas.trace import ops_of


@cache
def space_of(name: str) -> GateSpace:
    space = find_space(name)
    assert isinstance(space, GateSpace)
    return space


def random_arch(space: GateSpace, seed: int, empty: float) -> AtomArch:
    rng = np.random.default_rng(seed)
    widths = tuple((int(rng.integers(1, row[0] + 1)) * (rng.random() >= empty),) for row in space.full)
    return AtomArch(space.name, space.revived(widths, {branch: rng.random() for branch in space.branches()}))


def random_alive(space: GateSpace, arch: AtomArch, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    alive = torch.zeros(space.channels.count, dtype=torch.bool)
    for group, (width,) in zip(space.groups, arch.widths, strict=True):
        alive[group.first + torch.from_numpy(rng.permutation(group.size)[:width])] = True
    return alive


@pytest.mark.parametrize(
    "name", ["figs-fbnet-tiny", "figs-oneshot-tiny", "figs-resnet50-tiny", "torchvision:squeezenet1_1"]
)
def test_the_net_cut_by_its_gates_is_the_gated_net_with_hard_masks(name: str) -> None:
    space = space_of(name)
    image = torch.randn(1, *space.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    net = GatedNet(scrambled(space.supernet(), 2), space.input_shape, readable=space.readable).eval()
    for seed, empty in enumerate((0.0, 0.2)):
        arch = random_arch(space, seed, empty)
        alive = random_alive(space, arch, seed)
        net.hard(alive)
        with torch.no_grad():
            wanted, plain = net(image), net.cut(alive).eval()
            found = plain(image)
        assert float(wanted.abs().max()) > 1e-6
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-9
        network = space.network(arch)
        assert network.params == sum(parameter.numel() for parameter in plain.parameters())
        assert [op.key for op in ops_of(plain, space.input_shape).ops] == [op.key for op in network.ops]
        # what is built of the description takes the weights
        space.build(arch).double().load_state_dict(plain.state_dict())


@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [
        ("figs-resnet50", 4_089_184_256, 25_557_032),  # torchvision's docs: 4.09 GFLOPS, 25.6M
        ("torchvision:resnet18", 1_814_073_344, 11_689_512),  # torchvision's docs: 1.81 GFLOPS, 11.7M
    ],
)
def test_published_nets_cost_what_is_published(name: str, macs: int, params: int) -> None:
    network = space_of(name).network(space_of(name).supernet_arch)
    assert (network.macs, network.params) == (macs, params)


def test_an_architecture_is_read_back_and_nothing_in_the_file_is_trusted() -> None:
    space = space_of("figs-fbnet-tiny")
    arch = random_arch(space, 3, 0.2)
    document = json.loads(json.dumps(space.to_json(arch)))
    again, read = atoms_from_json(document)
    assert (again.name, read) == (space.name, arch)
    for change, message in [
        ({"widths": document["widths"][1:]}, "has 25 blocks, the architecture has 24"),
        ({"widths": [[10**6], *document["widths"][1:]], "layers": None}, "has 0 to 16 channels"),
        ({"widths": [[0]] * 25, "layers": None}, "nothing of the image would reach the output"),
        ({"space": "torchvision:nothing"}, "torchvision has no classifier"),
    ]:
        with pytest.raises(HwnasError, match=message):
            atoms_from_json({**document, **change})


def test_an_operator_without_channels_is_gone_and_the_rest_of_its_slot_stays() -> None:
    space = space_of("figs-fbnet-tiny")
    groups = {group.name: number for number, group in enumerate(space.groups)}
    widths = [list(row) for row in space.full]
    widths[groups["slots.2.ops.k3e6.expand.conv"]][0] = 0
    one = space.network(AtomArch(space.name, tuple(map(tuple, widths))))
    assert len(one.ops) == len(space.network(space.supernet_arch).ops) - 3
    assert not any("slots.2.ops.k3e6" in node.name for node in one.nodes)
    widths[groups["slots.2.ops.k5e6.expand.conv"]][0] = 0  # a slot that keeps the shape is skipped
    both = space.network(AtomArch(space.name, tuple(map(tuple, widths))))
    assert len(both.ops) == len(one.ops) - 3
    widths[groups["slots.1.ops.k3e6.expand.conv"]][0] = widths[groups["slots.1.ops.k5e6.expand.conv"]][0] = 0
    with pytest.raises(HwnasError, match="nothing of the image would reach the output"):
        space.check(AtomArch(space.name, tuple(map(tuple, widths))))
    assert len(space_of("figs-fbnet-tiny@full").groups) > len(space.groups)


def test_unknown_names_and_sizes_are_refused() -> None:
    for name, message in [
        ("figs-fbnet@all", "write figs-fbnet@full"),
        ("torchvision:resnet51", "did you mean"),
        ("figs-fbnt", "did you mean 'figs-fbnet'"),
    ]:
        with pytest.raises(UsageError, match=message):
            len(find_space(name).full)  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="is for images of 28 to 64 pixels"):
        find_space("figs-fbnet-tiny", image_size=224)
