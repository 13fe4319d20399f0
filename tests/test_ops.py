"""Operators: their arithmetic against numbers worked out by hand, and their keys against random operators."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.ops import ACTIVATIONS, KINDS, Op

acts = st.sampled_from(ACTIVATIONS)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def ops(draw: st.DrawFn, kind: str | None = None) -> Op:
    """A small operator that a runtime can run."""
    kind = draw(st.sampled_from(KINDS)) if kind is None else kind
    groups = draw(st.integers(1, 3))
    channels = groups * draw(st.integers(1, 3))
    shape = (channels, draw(st.integers(5, 9)), draw(st.integers(5, 9)))
    act = draw(acts)
    match kind:
        case "conv":
            kernel = draw(pairs)
            return Op.conv(
                shape,
                groups * draw(st.integers(1, 3)),
                kernel=kernel,
                stride=draw(pairs),
                padding=draw(st.none() | st.tuples(*[st.integers(0, 2)] * 4)),
                dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
                groups=groups,
                bias=draw(st.booleans()),
                norm=draw(st.booleans()),
                act=act,
                residual=draw(st.booleans()),
            )
        case "linear":
            return Op.linear(channels, draw(st.integers(1, 9)), bias=draw(st.booleans()), act=act)
        case "max_pool" | "avg_pool":
            kernel = draw(st.tuples(st.integers(2, 3), st.integers(2, 3)))
            padding = draw(st.tuples(*[st.integers(0, 1)] * 4))
            return Op.pool(
                kind, shape, kernel=kernel, stride=draw(pairs), padding=padding, ceil_mode=draw(st.booleans())
            )
        case "global_avg_pool":
            return Op.global_avg_pool(shape)
        case "add":
            return Op.add(shape, act=act)
        case "mul":
            return Op.mul(shape, draw(st.sampled_from([shape, (channels, 1, 1)])), act=act)
        case "concat":
            return Op.concat([shape, *[(draw(st.integers(1, 4)), *shape[1:]) for _ in range(draw(st.integers(1, 2)))]])
        case "split":
            sections = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
            return Op.split((sum(sections), *shape[1:]), sections)
        case "shuffle":
            return Op.shuffle(shape, groups)
        case "act":
            return Op.activation(shape, act or "relu")
        case "affine":
            return Op.affine(shape, act=act)
        case "to_blocked" | "to_plain":
            return Op.conversion(shape, blocked=kind == "to_blocked")
    raise AssertionError(kind)


@given(ops())
def test_key_names_the_deployed_operator(op: Op) -> None:
    assert Op.parse(op.key) == op.deployed()
    assert Op.parse(op.key).key == op.key


@given(ops())
def test_deploying_changes_neither_key_nor_cost(op: Op) -> None:
    deployed = op.deployed()
    assert deployed.deployed() == deployed
    assert (deployed.key, deployed.macs, deployed.weight_count) == (op.key, op.macs, op.weight_count)
    assert deployed.deployed_params == op.deployed_params


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_key_that_starts_with_it(kind: str) -> None:
    @given(ops(kind))
    def check(op: Op) -> None:
        assert op.key.split()[0] == kind

    check()


def test_convolution_by_hand() -> None:
    op = Op.conv((3, 224, 224), 32, kernel=3, stride=2, norm=True, act="relu6")
    assert op.output == (32, 112, 112)
    assert op.macs == 32 * 3 * 3 * 3 * 112 * 112 == 10_838_016
    assert (op.weight_count, op.params, op.conv_fc_params, op.deployed_params) == (864, 928, 864, 896)
    assert op.key == "conv 3x224x224>32x112x112 k3 s2 p1 bias relu6"
    assert op.traffic_bytes(4, 2) == 4 * (2 * (3 * 224 * 224 + 32 * 112 * 112) + 896)


def test_depthwise_by_hand() -> None:
    op = Op.conv((32, 112, 112), 32, kernel=5, groups=32, bias=True)
    assert op.depthwise
    assert op.macs == 32 * 25 * 112 * 112
    assert op.params == 32 * 25 + 32
    assert not Op.conv((1, 8, 8), 1, kernel=3).depthwise


def test_linear_by_hand() -> None:
    op = Op.linear(1280, 1000)
    assert (op.macs, op.params, op.key) == (1_280_000, 1_281_000, "linear 1280>1000 bias")


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"), [(112, 3, 2, 0), (7, 2, 2, 0), (28, 3, 2, 1), (6, 2, 3, 1), (5, 3, 3, 1)]
)
def test_ceil_mode_gives_the_shape_that_torch_gives(size: int, kernel: int, stride: int, padding: int) -> None:
    import torch

    expected = torch.nn.functional.max_pool2d(torch.zeros(1, 1, size, size), kernel, stride, padding, ceil_mode=True)
    op = Op.pool("max_pool", (1, size, size), kernel=kernel, stride=stride, padding=padding, ceil_mode=True)
    assert op.output == tuple(expected.shape[1:])


@pytest.mark.parametrize(
    "key",
    [
        "",
        "conv",
        "conv 3x8x8",
        "warp 3x8x8>3x8x8",
        "conv 3x8x8>4x8x8 bias k3",
        "conv 3x8x8>4x8x8 k3x3",
        "conv 0x8x8>4x8x8",
        "conv 3x8x8>4x8x8 nonsense",
        "conv 3x8x8>4x8x8 g2",
        "linear 3>4 k1x2x3",
    ],
)
def test_text_that_is_no_canonical_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="not an operator key"):
        Op.parse(key)


def test_impossible_operators_are_refused() -> None:
    with pytest.raises(ValueError, match="groups"):
        Op.conv((3, 8, 8), 4, kernel=1, groups=2)
    with pytest.raises(ValueError, match="below 1"):
        Op.conv((3, 2, 2), 4, kernel=5, padding=0)
    with pytest.raises(ValueError, match="activation"):
        Op.activation((3, 8, 8), "swoosh")
    with pytest.raises(ValueError, match="add up"):
        Op.split((8, 2, 2), (3, 4))


def test_a_quantised_convolution_has_bitops_and_a_key_of_its_own() -> None:
    op = Op.conv((64, 56, 56), 64, kernel=3, norm=True, residual=True, act="relu", bits=(2, 4))
    assert op.key == "conv 64x56x56,64x56x56>64x56x56 k3 p1 bias w2a4 add relu"
    assert Op.parse(op.key) == op.deployed()
    assert op.bitops == op.macs * 8
    assert replace(op, bits=()).bitops == 0
    assert op.params == replace(op, bits=()).params + 1  # the clip of its activations


@pytest.mark.parametrize("bits", [(0, 2), (2, 9), (2,), (2, 2, 2)])
def test_impossible_bits_are_refused(bits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="bits"):
        Op.conv((4, 8, 8), 4, kernel=1, bits=bits)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bits"):
        replace(Op.linear(4, 2), bits=(2, 2))
