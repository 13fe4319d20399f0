"""What a MODEL argument stands for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from hwnas.errors import HwnasError, UsageError
from hwnas.measure.onnx_models import network_to_onnx
from hwnas.models import load_model, load_models, space_name
from hwnas.spaces import SPACES, Arch, get_space
from hwnas.zoo import ZOO


def outputs(module: torch.nn.Module | None, size: int = 32) -> torch.Tensor:
    assert module is not None
    assert not module.training
    with torch.no_grad():
        result: torch.Tensor = module(torch.ones(1, 3, size, size))
    return result


@pytest.mark.parametrize("name", ["mobilenet_v2", "regnet_y_400mf", "googlenet"])
def test_torchvision(name: str) -> None:
    loaded = load_model(f"torchvision:{name}")
    assert loaded.name == f"torchvision:{name}"
    assert loaded.network.input_shape == (3, 224, 224)
    assert loaded.network.unknown == ()
    assert loaded.onnx_path is None
    meta = next(iter(torchvision.models.get_model_weights(name))).meta
    assert loaded.network.params == meta["num_params"]


def test_torchvision_takes_the_size_that_the_net_is_meant_for() -> None:
    assert load_model("torchvision:inception_v3").network.input_shape == (3, 299, 299)


def test_random_weights_are_always_the_same_and_leave_the_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    loaded = load_model("torchvision:squeezenet1_1")
    first, second = outputs(loaded.module(), 64), outputs(load_model("torchvision:squeezenet1_1").module(), 64)
    assert torch.equal(first, second)
    assert first.abs().max() > 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    loaded = load_model(f"zoo:{name}")
    module = loaded.module()
    assert module is not None
    assert sum(parameter.numel() for parameter in module.parameters()) == loaded.network.params
    assert torch.equal(outputs(module), outputs(loaded.module()))


@pytest.mark.parametrize("name", SPACES)
def test_space_is_the_whole_supernet(name: str) -> None:
    loaded = load_model(f"space:{name}")
    space = get_space(name)
    assert loaded.supernet
    assert loaded.module() is None
    supernet = space.supernet()  # the parameters of convolutions and linear layers: it may have no others
    held = sum(p.numel() for name, p in supernet.named_parameters() if p.ndim > 1 or "classifier" in name)
    assert loaded.network.conv_fc_params == held
    assert loaded.network.macs == sum(op.macs for op in space.supernet_ops())
    assert loaded.network.params > space.network(space.sample(np.random.default_rng(0))).params


def test_a_channel_space_stands_on_the_blocks_of_a_net(tmp_path: Path) -> None:
    assert space_name("spos-channels@zoo:spos-319m") == "spos-channels@33x5553373755373" + "75x7"
    assert space_name("proxyless") == "proxyless"
    joint = get_space("spos-joint-tiny")
    arch = joint.sample(np.random.default_rng(0))
    folder = tmp_path / "run" / "nets" / "found"
    folder.mkdir(parents=True)
    (folder / "arch.json").write_text(json.dumps(joint.to_json(arch)))
    (tmp_path / "run" / "run.toml").write_text("")
    kinds = "".join(name.removeprefix("choice_")[0] for name in joint.describe(arch))
    for source in (folder, tmp_path / "run"):
        assert space_name(f"spos-channels-tiny@{source}") == f"spos-channels-tiny@{kinds}"
    assert load_model(f"space:spos-channels-tiny@{folder}").supernet
    blocks = get_space("spos-shufflenet-tiny")
    chosen = "5-x-" + "73-----x" + "3---"
    names = [f"choice_{letter}" if letter != "-" else "skip" for letter in chosen]
    genes = tuple(choices.index(name) for name, choices in zip(names, blocks.slots, strict=True))
    skipping = Arch(blocks.name, genes)
    (folder / "arch.json").write_text(json.dumps(blocks.to_json(skipping)))
    name = space_name(f"spos-channels-tiny@{folder}")
    assert name == "spos-channels-tiny@5x--" + "73x-----" + "3---"  # a stage's skipped slots come last
    widths = get_space(name)
    assert widths.network(Arch(name, (4,) * 6)).macs == blocks.network(skipping).macs  # 1.0x, the default, everywhere
    with pytest.raises(UsageError, match="slot 5 of spos-channels-tiny has a stride and cannot be left out"):
        get_space("spos-channels-tiny@3333-33333333333")
    with pytest.raises(UsageError, match=r"stands on no net of choice blocks: its blocks are not choice blocks"):
        space_name("spos-channels@zoo:fbnet-a")
    with pytest.raises(UsageError, match=r"stands on no net of choice blocks: no net of the zoo is called 'spos-9'"):
        space_name("spos-channels@zoo:spos-9")
    with pytest.raises(UsageError, match=r"stands on no net"):
        space_name(f"spos-channels@{tmp_path}")


def test_onnx_file(tmp_path: Path) -> None:
    network = load_model("zoo:mobilenet-v2").network
    path = tmp_path / "net.onnx"
    path.write_bytes(network_to_onnx(network))
    loaded = load_model(str(path))
    assert (loaded.name, loaded.onnx_path, loaded.module()) == ("net.onnx", path, None)
    assert loaded.network.macs == network.macs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two found nets, one of them exported."""
    folder = tmp_path / "run"
    space = get_space("proxyless-tiny")
    for seed, name in enumerate(["net-a", "net-b"]):
        net = folder / "nets" / name
        net.mkdir(parents=True)
        arch = space.sample(np.random.default_rng(seed))
        (net / "arch.json").write_text(json.dumps(space.to_json(arch)))
        save_file(space.build(arch).state_dict(), net / "weights.safetensors")
    (folder / "nets" / "net-b" / "model.onnx").write_bytes(b"")
    (folder / "nets" / "unfinished").mkdir()
    (folder / "run.toml").write_text("")
    return folder


