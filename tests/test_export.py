"""Export: a complete, quiet, checked file whose outputs are the module's."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.errors import HwnasError
from hwnas.export import Parity, export_onnx, parity
from hwnas.trace import ops_of


class Net(nn.Module):
    """Everything a found net has: folded norms, a residual, squeeze and excitation, a mean, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.norm(self.stem(x)))
        x = x + x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        y: Tensor = self.head(self.dropout(functional.adaptive_avg_pool2d(x, 1).flatten(1)))
        return y


class Branching(nn.Module):
    """torch.fx cannot trace it, the exporter can: a choice that depends on a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y.relu() if y.shape[-1] > 2 else y


class Impossible(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def trained(module: nn.Module) -> nn.Module:
    """The module with weights and statistics from a seed of its own, in training mode."""
    generator = torch.Generator().manual_seed(0)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 0.6, generator=generator)
    return module.train()


def images(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((count, 3, 16, 16), dtype=np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    module = trained(Net())
    path = tmp_path_factory.mktemp("export") / "nets" / "model.onnx"
    export_onnx(module, (3, 16, 16), path, batch_size=2)
    return module, path


def test_outputs_are_those_of_the_module(exported: tuple[nn.Module, Path]) -> None:
    module, path = exported
    found = parity(module, path, images(6))
    assert 0 <= found.max_abs_diff < 1e-5
    assert 0 <= found.max_rel_diff < 1e-5
    assert module.training


def test_another_net_is_found_out(exported: tuple[nn.Module, Path]) -> None:
    module, path = exported
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.state_dict()["head.bias"] += 1
    found = parity(other, path, images(2))
    assert found.max_abs_diff == pytest.approx(1, rel=1e-3)
    assert 0 < found.max_rel_diff < found.max_abs_diff
    other.state_dict()["head.bias"].fill_(torch.nan)
    assert parity(other, path, images(2)) == Parity(float("inf"), float("inf"))
    with pytest.raises(HwnasError, match="not the same net"):
        parity(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), path, images(2))


def test_the_file_is_complete_and_has_the_operators_of_the_module(exported: tuple[nn.Module, Path]) -> None:
    module, path = exported
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("input", "output")
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [2, 3, 16, 16]
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"BatchNormalization", "ReduceMean", "Dropout", "Identity"}
    assert kinds >= {"Conv", "Clip", "GlobalAveragePool", "Gemm"}
    assert [op.key for op in ops_of(path).ops] == [op.key for op in ops_of(module, (3, 16, 16)).ops]


def test_export_is_quiet_and_leaves_the_module_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module = trained(Branching())
    state = copy.deepcopy(module.state_dict())
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an older one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(module, (3, 16, 16), path)
    assert capfd.readouterr().out == ""
    assert module.training
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert parity(module, path, images(3)).max_abs_diff < 1e-5
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path).graph.node}


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


class Means(nn.Module):
    """Fresh weights, whose biases are all zeros, and two means without their dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.linear = nn.Linear(7, 2)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(torch.cat([self.conv(x).mean((2, 3)), x.mean((-1, -2))], 1))
        return y


def test_fresh_nets_keep_their_biases_and_nothing_unused_stays(tmp_path: Path) -> None:
    module, path = Means(), tmp_path / "model.onnx"
    export_onnx(module, (3, 16, 16), path)
    graph = onnx.load(path).graph
    assert [op.key for op in ops_of(path).ops] == [op.key for op in ops_of(module, (3, 16, 16)).ops]
    assert {tensor.name for tensor in graph.initializer} <= {name for node in graph.node for name in node.input}
    assert sum(node.op_type == "GlobalAveragePool" for node in graph.node) == 2
    assert parity(module, path, images(2)).max_abs_diff < 1e-5
    assert not module.linear.bias.any()


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(HwnasError, match="Impossible cannot be exported to ONNX") as caught:
        export_onnx(Impossible(), (3, 8, 8), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_parity_names_what_does_not_fit(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    module, path = exported
    with pytest.raises(HwnasError, match="batches of 2"):
        parity(module, path, images(3))
    with pytest.raises(HwnasError, match="does not run in ONNX Runtime"):
        parity(module, path, np.zeros((2, 3, 8, 8), np.float32))
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    with pytest.raises(HwnasError, match=r"bad.onnx does not run"):
        parity(module, tmp_path / "bad.onnx", images(2))
