"""One contract for every space, and its golden numbers."""

import json
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.costs import macs_cost, params_cost
from hwnas.errors import HwnasError, UsageError
from hwnas.export import export_onnx, parity
from hwnas.spaces import SPACES, Arch, Space, arch_from_json, get_space
from hwnas.trace import ops_of

_FILE = tomllib.loads((Path(__file__).parents[1] / "golden" / "zoo.toml").read_text())
GOLDEN, BLOCKS = _FILE["space"], _FILE["blocks"]
NAMES = list(SPACES)


def test_every_space_has_golden_numbers() -> None:
    assert set(GOLDEN) == set(SPACES)


@pytest.mark.parametrize("name", NAMES)
def test_golden_numbers(name: str) -> None:
    space, golden = get_space(name), GOLDEN[name]
    prices = macs_cost(space).prices
    assert len(space.slots) == golden["slots"]
    assert space.size == golden["size"]
    assert sum("skip" in choices for choices in space.slots) == golden["skippable"]
    assert prices.total_of(prices.cheapest()) == golden["least_macs"]
    assert prices.total_of(prices.dearest()) == golden["most_macs"]


def test_blocks_of_the_spos_space_have_the_macs_of_the_published_code() -> None:
    space, golden = get_space("spos-shufflenet"), BLOCKS["spos-shufflenet"]
    slot = 0
    for width, layers in ((64, 4), (160, 4), (320, 8), (640, 4)):
        for layer in range(layers):
            wanted = golden["others" if layer else "first"][str(width)]
            found = [sum(op.macs for op in space.slot_ops(slot, choice)) / 1e6 for choice in range(4)]
            assert found == pytest.approx(wanted, abs=6e-4)
            slot += 1
    fixed = [op.macs / 1e6 for op in space.fixed_ops() if op.macs]
    assert [*fixed, sum(fixed)] == pytest.approx([golden[k] for k in ("stem", "head", "classifier", "fixed")], abs=6e-3)
    for choice, wanted in enumerate(golden["uniform"]):
        assert space.network(Arch(space.name, (choice,) * 20)).macs / 1e6 == pytest.approx(wanted, abs=6e-3)


def test_channel_searches_have_the_widths_of_the_paper() -> None:
    scales = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6]
    space = get_space("spos-channels@" + "357x" * 5)
    assert set(space.slots) == {tuple(f"{scale:.1f}x" for scale in scales)}
    for slot, width in enumerate([64] * 4 + [160] * 4 + [320] * 8 + [640] * 4):
        mids = [space.slot_ops(slot, choice)[-2].inputs[0][0] for choice in range(8)]
        assert mids == [int(width / 2 * scale + 1e-9) for scale in scales]


def test_blocks_and_channels_at_their_default_are_the_space_of_blocks() -> None:
    blocks, joint, rng = get_space("spos-shufflenet"), get_space("spos-joint"), np.random.default_rng(4)
    for arch in [blocks.sample(rng) for _ in range(5)]:
        wider = Arch(joint.name, tuple(8 * gene + 4 for gene in arch.genes))
        assert [name.partition("@") for name in joint.describe(wider)] == [
            (name, "@", "1.0x") for name in blocks.describe(arch)
        ]
        assert joint.network(wider) == blocks.network(arch)
        kinds = "".join("357x"[gene] for gene in arch.genes)
        channels = get_space(f"spos-channels@{kinds}")
        assert channels.network(Arch(channels.name, (4,) * 20)) == blocks.network(arch)


