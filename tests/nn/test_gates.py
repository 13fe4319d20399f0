"""Gates on any model: which channels are tied, and that a cut net computes what the gated one does with hard masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scrambled import scrambled
from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.nn.cut import empty_groups
from hwnas.nn.gates import GatedNet, gate
from hwnas.trace import ops_of
from hwnas.trace.narrow import Severed, narrowed, remains

SHAPE = (3, 8, 8)


class Residual(nn.Module):
    """A ResNet in small: a stem, an identity block, a block with a projection; pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.a = nn.Sequential(*layer(6, 4, 3), *layer(4, 6, 3)[:2])
        self.b = nn.Sequential(*layer(6, 5, 3), *layer(5, 8, 3)[:2])
        self.short = nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.relu = nn.ReLU()
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu(self.a(x) + x)
        x = self.relu(self.b(x) + self.short(x))
        return self.fc(x.mean((2, 3)))


class Branches(nn.Module):
    """Two depthwise operators side by side, lined up by a concatenation; then hidden linear layers on all pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*layer(3, 6, 3))
        self.k3 = nn.Sequential(*layer(6, 7, 1), *depthwise(7, 3), *layer(7, 5, 1)[:2])
        self.k5 = nn.Sequential(*layer(6, 4, 1), *depthwise(4, 5), *layer(4, 6, 1)[:2])
        self.join = nn.Sequential(nn.Conv2d(11, 5, 1), nn.ReLU())
        self.fc = nn.Sequential(nn.Linear(5 * 16, 7), nn.ReLU(), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(self.stem(x), 2)
        x = self.join(torch.cat([self.k3(x), self.k5(x)], 1))
        return self.fc(x.flatten(1))


class Excited(nn.Module):
    """Squeeze and excitation, in a block that adds its input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*layer(3, 6, 3))
        self.reduce, self.excite = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.conv = nn.Sequential(nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gates = torch.sigmoid(self.excite(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        x = self.conv(x * gates) + x
        return self.fc(x.mean((2, 3)))


class Twice(nn.Module):
    """A concatenation of one value with itself and with a branch, as at the beginning of One-Shot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*layer(3, 6, 3))
        self.branch = nn.Sequential(*layer(6, 4, 3))
        self.join = nn.Sequential(*layer(16, 5, 1))
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(self.join(torch.cat([x, x, self.branch(x)], 1)).mean((2, 3)))


def layer(cin: int, cout: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(cout), nn.ReLU()]


def depthwise(channels: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU()]


def gated(make: Callable[[], nn.Module], **options: float) -> GatedNet:
    return gate(scrambled(make()), SHAPE, **options)


MODELS: list[Callable[[], nn.Module]] = [Residual, Branches, Excited, Twice]
NETS = {make.__name__: gated(make).eval() for make in MODELS}


def images(count: int = 3) -> Tensor:
    return torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def draw_alive(net: GatedNet, seed: int) -> Tensor | None:
    """Random channels, now and then without any of a group; None where that would sever the net."""
    rng = np.random.default_rng(seed)
    channels = net.readable.channels
    for _ in range(30):
        alive = torch.from_numpy(rng.random(channels.count) < rng.uniform(0.3, 1))
        for group in channels.groups:
            if rng.random() < 0.25:
                alive[group.first : group.first + group.size] = False
        try:
            remains(channels, empty_groups(channels, alive))
        except Severed:
            continue
        return alive
    return None


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_cut_net_computes_what_the_gated_one_does_with_hard_masks(name: str, seed: int) -> None:
    net = NETS[name]
    alive = draw_alive(net, seed)
    if alive is None:
        return
    net.hard(alive)
    with torch.no_grad():
        wanted = net(images())
        plain = net.cut(alive).eval()
        assert torch.allclose(plain(images()), wanted, atol=1e-12)
    # and its operators are those that arithmetic says
    channels = net.readable.channels
    widths = [int(alive[group.first : group.first + group.size].sum()) for group in channels.groups]
    network = narrowed(channels, remains(channels, empty_groups(channels, alive)), widths)
    assert [op.key for op in network.ops] == [op.key for op in ops_of(plain, SHAPE).ops]
    assert network.params == sum(parameter.numel() for parameter in plain.parameters())


def test_a_value_that_is_lined_up_twice_stays_twice_when_what_is_beside_it_goes() -> None:
    net = NETS["Twice"]
    (branch,) = (group for group in net.readable.channels.groups if "branch" in group.name)
    alive = torch.ones(net.readable.channels.count, dtype=torch.bool)
    alive[branch.first : branch.first + branch.size] = False
    net.hard(alive)
    with torch.no_grad():
        assert torch.allclose(net.cut(alive).eval()(images()), net(images()), atol=1e-12)


def test_with_every_gate_open_the_net_is_the_model_and_so_is_what_is_cut_of_nothing() -> None:
    for make in MODELS:
        model = scrambled(make()).eval()
        with torch.no_grad():
            wanted = model(images())
            net = gate(model, SHAPE).eval()
            net.hard(torch.ones(net.readable.channels.count, dtype=torch.bool))
            assert torch.equal(net(images()), wanted)


def groups_of(name: str) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {group.name: (group.size, group.layers) for group in NETS[name].readable.channels.groups}


def test_sums_tie_depthwise_passes_concatenations_split_and_flattening_spreads() -> None:
    residual = groups_of("Residual")
    assert residual["stem.0"] == (6, ("stem.0", "a.3"))
    assert residual["b.3"] == (8, ("b.3", "short.0"))
    assert set(residual) == {"stem.0", "a.0", "b.0", "b.3"}
    branches = NETS["Branches"].readable.channels
    assert [group.name for group in branches.groups] == ["stem.0", "k3.0", "k3.6", "k5.0", "k5.6", "join.0", "fc.0"]
    joined = next(step for step in branches.graph.steps if step.kind == "concat")
    assert [(run.group, run.count) for run in branches.runs[joined.index, 0]] == [(2, 5), (4, 6)]
    flat = branches.runs[next(step.index for step in branches.graph.steps if step.name == "fc.0") - 1, 0]
    assert [(run.group, run.count, run.times) for run in flat] == [(5, 80, 16)]
    # squeeze and excitation: the gates have the channels that they multiply
    assert groups_of("Excited")["stem.0"] == (6, ("stem.0", "excite", "conv.0"))


def test_the_report_says_what_is_tied_and_what_cannot_be_gated_and_why() -> None:
    assert "6 channels tied: stem.0, a.3" in NETS["Residual"].report()
    assert "not gated: fc: its channels are the net's output" in NETS["Residual"].report()
    shared = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    twice = gate(nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.ReLU(), shared, nn.Conv2d(4, 5, 1), nn.Conv2d(5, 2, 1)),
                 SHAPE)  # fmt: skip
    assert "not gated: 1: 1 is used in 2 places: give each place a layer of its own" in twice.report()
    assert [group.name for group in twice.readable.channels.groups] == ["4"]
    two_groups = nn.Conv2d(4, 4, 3, groups=2)
    grouped = gate(nn.Sequential(nn.Conv2d(3, 4, 1), two_groups, nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)), SHAPE)
    assert "not gated: 0: 1 has 2 groups" in grouped.report()


class Bent(nn.Module):
    """Its forward depends on an image's values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.conv(x)
        return x


class Named(nn.Module):
    """Its forward names a number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4 * 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).view(-1, 4 * 64))


def test_bad_models_are_refused_in_one_line() -> None:
    with pytest.raises(HwnasError, match=r"Bent cannot be traced .*test_gates.py line \d+\): take what depends on"):
        gate(Bent(), SHAPE)
    with pytest.raises(HwnasError, match=r"has no channels that could go: .*its channels are the net's output"):
        gate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), SHAPE)
    net = gate(Named(), SHAPE)
    with pytest.raises(HwnasError, match="its forward names a number of channels"):
        net.cut(torch.tensor([True, True, False, True]))
    with pytest.raises(Severed, match="nothing of the image would reach the output"):
        NETS["Residual"].cut(torch.zeros(NETS["Residual"].readable.channels.count, dtype=torch.bool))


# -- masks -----------------------------------------------------------------------------------------------------------


def test_masks_follow_the_logistic_sigmoid_distribution() -> None:
    net = gated(Residual)
    net.logits.data.copy_(torch.linspace(-3, 3, len(net.logits)))
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([net.sample(generator).detach() for _ in range(4000)])
    assert masks.dtype == torch.float32
    chances = net.chances().detach()
    error = (masks.mean(0) - chances).abs() / (chances * (1 - chances) / 4000).sqrt()
    assert float(error.max()) < 4
    between = ((masks > 1e-3) & (masks < 1 - 1e-3)).float().mean()
    assert float(between) < 0.01  # tau 0.001: all but zeros and ones


def test_the_gradient_is_that_of_the_formula() -> None:
    net = gated(Residual, tau=0.3)
    masks = net.sample(torch.Generator().manual_seed(1))
    masks.sum().backward()
    found = masks.detach()
    assert net.logits.grad is not None
    assert torch.allclose(net.logits.grad, found * (1 - found) / 0.3, atol=1e-6)


def test_same_noise_same_output_and_bfloat16_keeps_the_masks_in_float32() -> None:
    net = gate(Residual(), SHAPE)
    x = images().float()
    net.set_masks(net.sample(torch.Generator().manual_seed(3)).detach())
    first = net(x)
    net.set_masks(net.sample(torch.Generator().manual_seed(3)).detach())
    assert torch.equal(first, net(x))
    net.set_masks(None)
    with torch.autocast("cpu", torch.bfloat16):
        net(x).float().sum().backward()
    assert net.logits.grad is not None
    assert net.logits.grad.dtype == torch.float32
    assert set(net.state_dict()) == {"logits", *(f"net.{name}" for name in Residual().state_dict())}


def test_expected_widths_are_sums_of_chances_rounded_down() -> None:
    net = gate(nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 2, 1)), SHAPE)
    assert net.expected() == [59]  # 64 * 0.9241 = 59.1
    net.logits.data[:10] = -2.0
    keep = net.keeping([54])
    assert not keep[:10].any()
    assert keep[10:].all()
