"""What is cut out of models as people write them: layers used twice or as functions, activations in place or bent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scrambled import scrambled
from torch import Tensor, nn

from hwnas.nn.gates import gate
from hwnas.trace.narrow import Severed

SHAPE = (3, 8, 8)
F = nn.functional


def norm(cin: int, cout: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(cout))


class Model(nn.Module):
    """A branch, of which nothing but a constant is left when `a` has no channel, added to the stem's output.

    Args:
        after: what follows the sum.
        act: of the branch.
        quiet: nothing at all is left of the branch.
    """

    def __init__(
        self,
        after: Callable[[Model, Tensor], Tensor],
        act: Callable[[Tensor], Tensor] = torch.relu,
        *,
        quiet: bool = False,
    ) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = norm(3, 4, 3), norm(4, 5, 3), norm(5, 6, 1), norm(6, 4, 1)
        if quiet:
            self.b, self.c = (nn.Sequential(nn.Conv2d(*sizes, 1, bias=False)) for sizes in ((5, 6), (6, 4)))
        self.plain = nn.Conv2d(4, 4, 1)
        self.groups = nn.Conv2d(4, 4, 1, groups=2)
        self.loose = nn.Conv2d(4, 4, 1, groups=2, bias=False)
        self.deep = nn.Conv2d(4, 4, 1, groups=4)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.weight = nn.Parameter(torch.linspace(-1, 1, 16).double().view(4, 4, 1, 1))
        self.act, self.after = act, after
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x + self.c(self.act(self.b(self.act(self.a(x)))))
        return self.fc((self.after(self, y) + x * 0.5).mean((2, 3)))  # x is read once more


def twice(layer: str) -> Callable[[Model, Tensor], Tensor]:
    def after(m: Model, y: Tensor) -> Tensor:
        first = torch.relu(getattr(m, layer)(y))
        return first + torch.relu(getattr(m, layer)(first))

    return after


AFTER: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "groups": lambda m, y: torch.relu(m.groups(y)),
    "groups without bias": lambda m, y: torch.relu(m.norm(m.loose(y))),
    "shared convolution": twice("plain"),
    "shared depthwise convolution": twice("deep"),
    "shared norm": twice("norm"),
    "function": lambda m, y: torch.relu(F.conv2d(y, m.weight)),
    "layer in place": lambda m, y: m.relu(y),
    "function in place": lambda m, y: F.relu(y, inplace=True),
    "method in place": lambda m, y: y.relu_(),
    "operator in place": lambda m, y: torch.relu(y.add_(m.plain(y))),
    "mean by another number": lambda m, y: torch.relu(F.avg_pool2d(y, 2, divisor_override=3)).repeat(1, 1, 2, 2),
    "a scale that learns": lambda m, y: torch.relu(y * m.weight[0, 0, 0, 0]),
}
ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky": nn.LeakyReLU(0.2),
    "leaky function": lambda x: F.leaky_relu(x, 0.3),
    "leaky by name": lambda x: F.leaky_relu(input=x, negative_slope=0.3),
    "gelu": nn.GELU("tanh"),
    "clamped": lambda x: x.clamp(0, 6),
    "in place": nn.SiLU(inplace=True),
    "bounded": nn.Hardtanh(0.0, 6.0),
}
REFUSED = {"mean by another number", "a scale that learns"}
"""What is not understood is fed all that it always was: nothing before it may go."""


def check(model: nn.Module, empty: str, share: float = 0.6) -> None:
    """The cut net computes what the gated one does with hard masks."""
    net = gate(scrambled(model), SHAPE).eval()
    generator = torch.Generator().manual_seed(1)
    alive = torch.rand(net.readable.channels.count, generator=generator) < share
    for group in net.readable.channels.groups:
        part = slice(group.first, group.first + group.size)
        alive[part] = False if group.name.startswith(empty) else alive[part] | (torch.arange(group.size) == 0)
    images = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
    net.hard(alive)
    with torch.no_grad():
        expected = net(images)
        found = net.cut(alive).eval()(images)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", AFTER)
def test_a_constant_reaches_what_cannot_take_it_in(name: str) -> None:
    check(Model(AFTER[name]), "nothing")
    if name in REFUSED:
        with pytest.raises(Severed, match="would be fed something else"):
            check(Model(AFTER[name]), "a.")
    else:
        check(Model(AFTER[name]), "a.")
        check(Model(AFTER[name], quiet=True), "a.")


@pytest.mark.parametrize("name", ACTS)
def test_constants_go_through_the_nets_own_activation(name: str) -> None:
    check(Model(lambda _, y: torch.relu(y), ACTS[name]), "a.")


class Products(nn.Module):
    """What two activations make of nothing, multiplied, is something."""

    def __init__(self, *, both: bool) -> None:
        super().__init__()
        self.both = both
        self.stem, self.a, self.b, self.fc = norm(3, 4, 3), norm(4, 5, 3), norm(4, 5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        a, b = self.a(x), torch.sigmoid(self.b(x))
        return self.fc(((torch.sigmoid(a) if self.both else a) * b).mean((2, 3)))


@pytest.mark.parametrize("both", [False, True])
def test_a_product_is_nothing_where_one_factor_is(both: bool) -> None:
    check(Products(both=both), "nothing", 0.5)
    groups = [group.name for group in gate(Products(both=both), SHAPE).readable.channels.groups]
    assert groups == (["stem.0"] if both else ["stem.0", "a.0"])
