"""What a table needs to price any architecture of a space of atoms: which networks its kernels are timed in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwnas.latency.lowering import Lower
from hwnas.ops import Op
from hwnas.spaces.widths import STAIRS, AtomArch, WidthSpace

TIMES = 2
"""Each number of atoms of a branch is timed in at least so many networks."""

CUTS = (0.3, 0.7)
"""Where networks are parted to be crossed, as shares of their groups of channels."""

CALIBRATION_SCALES = (0.03, 1.0)
"""Share of the supernet's atoms in the smallest and the largest calibration network, about."""


def cover_archs(space: WidthSpace, seed: int = 0) -> list[AtomArch]:
    """Architectures in which every branch has every number of its stairs at least `TIMES` times, drawn at random.

    The last one is the whole net: shares are of what it costs, and it has concatenations that no other has.
    """
    rng = np.random.default_rng([seed, 22])
    stairs = {branch: space.stairs(*branch) for branch in space.branches()}
    count = TIMES * max(map(len, stairs.values()))
    columns = {
        branch: np.concatenate([rng.permutation(steps) for _ in range(-(-count // len(steps)))])[:count]
        for branch, steps in stairs.items()
    }
    drawn = [_arch(space, {branch: int(column[index]) for branch, column in columns.items()}) for index in range(count)]
    return [*drawn, space.supernet_arch]


def calibration_archs(space: WidthSpace, count: int, seed: int = 0) -> list[AtomArch]:
    """`count` architectures from small ones to the supernet itself, the branches of others drawn independently."""
    rng = np.random.default_rng([seed, 23])
    found = []
    for scale in np.geomspace(*CALIBRATION_SCALES, count)[:-1]:
        drawn = {}
        for branch in space.branches():
            steps = space.stairs(*branch)
            wanted = scale * steps[-1] * rng.uniform(0.3, 1.7)
            drawn[branch] = min(steps, key=lambda atoms, wanted=wanted: abs(atoms - wanted))  # type: ignore[misc]
        found.append(_arch(space, drawn))
    return [*found, space.supernet_arch]


def crossed_archs(space: WidthSpace, archs: Sequence[AtomArch]) -> list[AtomArch]:
    """Architectures that have the kernels of `archs`, none of them with as many of one as of another.

    Of a network whose kernels are timed inside it all is known: it cannot tell how well one is predicted whose kernels
    were timed in others. So each is parted in two, at `CUTS` in turn, and the parts change places with another's: what
    the cut parts at one place is together at the other.
    """
    found = []
    half = len(archs) // 2
    for one, other in zip(archs[:half], reversed(archs[-half:]), strict=True):
        for cut in (round(share * len(space.full)) for share in CUTS):
            for first, second in ((one, other), (other, one)):
                widths = (*first.widths[:cut], *second.widths[cut:])
                found.append(AtomArch(space.name, space.revived(widths, {}, STAIRS[0][1])))
    return [arch for arch in dict.fromkeys(found) if arch not in archs]


def _arch(space: WidthSpace, atoms: dict[tuple[int, int], int]) -> AtomArch:
    """The architecture; branches that a net cannot do without get their first stair where they would have none."""
    widths = tuple(tuple(atoms[block, place] for place in range(len(row))) for block, row in enumerate(space.full))
    return AtomArch(space.name, space.revived(widths, {}, STAIRS[0][1]))


def kernels(space: WidthSpace, lower: Lower) -> list[Op]:
    """Each kernel that a table of the space holds, once: of every branch with every number of its stairs."""
    return list(dict.fromkeys(op for arch in cover_archs(space) for op in lower(space.network(arch))))
