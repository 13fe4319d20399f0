"""Prices of gated channels: exact where a net is whole, gradients of finite differences, the paper's unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from torch import nn

from hwnas.atom_costs import cheapest
from hwnas.budget import Budget
from hwnas.gate_costs import GateCost, GateCount, gate_costs
from hwnas.gate_latency import GateLatency
from hwnas.network import Network
from hwnas.ops import Op
from hwnas.search.atom_projection import Limit, project
from hwnas.spaces import GateSpace, find_space
from hwnas.spaces.gated import GateSpace as Space


class Device:
    """A made-up device that computes channels in blocks of 16, with a microsecond for every kernel."""

    def each_ms(self, ops: Sequence[Op], _: GateSpace) -> list[float | None]:
        return [None if op.kind == "concat" else self.of(op) for op in ops]

    def of(self, op: Op) -> float:
        blocks = math.prod(math.ceil(c / 16) * 16 for c in (op.output[0], 1 if op.depthwise else op.inputs[0][0]))
        return 1e-3 + 1e-8 * blocks * math.prod(op.output[1:]) * math.prod(op.kernel)

    def search_ends(self, network: Network) -> tuple[float, float]:
        latency = sum(self.of(op) for op in network.ops)
        return latency, 1.03 * latency


def tiny(name: str) -> GateSpace:
    space = find_space(name)
    assert isinstance(space, GateSpace)
    return space


SPACES = {name: tiny(name) for name in ("figs-fbnet-tiny", "figs-oneshot-tiny", "figs-resnet50-tiny")}
COSTS: list[GateCost] = [
    cost for space in SPACES.values() for cost in gate_costs(space, Device()).values()  # type: ignore[arg-type]
]  # fmt: skip
COSTS.append(GateLatency(SPACES["figs-fbnet-tiny"], Device(), "bilinear"))  # type: ignore[arg-type]


def sizes(cost: GateCost) -> np.ndarray:
    return np.array([row[0] for row in cost.gates.full], float)


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: f"{cost.name} of {cost.gates.name}")
def test_the_smooth_cost_is_the_nets_own_and_its_gradient_is_that_of_finite_differences(cost: GateCost) -> None:
    rng = np.random.default_rng(0)
    full = cost.gates.full
    assert cost.estimate(full) == pytest.approx(cost.total(full), rel=1e-9)
    if isinstance(cost, GateCount):  # with a channel or more in every group it is exact
        widths = tuple((int(rng.integers(1, row[0] + 1)),) for row in full)
        assert cost.estimate(widths) == pytest.approx(cost.total(widths), rel=1e-9)
    for _ in range(3):
        sums = rng.uniform(0.05, 0.95, len(full)) * sizes(cost)
        gradient, step = cost.gradient(sums), 1e-6
        moved = sums + step * np.eye(len(sums))
        back = sums - step * np.eye(len(sums))
        differences = (cost.smooth(moved) - cost.smooth(back)) / (2 * step)
        assert np.allclose(gradient, differences, rtol=1e-4, atol=1e-6 * np.abs(gradient).max())
        assert (cost.slopes(sums) > 0).all()


def test_fewer_channels_never_cost_more_and_the_curves_follow_the_table() -> None:
    space = SPACES["figs-fbnet-tiny"]
    cost = GateLatency(space, Device())  # type: ignore[arg-type]
    widths = [row[0] for row in space.full]
    rng = np.random.default_rng(1)
    previous = cost.estimate(space.full)
    while any(widths):
        group = int(rng.choice(np.flatnonzero(widths)))
        widths[group] = int(rng.integers(widths[group]))
        now = cost.estimate(tuple((width,) for width in widths))
        assert now <= previous + 1e-12
        previous = now
    half = tuple((max(8, row[0] // 16 * 8),) for row in space.full)
    assert cost.estimate(half) == pytest.approx(cost.total(half), rel=0.25)


def test_a_pair_counts_once_and_twice_in_the_papers_unit() -> None:
    """facts.md D: masks [.9, .8, .1] into [.7, .05] through a 1x1 convolution: 1.35, and 2.70 by equation 6."""

    def net(shape: tuple[int, ...], classes: int) -> nn.Module:
        convs = [nn.Conv2d(shape[0], 3, 1, bias=False), nn.Conv2d(3, 2, 1, bias=False)]
        return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, classes, bias=False))

    space = Space("toy", net, (3, 4, 4), 5)
    sums = np.array([0.9 + 0.8 + 0.1, 0.7 + 0.05])
    outside = 3 * sums[0] + 5 * sums[1]  # the image's channels and the classes are in every net
    assert float(GateCount(space, "params").smooth(sums)) == pytest.approx(1.35 + outside)
    assert float(GateCount(space, "params", pairs=2).smooth(sums)) == pytest.approx(2 * (1.35 + outside))
    macs = 16 * (1.35 + 3 * sums[0]) + 5 * sums[1]
    assert float(GateCount(space, "macs").smooth(sums)) == pytest.approx(macs)


@pytest.mark.parametrize(
    ("name", "cost_name"),
    [("figs-fbnet-tiny", "latency"), ("figs-oneshot-tiny", "params"), ("figs-resnet50-tiny", "latency")],
)
def test_projections_meet_the_budget_and_keep_what_matters(name: str, cost_name: str) -> None:
    space = SPACES[name]
    cost = gate_costs(space, Device())[cost_name]  # type: ignore[arg-type]
    rng = np.random.default_rng(2)
    importance = {branch: rng.random(space.full[branch[0]][0]) for branch in space.branches()}
    limit = Limit(cost, Budget(cost_name, 0.5 * cost.upper(space.full), "50%").limit)
    found = project(space, importance, [limit])
    assert found.met
    assert 0.9 * limit.most < cost.upper(found.widths) <= limit.most
    assert space.viable(space.empty_of(found.widths))
    least = cheapest(space, cost)
    assert space.viable(space.empty_of(least))
    assert cost.upper(least) < 0.2 * cost.upper(space.full)
    tight = project(space, importance, [Limit(cost, 1.02 * cost.upper(least))])
    assert space.viable(space.empty_of(tight.widths))
