"""The front of accuracy against a cost: a search for many trade-offs at once, after NSGA-II (Deb et al. 2002).

Parents are those of the best non-dominated ranks, within a rank those that are alone in their neighbourhood. The ranks
come from pymoo's non-dominated sorting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwnas.costs import Floats, Prices
from hwnas.errors import RuntimeMissing
from hwnas.spaces.base import Arch

if TYPE_CHECKING:
    from hwnas.search.result import Book


def check_pymoo() -> None:
    """Refuses a search for a front where the library is missing, before anything is trained.

    Raises:
        RuntimeMissing: with the line that installs it.
    """
    try:
        import pymoo  # noqa: F401
    except ImportError:
        raise RuntimeMissing("a front needs the package pymoo", "pip install 'hwnas[pareto]'") from None


def best_spread(book: Book, prices: Prices, count: int) -> list[Arch]:
    """The `count` parents of the next generation, from everything that was scored."""
    archs = list(book.scores)
    points = _points([(arch, book.scores[arch]) for arch in archs], prices)
    ranks = _ranks(points)
    lonely = np.zeros(len(archs))
    for rank in np.unique(ranks):
        mine = np.flatnonzero(ranks == rank)
        lonely[mine] = crowding(points[mine])
    order = np.lexsort((np.arange(len(archs)), -lonely, ranks))  # of equals the one scored first
    return [archs[place] for place in order[:count].tolist()]


def front(evaluated: Sequence[tuple[Arch, float]], prices: Prices, count: int) -> list[Arch]:
    """At most `count` architectures that nothing scored dominates, the cheapest first.

    Of architectures that are equal in both, the one scored first. Where there are more, those in the densest places are
    left out one by one; the two ends stay as long as there is room for them.
    """
    points = _points(evaluated, prices)
    places = np.flatnonzero(_ranks(points) == 0)
    _, first = np.unique(points[places], axis=0, return_index=True)
    places = places[np.sort(first)]
    places = places[np.argsort(points[places, 1], kind="stable")]
    while len(places) > count:
        places = np.delete(places, len(places) - 1 - int(np.argmin(crowding(points[places])[::-1])))
    return [evaluated[place][0] for place in places.tolist()]


def front_level(evaluated: Sequence[tuple[Arch, float]], prices: Prices, limit: float) -> float:
    """How good a front is as a whole: the best accuracy within a budget, on average over all budgets up to `limit`.

    The budgets begin at what the cheapest architecture of the space costs; where nothing scored meets one, its accuracy
    is 0. That is the hypervolume of the front (Zitzler & Thiele 1998), pymoo's, under the point of no accuracy at the
    limit, over the range of the budgets.

    Args:
        evaluated: everything that was scored, with accuracies 0 to 1.
        prices: of the cost that the accuracy is held against.
        limit: the largest budget; beyond what the most expensive architecture costs it is cut off.
    """
    from pymoo.indicators.hv import HV

    points = _points(evaluated, prices)
    least = prices.total_of(prices.cheapest())
    most = min(limit, prices.total_of(prices.dearest()))
    if most <= least:  # every architecture costs the same
        return max(0.0, float(-points[:, 0].min()))
    return float(HV(ref_point=np.array([0.0, most]))(points)) / (most - least)


def crowding(points: Floats) -> Floats:
    """Crowding distance of mutually non-dominated points [n, objectives]: infinite at the ends of each objective."""
    distance = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        span = float(values[order[-1]] - values[order[0]])
        distance[order[[0, -1]]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
    return distance


def _points(evaluated: Sequence[tuple[Arch, float]], prices: Prices) -> Floats:
    """[n, 2], of which less is better: minus the score, and the cost."""
    genes = np.array([arch.genes for arch, _ in evaluated])
    scores = np.array([score for _, score in evaluated])
    return np.stack([-np.where(np.isfinite(scores), scores, -1e30), prices.total(genes)], axis=1)


def _ranks(points: Floats) -> NDArray[np.int64]:
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    _, ranks = NonDominatedSorting().do(points, return_rank=True)
    return np.asarray(ranks, dtype=np.int64)