@pytest.mark.parametrize(("name", "widths"), [("spos-channels-tiny", 8), ("spos-joint-tiny", 8), ("resnet18-quant", 3)])
def test_a_channel_search_warms_up_from_the_widest(name: str, widths: int) -> None:
    space, rng = get_space(name), np.random.default_rng(0)
    paths = [space.sample(rng).genes for _ in range(200)]
    for progress, narrowest in ((0.0, widths - 1), (0.5, widths // 2), (0.99, 1), (1.0, 0)):
        found = [space.widened(genes, progress) for genes in paths]
        assert {gene % widths for genes in found for gene in genes} == set(range(narrowest, widths))
        for genes, wide in zip(paths, found, strict=True):
            space.check(Arch(name, wide))
            assert [gene // widths for gene in wide] == [gene // widths for gene in genes]
    assert all(space.widened(genes, 1.0) == genes for genes in paths)
    assert get_space("proxyless-tiny").widened((1,) * 9, 0.0) == (1,) * 9


@pytest.mark.parametrize("name", NAMES)
def test_prices_are_additive(name: str) -> None:
    space, rng = get_space(name), np.random.default_rng(1)
    macs, params = macs_cost(space).prices, params_cost(space).prices
    archs = [space.sample(rng) for _ in range(20)] + [Arch(name, macs.cheapest()), Arch(name, macs.dearest())]
    for arch in archs:
        network = space.network(arch)
        slot_ops = [op for slot, gene in enumerate(arch.genes) for op in space.slot_ops(slot, gene)]
        assert sorted(network.ops, key=repr) == sorted((*space.fixed_ops(), *slot_ops), key=repr)
        assert network.macs == macs.total_of(arch.genes)
        assert network.params == params.total_of(arch.genes)


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_of_a_slot_gives_the_same_shape(name: str) -> None:
    space = get_space(name, image_size=SPACES[name].image_sizes[0])
    for slot, choices in enumerate(space.slots):
        ends = [space.slot_ops(slot, choice) for choice in range(len(choices))]
        shapes = {(ops[0].inputs[0], ops[-1].output) for ops in ends if ops}
        assert len(shapes) == 1, slot
        before, after = shapes.pop()
        assert all(ends) or before == after, slot


def test_fbnet_has_nine_choices_everywhere_and_skips_only_what_keeps_its_shape() -> None:
    space = get_space("fbnet")
    for slot, choices in enumerate(space.slots):
        assert len(choices) == 9
        (last,) = {"skip", "k1"} & set(choices)
        ops = space.slot_ops(slot, choices.index(last))
        if last == "skip":
            assert ops == ()
        else:
            (op,) = ops
            assert (op.kind, op.kernel, op.act) == ("conv", (1, 1), "relu")
            assert op.inputs[0] != op.output


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_cheap_arithmetic(name: str) -> None:
    space = get_space(name)
    archs = [space.sample(np.random.default_rng(seed)) for seed in range(10)]
    began = time.process_time()
    for arch in archs:
        space.network(arch)
    assert (time.process_time() - began) / len(archs) < 0.01  # about a millisecond on a slow core


@pytest.mark.parametrize("name", ["fbnet-tiny", "spos-shufflenet-tiny"])
def test_exported_nets_have_the_operators_of_the_space(name: str, tmp_path: Path) -> None:
    space = get_space(name)
    arch = _all_kinds(space)
    module = space.build(arch, generator=torch.Generator().manual_seed(0))
    export_onnx(module, space.input_shape, tmp_path / "net.onnx")
    read, network = ops_of(tmp_path / "net.onnx"), space.network(arch)
    assert read.unknown == ()
    assert [op.key for op in read.ops] == [op.key for op in network.ops]
    assert [node.inputs for node in read.nodes] == [node.inputs for node in network.nodes]
    images = np.random.default_rng(0).standard_normal((2, *space.input_shape), dtype=np.float32)
    assert parity(module, tmp_path / "net.onnx", images).max_rel_diff < 1e-4


def _all_kinds(space: Space) -> Arch:
    """An architecture that has each choice somewhere."""
    genes: list[int] = []
    seen: set[str] = set()
    for choices in space.slots:
        # rare choices come last
        genes.append(next((i for i in reversed(range(len(choices))) if choices[i] not in seen), 0))
        seen.add(choices[genes[-1]])
    assert seen == {choice for choices in space.slots for choice in choices}
    return Arch(space.name, tuple(genes))


@pytest.mark.parametrize("size", [28, 33, 64])
@pytest.mark.parametrize("name", NAMES)
def test_module_and_arithmetic_agree(name: str, size: int) -> None:
    lo, hi = SPACES[name].image_sizes
    space = get_space(name, image_size=min(max(size, lo), hi), num_classes=7)
    for seed in range(2):
        arch = space.sample(np.random.default_rng(seed))
        network = space.network(arch)
        traced = ops_of(space.build(arch), space.input_shape)
        assert traced.ops == network.ops
        assert [node.inputs for node in traced.nodes] == [node.inputs for node in network.nodes]


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_from_the_generator_that_is_passed(name: str) -> None:
    space = get_space(name)
    arch = space.sample(np.random.default_rng(0))
    first, again, other = (space.build(arch, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_json_there_and_back(name: str) -> None:
    space = get_space(name, image_size=64, num_classes=5)
    arch = space.sample(np.random.default_rng(3))
    again, found = arch_from_json(json.loads(json.dumps(space.to_json(arch))))
    assert found == arch
    assert (again.input_shape, again.num_classes, again.slots) == (space.input_shape, 5, space.slots)


def _document(**changes: Any) -> dict[str, Any]:
    space = get_space("proxyless-tiny")
    return {**space.to_json(Arch(space.name, (0,) * len(space.slots))), **changes}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "proxyless-tiny",
        {},
        _document(format=2),
        _document(format=True),
        _document(space="no-such-space"),
        _document(space=["proxyless-tiny"]),
        _document(input_shape=[3, 10**12, 10**12]),
        _document(input_shape=[3, -28, -28]),
        _document(input_shape=[1, 28, 28]),
        _document(input_shape=[3, 28, 64]),
        _document(input_shape="28"),
        _document(num_classes=1),
        _document(num_classes=10**9),
        _document(num_classes=10.0),
        _document(num_classes=None),
        _document(genes=[0]),
        _document(genes=[-1] * 9),
        _document(genes=[0] * 8 + [99]),
        _document(genes=[True] * 9),
        _document(genes=[0.0] * 9),
        _document(genes=[10**30] * 9),
        _document(genes={"0": 0}),
        _document(genes=[1] * 9),
        _document(layers=[["k3e3"]] * 9),
    ],
)
def test_hostile_architectures_are_refused(data: Any) -> None:
    with pytest.raises(HwnasError) as error:
        arch_from_json(data)
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)


def test_unknown_names_and_sizes_say_what_would_do() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'proxyless-tiny'"):
        get_space("proxyles-tiny")
    with pytest.raises(
        UsageError, match=r"images of 28 to 64 pixels, not 224; proxyless, proxyless-gpu, fbnet, .* would do"
    ):
        get_space("proxyless-tiny", image_size=224)
    with pytest.raises(UsageError, match=r"proxyless@333' is no space: write proxyless$"):
        get_space("proxyless@333")
    with pytest.raises(UsageError, match=r"write spos-channels@BLOCKS \(one letter a slot: 3, 5, 7 or x\)$"):
        get_space("spos-channels@")
    for blocks in ("333", "3" * 19 + "9", "3" * 21):
        with pytest.raises(UsageError, match=r"spos-channels has 20 slots: .* is not one letter of 3, 5, 7 and x"):
            get_space(f"spos-channels@{blocks}")
    with pytest.raises(UsageError, match=r"28 to 64 pixels, not 8$"):
        get_space("proxyless-tiny", image_size=8)
    with pytest.raises(UsageError, match=r"classes, not 1"):
        get_space("proxyless", num_classes=1)
