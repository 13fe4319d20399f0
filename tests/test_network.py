"""Networks: wiring, totals, and which reshapes are free."""

from __future__ import annotations

import pytest

from hwnas.network import INPUT, Network, NetworkBuilder, reshapes_freely
from hwnas.ops import Op, Shape


def small() -> Network:
    builder = NetworkBuilder((3, 8, 8))
    stem = builder.add(Op.conv((3, 8, 8), 4, kernel=3, norm=True, act="relu"), name="stem")
    builder.add(Op.conv((4, 8, 8), 8, kernel=1, norm=True, act="relu"))
    builder.add(Op.conv((8, 8, 8), 4, kernel=1, norm=True, residual=True), (builder.last, stem))
    builder.add(Op.global_avg_pool((4, 8, 8)))
    builder.add(Op.linear(4, 10))
    return builder.build()


def test_totals_are_those_of_the_operators() -> None:
    network = small()
    assert network.macs == 64 * (4 * 27 + 32 + 32) + 40
    assert network.params == 108 + 8 + 32 + 16 + 32 + 8 + 50
    assert network.conv_fc_params == 108 + 32 + 32 + 50
    assert network.output == (4, 0)
    assert [op.kind for op in network.ops] == ["conv", "conv", "conv", "global_avg_pool", "linear"]


def test_ports_of_a_split() -> None:
    builder = NetworkBuilder((8, 4, 4))
    node, _ = builder.add(Op.split((8, 4, 4), (2, 6)))
    assert builder.shape((node, 0)) == (2, 4, 4)
    assert builder.shape((node, 1)) == (6, 4, 4)
    builder.add(Op.concat([(6, 4, 4), (8, 4, 4)]), ((node, 1), INPUT))
    assert builder.shape() == (14, 4, 4)


def test_what_does_not_fit_is_refused() -> None:
    builder = NetworkBuilder((3, 8, 8))
    with pytest.raises(ValueError, match="is fed"):
        builder.add(Op.conv((4, 8, 8), 4, kernel=1))
    with pytest.raises(ValueError, match="is fed"):
        builder.add(Op.add((3, 8, 8)))
    with pytest.raises(ValueError, match="residual"):
        builder.extend([Op.conv((3, 8, 8), 3, kernel=1, residual=True)])


@pytest.mark.parametrize(
    ("shape", "other", "free"),
    [
        ((4, 1, 1), (4,), True),
        ((4,), (4, 1, 1), True),
        ((4, 7, 7), (196,), True),
        ((4, 7, 7), (4, 7, 7), True),
        ((4, 7, 7), (7, 4, 7), False),
        ((4, 7, 7), (4, 49), False),
        ((4, 7, 7), (195,), False),
    ],
)
def test_free_reshapes(shape: Shape, other: Shape, free: bool) -> None:
    assert reshapes_freely(shape, other) is free
