"""Published nets: exact MACs and parameters, by arithmetic and from the module."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hwnas.errors import UsageError
from hwnas.models import load_model
from hwnas.network import Network
from hwnas.trace import ops_of
from hwnas.zoo import ZOO, zoo_module, zoo_network

GOLDEN = tomllib.loads((Path(__file__).parent / "golden" / "zoo.toml").read_text())


def test_every_net_has_golden_numbers() -> None:
    assert set(GOLDEN) - {"space", "blocks"} == set(ZOO)


@pytest.mark.parametrize("name", ZOO)
def test_golden_numbers(name: str) -> None:
    network, module = zoo_network(name), zoo_module(name)
    assert network.macs == GOLDEN[name]["macs"]
    assert network.params == GOLDEN[name]["params"]
    assert sum(p.numel() for p in module.parameters()) == GOLDEN[name]["params"]
    assert network.bitops == GOLDEN[name].get("bitops", 0)
    assert not network.unknown


def test_bitops_are_those_of_the_paper() -> None:
    """Guo et al. 2020, table 6, to the printed digits; G is 2^30."""
    printed = {"18": (6.32, 14.21, 25.27), "34": (13.21, 29.72, 52.83)}
    for depth, figures in printed.items():
        for bits, wanted in zip((2, 3, 4), figures, strict=True):
            assert round(zoo_network(f"resnet{depth}-{bits}w{bits}a").bitops / 2**30, 2) == wanted


@pytest.mark.parametrize("depth", [18, 34])
def test_the_quantised_resnets_have_the_layers_of_torchvisions(depth: int) -> None:
    """All but bits, and but for which of a block's two last convolutions absorbs the add."""

    def layers(network: Network) -> list[str]:
        plain = (replace(op, bits=(), residual=False, act="", inputs=op.inputs[:1]) for op in network.ops)
        return sorted(op.key for op in plain)

    assert layers(zoo_network(f"resnet{depth}-2w2a")) == layers(load_model(f"torchvision:resnet{depth}").network)


@pytest.mark.parametrize("name", ZOO)
def test_module_and_arithmetic_agree(name: str) -> None:
    network = zoo_network(name)
    traced = ops_of(zoo_module(name), network.input_shape)
    assert traced.ops == network.ops
    assert [node.inputs for node in traced.nodes] == [node.inputs for node in network.nodes]


def test_mobilenet_v2_is_torchvisions() -> None:
    from torchvision.models import mobilenet_v2

    ours, theirs = zoo_module("mobilenet-v2").eval(), mobilenet_v2(weights=None).eval()
    # The same tensors in the same order, so that published weights fit: then the output is the same as well.
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_the_batchnorm_epsilon_is_the_papers() -> None:
    def epsilons(name: str) -> set[float]:
        return {m.eps for m in zoo_module(name).modules() if isinstance(m, torch.nn.BatchNorm2d)}

    assert epsilons("mobilenet-v2") == {1e-5}
    assert epsilons("proxyless-gpu") == {1e-3}


def test_an_unknown_net_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"proxyless-gpus.*did you mean 'proxyless-gpu'.*mobilenet-v2"):
        zoo_network("proxyless-gpus")
