"""`verify` and `export` of networks that no search has found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import Hwnas
from hwnas.cli.verify import verdict
from onnx import TensorProto, helper, numpy_helper

from hwnas.errors import ClaimError
from hwnas.models import load_model

RESULT = {
    "net", "predicted_ms", "measured_ms", "measured_low_ms", "measured_high_ms", "budget_ms", "within_budget",
    "relative_error", "output_max_abs_diff",
}  # fmt: skip


def small_net(path: Path, batch: int | str = 1) -> Path:
    """An ONNX file of one convolution and a ReLU."""
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 8, 16, 16])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def test_verify_within_and_over_budget(hwnas: Hwnas, measured: Any) -> None:
    net = small_net(hwnas.folder / "net.onnx")
    args = ("verify", net, "--device", measured.profile)
    held = hwnas(*args, "--latency", "10s", "--json")
    assert held.code == 0
    assert set(held.document) >= {"device", "results"}
    (result,) = held.document["results"]
    assert set(result) >= RESULT
    assert result["within_budget"] is True
    assert result["budget_ms"] == 10_000
    assert result["measured_low_ms"] <= result["measured_ms"] <= result["measured_high_ms"]
    missed = hwnas(*args, "--latency", "0.001us")
    assert missed.code == 3
    assert "over its budget" in missed.error
    assert "OVER BUDGET" in missed.stdout
    (result,) = hwnas(*args, "--latency", "0.001us", "--json").document["results"]
    assert result["within_budget"] is False


def test_a_budget_inside_the_interval_is_not_called_missed() -> None:
    assert verdict(1.0, 1.2, 1.2) == "within budget"
    assert verdict(1.0, 1.2, 1.1) == verdict(1.0, 1.2, 1.0) == "NOT SHOWN to be within budget"
    assert verdict(1.0, 1.2, 0.99) == "OVER BUDGET"


def test_verify_compares_with_the_table(hwnas: Hwnas, measured: Any) -> None:
    net = small_net(hwnas.folder / "net.onnx", batch="N")
    table = hwnas.folder / "t.lut"
    table.write_bytes(measured.lut.read_bytes())
    assert hwnas("predict", net, "--lut", table, "--measure", "--json").document["latency_ms"] > 0
    (result,) = hwnas("verify", net, "--lut", table, "--json").document["results"]
    assert result["predicted_ms"] > 0
    assert result["relative_error"] == pytest.approx(result["predicted_ms"] / result["measured_ms"] - 1)
    assert "budget_ms" in result


def test_verify_of_a_published_net_compares_outputs_on_pictures(hwnas: Hwnas, measured: Any) -> None:
    done = hwnas("verify", "zoo:mobilenet-v2", "--device", measured.profile, "--json")
    (result,) = done.document["results"]
    assert 0 <= result["output_max_rel_diff"] < 1e-3
    assert result["same_outputs"] is True
    assert result["macs"] == 300_774_272


def test_a_fixed_batch_must_be_the_one_that_is_measured(hwnas: Hwnas, measured: Any) -> None:
    net = small_net(hwnas.folder / "net.onnx", batch=4)
    done = hwnas("verify", net, "--device", measured.profile)
    assert done.code == 1
    assert "--batch 4" in done.error
    assert hwnas("verify", net, "--device", measured.profile, "--batch", "4").code == 0


@pytest.mark.parametrize(
    ("latency", "says"),
    [("17", "17ms"), ("60%", "17ms"), ("17ms,18ms", "one latency"), ("fast", "17ms"), ("-3ms", "17ms")],
)
def test_bad_budgets_exit_2(hwnas: Hwnas, measured: Any, latency: str, says: str) -> None:
    net = small_net(hwnas.folder / "net.onnx")
    done = hwnas("verify", net, "--device", measured.profile, f"--latency={latency}")
    assert done.code == 2
    assert says in done.error


def test_what_is_no_run_or_model(hwnas: Hwnas) -> None:
    assert "no run under runs" in hwnas("verify").error
    (hwnas.folder / "empty").mkdir()
    done = hwnas("verify", "empty")
    assert done.code in (1, 2)
    assert "run.toml" in done.error
    done = hwnas("verify", "mobilenet_v2")
    assert done.code == 2
    assert "torchvision:mobilenet_v2" in done.error
    (hwnas.folder / "net.onnx").write_bytes(b"\x08\x07 not a network")
    done = hwnas("verify", "net.onnx")
    assert done.code == 1
    assert "net.onnx" in done.error


def test_exported_files_run_without_hwnas(hwnas: Hwnas) -> None:
    import onnxruntime
    import torch

    for name in ("new/net.onnx", "other/new/net.pt2"):
        done = hwnas("export", "zoo:mobilenet-v2", "--out", name, "--json")
        document = json.loads(done.stdout)
        assert document["max_rel_diff"] < 1e-4
        assert document["size_bytes"] == (hwnas.folder / name).stat().st_size
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    session = onnxruntime.InferenceSession(hwnas.folder / "new/net.onnx", providers=["CPUExecutionProvider"])
    (deployed,) = session.run(None, {session.get_inputs()[0].name: images})
    module = torch.export.load(hwnas.folder / "other/new/net.pt2").module()
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    assert np.abs(deployed - expected).max() <= 1e-4 * np.abs(expected).max()


def test_an_exported_file_that_is_another_network_breaks_a_claim() -> None:
    from hwnas.cli.export import _judge

    loaded = load_model("zoo:mobilenet-v2")
    _judge(Path("net.onnx"), 1e-3, loaded)
    for difference in (2e-3, float("nan")):
        with pytest.raises(ClaimError, match="differs from the module"):
            _judge(Path("net.onnx"), difference, loaded)


def test_export_refuses_what_has_no_module(hwnas: Hwnas) -> None:
    net = small_net(hwnas.folder / "net.onnx")
    assert hwnas("export", net, "--out", "copy.onnx").code == 2
    assert hwnas("export", "space:proxyless", "--out", "copy.onnx").code == 2
    assert not (hwnas.folder / "copy.onnx").exists()


def test_weights_in_a_file_beside_that_is_cut_off_are_refused(hwnas: Hwnas) -> None:
    path = small_net(hwnas.folder / "net.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="net.data", size_threshold=0)
    (hwnas.folder / "net.data").write_bytes(b"\0" * 10)
    assert "its weights cannot be read" in hwnas("verify", "net.onnx", "--device", "cpu").error