def test_run_folder_is_all_its_nets(run: Path) -> None:
    first, second = load_models(str(run))
    assert (first.name, second.name) == ("net-a", "net-b")
    assert first.onnx_path is None
    assert second.onnx_path == run / "nets" / "net-b" / "model.onnx"
    assert second.folder == run / "nets" / "net-b"
    module = first.module()
    assert module is not None
    assert sum(parameter.numel() for parameter in module.parameters()) == first.network.params
    with pytest.raises(UsageError, match=r"has 2 nets, name one of them: .*net-a, .*net-b"):
        load_model(str(run))


def test_found_net_has_the_weights_of_its_file(run: Path) -> None:
    loaded = load_model(str(run / "nets" / "net-a"))
    assert torch.equal(outputs(loaded.module(), 28), outputs(loaded.module(), 28))
    other = load_model(str(run / "nets" / "net-b"))
    (run / "nets" / "net-b" / "weights.safetensors").write_bytes(
        (run / "nets" / "net-a" / "weights.safetensors").read_bytes()
    )
    with pytest.raises(HwnasError, match="weights of another net"):
        other.module()


def test_damaged_runs_are_named(run: Path) -> None:
    net = run / "nets" / "net-a"
    loaded = load_model(str(net))
    weights = net / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(HwnasError, match="is damaged"):
        loaded.module()
    weights.unlink()
    with pytest.raises(HwnasError, match=r"has no weights.safetensors: give the same hwnas search command again"):
        loaded.module()
    for text in ("", "{", "[]", '{"format": 1, "space": "nowhere"}', "[" * 100_000, '"\\ud800"', " " * 2**21):
        (net / "arch.json").write_text(text)
        with pytest.raises(HwnasError, match=r"arch\.json") as caught:
            load_models(str(run))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torchvision:mobilenet_v22", "did you mean mobilenet_v2"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classification model"),
        ("torchvision:zzzzzz", "names are as in torchvision.models"),
        ("zoo:mobilenet-v", "did you mean 'mobilenet-v2'"),
        ("space:proxyles", "did you mean 'proxyless'"),
        ("mobilenet_v2", "did you mean torchvision:mobilenet_v2"),
        ("mobilenet-v2", "did you mean zoo:mobilenet-v2"),
        ("nowhere/net.onnx", "is no model: an ONNX file, a run folder"),
        ("", "neither a run"),
    ],
)
def test_unknown_names_say_what_was_meant(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_models(text)


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither a run \(run.toml\) nor a found net"):
        load_models(str(tmp_path))
    (tmp_path / "run.toml").write_text("")
    with pytest.raises(HwnasError, match="no found net yet: give the same hwnas search command again"):
        load_models(str(tmp_path))
