"""Which networks a table of a space of widths is made from."""

from __future__ import annotations

import pytest

from hwnas.latency.atoms import calibration_archs, cover_archs, crossed_archs
from hwnas.latency.lowering import Blocked
from hwnas.spaces import find_space
from hwnas.spaces.gated import GateSpace

LOWER = Blocked(16)


@pytest.mark.parametrize(
    "name", ["figs-fbnet-tiny", "figs-oneshot-tiny", "figs-oneshot-tiny@add", "figs-resnet50-tiny"]
)
def test_crossed_networks_have_the_kernels_of_those_that_they_are_of_and_are_none_of_them(name: str) -> None:
    """A network must not tell how well it is predicted itself: its kernels are timed in others."""
    space = find_space(name)
    assert isinstance(space, GateSpace)
    drawn = calibration_archs(space, 30)
    crossed = crossed_archs(space, drawn)
    assert not set(crossed) & set(drawn)
    timed = {op for arch in (*cover_archs(space), *crossed) for op in LOWER(space.network(arch))}
    kernels = [LOWER(space.network(arch)) for arch in drawn]
    lacking = [[op for op in ops if op not in timed] for ops in kernels]
    assert sum(map(len, lacking)) < 0.01 * sum(map(len, kernels))  # what both cuts part is timed alone
    sizes = [space.network(arch).macs for arch in (*drawn, *crossed)]
    assert min(sizes) in sizes[:30]  # small ones are crossed with large ones
    assert max(sizes) in sizes[:30]
