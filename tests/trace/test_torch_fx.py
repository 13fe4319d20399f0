"""Reading modules: published nets against golden numbers, spellings, and what is not understood."""

from __future__ import annotations

import copy
import math
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from hwnas.errors import HwnasError
from hwnas.measure.onnx_models import network_to_onnx
from hwnas.trace import ops_of

GOLDEN: dict[str, dict[str, Any]] = tomllib.loads(
    (Path(__file__).parents[1] / "golden" / "networks.toml").read_text(encoding="utf-8")
)
OPTIONS: dict[str, dict[str, Any]] = {"googlenet": {"aux_logits": False, "init_weights": False}}


def counted_macs(module: nn.Module, input_shape: list[int]) -> int:
    """An independent count: hooks that look at what convolutions and linear layers really compute."""
    total = 0

    def hook(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        assert isinstance(weight, Tensor)
        total += output.numel() * math.prod(weight.shape[1:])

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(hook)
    module.eval().to("meta")(torch.zeros(1, *input_shape, device="meta"))
    return total


@pytest.mark.parametrize("name", GOLDEN)
def test_published_nets(name: str) -> None:
    golden = GOLDEN[name]
    module = torchvision.models.get_model(name, weights=None, **OPTIONS.get(name, {}))
    network = ops_of(module, tuple(golden["input_shape"]))
    assert network.unknown == ()
    assert (network.macs, network.params) == (golden["macs"], golden["params"])
    assert Counter(op.kind for op in network.ops) == golden["ops"]
    assert network.params == sum(parameter.numel() for parameter in module.parameters())
    assert network.macs == counted_macs(module, golden["input_shape"])
    meta = next(iter(torchvision.models.get_model_weights(name))).meta
    assert (round(network.macs / 1e9, 3), network.params) == (meta["_ops"], meta["num_params"])
    assert network_to_onnx(network)  # it is wired: every shape fits


def keys(module: nn.Module, shape: tuple[int, ...] = (4, 8, 8)) -> list[str]:
    network = ops_of(module, shape)
    assert network.unknown == ()
    return [op.key for op in network.ops]


def test_the_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU())
    state = copy.deepcopy(module.state_dict())
    ops_of(module, (3, 8, 8))
    assert module.training
    assert all(part.training for part in module.modules())
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_needs_no_memory_for_weights() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 1024 * 1024, 2**20))
    assert ops_of(module, (3, 1024, 1024)).params == 3 * 2**40 + 2**20


