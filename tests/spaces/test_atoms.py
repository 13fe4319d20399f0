"""Spaces of atoms: the published counts, arithmetic against modules and files, hostile documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.errors import HwnasError, UsageError
from hwnas.export import export_onnx, parity
from hwnas.nn.deploy import deploy
from hwnas.spaces import ATOM_SPACES, AtomArch, AtomSpace, atoms_from_json, find_space, get_space
from hwnas.trace import ops_of
from hwnas.zoo import zoo_network

PAPER = {  # million MACs with the inputs of poolings, million parameters without BatchNorm: Mei et al. 2020, table 1,
    # to the digits of meijieru/AtomNAS' profiler
    "atomnas-a": (258.29, 3.85), "atomnas-b": (326.05, 4.42), "atomnas-c": (359.86, 4.74),
    "atomnas-a+": (260.35, 4.69), "atomnas-b+": (328.79, 5.47), "atomnas-c+": (362.91, 5.93),
}  # fmt: skip
ATOMS = [288, *[432] * 4, *[720] * 4, *[1440] * 4, *[1728] * 4, *[3456] * 4]


def space_of(name: str, image_size: int | None = None) -> AtomSpace:
    space = find_space(name, image_size=image_size)
    assert isinstance(space, AtomSpace)
    return space


@pytest.mark.parametrize("name", PAPER)
def test_published_nets_have_the_papers_counts(name: str) -> None:
    network = zoo_network(name)
    pooled = sum(int(np.prod(op.inputs[0])) for op in network.ops if op.kind == "global_avg_pool")
    assert (network.macs + pooled) / 1e6 == pytest.approx(PAPER[name][0], abs=0.005)
    assert network.conv_fc_params / 1e6 == pytest.approx(PAPER[name][1], abs=0.005)


def test_supernets_have_the_papers_counts() -> None:
    """facts: 1521035776 MACs with 62,720 pooling inputs for C, 1510.60M for A; 10^162.5 architectures (section 2.1)."""
    c, a = space_of("atomnas-c"), space_of("atomnas-a")
    assert c.network(c.supernet_arch).macs == 1_521_035_776 - 62_720
    assert a.network(a.supernet_arch).macs / 1e6 == pytest.approx(1510.60 - 0.06272, abs=0.005)
    assert c.network(c.supernet_arch).conv_fc_params / 1e6 == pytest.approx(11.11, abs=0.005)
    assert [sum(widths) for widths in c.full] == ATOMS
    assert c.log10_size == pytest.approx(162.5, abs=0.05)
    assert len(str(c.size)) == 163


@pytest.mark.parametrize("name", ATOM_SPACES)
def test_module_and_arithmetic_agree(name: str) -> None:
    space = space_of(name, ATOM_SPACES[name].image_sizes[0])
    for seed in range(2):
        arch = space.sample(np.random.default_rng(seed))
        network, module = space.network(arch), space.build(arch)
        traced = ops_of(module, space.input_shape)
        assert traced.ops == network.ops
        assert [node.inputs for node in traced.nodes] == [node.inputs for node in network.nodes]
        assert sum(parameter.numel() for parameter in module.parameters()) == network.params


def test_what_is_deployed_computes_what_was_trained(tmp_path: Path) -> None:
    space = space_of("atomnas-tiny")
    widths = list(space.sample(np.random.default_rng(0)).widths)
    widths[1], widths[3] = (0, 0, 0), (0, 7, 0)  # a residual block without atoms, one with a single kernel
    arch = AtomArch(space.name, tuple(widths))
    module = space.build(arch, generator=torch.Generator().manual_seed(0))
    images = torch.randn(8, *space.input_shape, generator=torch.Generator().manual_seed(1))
    module(images)  # statistics that are not the fresh ones
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, -1, 1, generator=torch.Generator().manual_seed(part.num_features))
    export_onnx(module, space.input_shape, tmp_path / "net.onnx")
    assert parity(module, tmp_path / "net.onnx", images[:2].numpy()).max_rel_diff < 1e-4
    assert [op.key for op in ops_of(tmp_path / "net.onnx").ops] == [op.key for op in space.network(arch).ops]
    before = module.eval()(images)
    torch.testing.assert_close(deploy(module).eval()(images), before)


@pytest.mark.parametrize("name", ATOM_SPACES)
def test_json_there_and_back(name: str) -> None:
    space = space_of(name, 64)
    arch = space.sample(np.random.default_rng(3))
    again, found = atoms_from_json(json.loads(json.dumps(space.to_json(arch))))
    assert found == arch
    assert (again.name, again.input_shape) == (space.name, (3, 64, 64))


def _document(**changes: Any) -> dict[str, Any]:
    space = space_of("atomnas-tiny")
    return {**space.to_json(space.supernet_arch), **changes}


@pytest.mark.parametrize(
    "data",
    [
        None,
        _document(space="proxyless-tiny"),
        _document(kernels=[3, 5]),
        _document(widths=None),
        _document(widths=[[96, 96, 96]]),
        _document(widths=[[96, 96, 96]] * 6),  # of which the later blocks are narrower than the layers say
        _document(widths=[[97, 0, 0]] * 6),
        _document(widths=[[-1, 1, 1]] * 6),
        _document(widths=[[1.0, 1, 1]] * 6),
        _document(widths=[[True, 1, 1]] * 6),
        _document(widths=[[0, 0, 0]] * 6, layers=None),
        _document(widths=[["1", 1, 1]] * 6),
        _document(widths=[[1, 1]] * 6),
    ],
)
def test_hostile_architectures_are_refused(data: Any) -> None:
    with pytest.raises(HwnasError) as error:
        atoms_from_json(data)
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)


def test_a_space_of_atoms_says_which_methods_search_it() -> None:
    with pytest.raises(UsageError, match="--method atomnas"):
        get_space("atomnas-tiny")
    with pytest.raises(UsageError, match="28 to 64 pixels, not 224; atomnas-a"):
        find_space("atomnas-tiny", image_size=224)