class Forward(nn.Module):
    """A module whose forward is a function of two convolutions and the image."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1, bias=False)
        self.second = nn.Conv2d(4, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


CONV = "conv 4x8x8>4x8x8"
ADD = "conv 4x8x8,4x8x8>4x8x8"
SPELLINGS: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "silu": (lambda m, x: (y := m.first(x)) * torch.sigmoid(y), [f"{CONV} silu"]),
    "silu method": (lambda m, x: (y := m.first(x)).sigmoid() * y, [f"{CONV} silu"]),
    "hardswish": (lambda m, x: (y := m.first(x)) * functional.hardsigmoid(y), [f"{CONV} hardswish"]),
    "hardswish by hand": (lambda m, x: (y := m.first(x)) * functional.relu6(y + 3) / 6, [f"{CONV} hardswish"]),
    "hardswish by hand 2": (lambda m, x: (y := m.first(x)) * (functional.relu6(3 + y) / 6), [f"{CONV} hardswish"]),
    "hardsigmoid by hand": (lambda m, x: functional.relu6(m.first(x) + 3.0) / 6, [f"{CONV} hardsigmoid"]),
    "clamp": (lambda m, x: m.first(x).clamp(0, 6), [f"{CONV} relu6"]),
    "hardtanh": (lambda m, x: functional.hardtanh(m.first(x), 0.0, 6.0), [f"{CONV} relu6"]),
    "norm": (lambda m, x: m.norm(m.first(x)), [f"{CONV} bias"]),
    "norm first": (lambda m, x: m.first(m.norm(x).relu()), ["affine 4x8x8>4x8x8 relu", CONV]),
    "norm after act": (lambda m, x: m.norm(m.first(x).relu()), [f"{CONV} relu", "affine 4x8x8>4x8x8"]),
    "residual": (lambda m, x: x + m.norm(m.first(x)), [f"{ADD} bias add"]),
    "residual relu": (lambda m, x: torch.relu(m.first(x) + x), [f"{ADD} add relu"]),
    "in place": (lambda m, x: torch.relu_(m.first(x).add_(x)), [f"{ADD} add relu"]),
    "later conv adds": (lambda m, x: m.first(x) + m.second(x), [CONV, f"{ADD} add"]),
    "act between": (lambda m, x: m.first(x).relu() + x, [f"{CONV} relu", "add 4x8x8,4x8x8>4x8x8"]),
    "read twice": (lambda m, x: m.second(y := m.first(x)) + y, [CONV, f"{ADD} add"]),
    "doubled": (lambda m, x: (y := m.first(x)) + y, [CONV, "add 4x8x8,4x8x8>4x8x8"]),
    "act read twice": (lambda m, x: (y := m.first(x)).relu() + y, [CONV, "act 4x8x8>4x8x8 relu",
                                                                   "add 4x8x8,4x8x8>4x8x8"]),
    "gate": (
        lambda m, x: m.first(x.mean([2, 3], keepdim=True)).sigmoid() * x,
        ["global_avg_pool 4x8x8>4x1x1", "conv 4x1x1>4x1x1 sigmoid", "mul 4x8x8,4x1x1>4x8x8"],
    ),
    "shuffle": (
        lambda m, x: x.view(x.size(0), 2, 2, 8, 8).transpose(1, 2).contiguous().view(x.size(0), -1, 8, 8),
        ["shuffle 4x8x8>4x8x8 g2"],
    ),
    "shuffle flat": (
        lambda m, x: x.reshape(-1, 2, 2, 64).permute(0, 2, 1, 3).reshape(-1, 4, 8, 8),
        ["shuffle 4x8x8>4x8x8 g2"],
    ),
    "pad": (lambda m, x: m.first(functional.pad(x, (0, 1, 2, 3))), ["conv 4x8x8>4x13x9 p2x0x3x1"]),
    "split": (
        lambda m, x: torch.cat([(y := x.chunk(2, dim=1))[1], y[0]], 1),
        ["split 4x8x8>4x8x8 c2x2", "concat 2x8x8,2x8x8>4x8x8"],
    ),
    "unused": (lambda m, x: (m.second(x), m.first(x))[1], [CONV]),
    "weights by hand": (lambda m, x: functional.conv2d(x, m.first.weight), [CONV]),
    "last pixel": (lambda m, x: x.mean((2, 3), keepdim=True)[:, :, 0, 0], ["global_avg_pool 4x8x8>4x1x1"]),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str) -> None:
    function, expected = SPELLINGS[spelling]
    assert keys(Forward(function)) == expected


def test_what_is_computed_is_what_was_written() -> None:
    """Writing what was read, with the module's own weights, gives the module's own outputs."""
    import numpy as np
    import onnx
    import onnxruntime

    module = Forward(lambda m, x: functional.silu(m.second(torch.cat(m.first(x).relu().chunk(2, 1)[::-1], 1)) + x))
    model = onnx.load_from_string(network_to_onnx(ops_of(module, (4, 8, 8))))
    weights = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [4, 4, 1, 1]]
    for tensor, layer in zip(weights, (module.first, module.second), strict=True):
        tensor.raw_data = layer.weight.detach().numpy().tobytes()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(session.run(None, {"input": image})[0], expected, atol=1e-5)


class Swoosh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.Softmax(1), "1 (Softmax)"),
        (nn.ConvTranspose2d(4, 4, 2), "1 (ConvTranspose2d)"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "1 (Conv2d)"),
        (nn.LayerNorm(8), "1 (LayerNorm)"),
        (nn.Linear(8, 8), "1 (Linear)"),
        (nn.AdaptiveAvgPool2d(3), "1 (AdaptiveAvgPool2d)"),
        (nn.MaxPool2d(2, dilation=2), "1 (MaxPool2d)"),
        (nn.Upsample(scale_factor=2), "1 (Upsample)"),
        (Swoosh(), "1.erf"),
        (Forward(lambda m, x: x * m.norm.weight.view(1, -1, 1, 1)), "1.mul"),
        (Forward(lambda m, x: x[:, :2]), "1.getitem"),
        (Forward(lambda m, x: x * 2), "1.mul"),
        (Forward(lambda m, x: x.transpose(1, 2)), "1.transpose"),
        (Forward(lambda m, x: x.reshape(1, 8, 4, 8)), "1.reshape"),
        (Forward(lambda m, x: x.flip(0)), "1.flip"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_understood_is_named_and_the_rest_is_read(layer: nn.Module, named: str) -> None:
    network = ops_of(nn.Sequential(nn.Conv2d(4, 4, 1), layer, nn.Tanh()), (4, 8, 8))
    assert network.unknown == (named,)
    assert [op.kind for op in network.ops] == ["conv", "act"]
    assert network.nodes[1].inputs[0][0] == -2


def test_what_moves_the_batch_is_named() -> None:
    network = ops_of(
        nn.Sequential(nn.Conv2d(4, 4, 1), Forward(lambda m, x: x.reshape(4, 1, 8, 8)), nn.Tanh()), (4, 8, 8)
    )
    assert network.unknown == ("1.reshape", "2 (Tanh)")


def test_control_flow_asks_for_onnx() -> None:
    module = Forward(lambda m, x: m.first(x) if x.sum() > 0 else m.second(x))
    with pytest.raises(HwnasError, match=r"cannot be traced.*export it to ONNX"):
        ops_of(module, (4, 8, 8))


def test_wrong_images_are_named() -> None:
    with pytest.raises(HwnasError, match=r"does not run on images of \(3, 8, 8\)"):
        ops_of(nn.Conv2d(4, 4, 1), (3, 8, 8))
    with pytest.raises(HwnasError, match="channels, height, width"):
        ops_of(nn.Conv2d(4, 4, 1), (8, 8))
    with pytest.raises(HwnasError, match="input_shape"):
        ops_of(nn.Conv2d(4, 4, 1))
    with pytest.raises(HwnasError, match="nothing that depends"):
        ops_of(Forward(lambda m, x: m.first.weight), (4, 8, 8))
