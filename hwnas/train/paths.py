"""The paths that a supernet is trained on: uniform over all architectures, or under a constraint (SPOS, section 3.2).

A path is a function of the seed and the step, so that every process of a training, and a resumed one, takes the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.budget import UNITS, format_cost, parse_budget
from hwnas.costs import Cost, Genes, Prices
from hwnas.errors import ClaimError, HwnasError
from hwnas.search.feasible import FeasibleSampler
from hwnas.train.chance import step_rng

if TYPE_CHECKING:
    from hwnas.spaces.base import Space
    from hwnas.train.recipe import Sampling

Path = tuple[int, ...]
Paths = Callable[[int], Path]
"""The genes of the path that is taken in a step."""

_DRAWN = 256
"""Paths drawn at a time under a constraint: one draw costs a millisecond, and as many cost hardly more."""


def uniform_paths(space: Space, seed: int) -> Paths:
    """Uniform over every slot's choices."""
    return lambda step: space.sample(step_rng(seed, "path", step)).genes


class ConstrainedPaths:
    """Uniform over the architectures whose cost lies in a range, exactly; with several bins, one is drawn first.

    The published code draws one of seven bins, rejects up to 500 paths that fall outside of it, and then takes any.
    Here every path is in its bin, by the dynamic programming of `FeasibleSampler`, however rare that is.

    Args:
        space: what is sampled.
        sampling: cost, range and number of bins.
        costs: of `space`, by name.
        seed: of the paths.

    Raises:
        HwnasError: there are no prices of that cost, or the range or one of its bins holds no architecture.
    """

    def __init__(self, space: Space, sampling: Sampling, costs: Mapping[str, Cost], seed: int) -> None:
        if sampling.cost not in costs:
            known = ", ".join(costs)
            raise HwnasError(f"the recipe samples paths by {sampling.cost}, of which there are no prices: {known} have")
        cost = costs[sampling.cost]
        low, high = (_limit(text, cost) for text in (sampling.low, sampling.high))
        if not low < high:
            raise HwnasError(f"the recipe samples paths of {sampling.cost} from {sampling.low} to {sampling.high}: "
                             "low must be below high")  # fmt: skip
        self.edges = np.linspace(low, high, sampling.bins + 1)
        self._samplers = [_between(cost, *ends, space) for ends in zip(self.edges, self.edges[1:], strict=False)]
        self._slots, self._seed = len(space.slots), seed
        self._chunk = lru_cache(maxsize=2)(self._draw)

    def __call__(self, step: int) -> Path:
        chunk, place = divmod(step, _DRAWN)
        return tuple(self._chunk(chunk)[place].tolist())

    def _draw(self, chunk: int) -> Genes:
        rng = step_rng(self._seed, "constrained path", chunk)
        bins = rng.integers(len(self._samplers), size=_DRAWN)
        genes = np.zeros((_DRAWN, self._slots), dtype=np.int64)
        for index, sample in enumerate(self._samplers):
            mine = np.flatnonzero(bins == index)
            genes[mine] = sample(len(mine), rng)
        return genes


def make_paths(space: Space, sampling: Sampling | None, costs: Mapping[str, Cost], seed: int) -> Paths:
    """The paths of a recipe; see `ConstrainedPaths` for what may be wrong with it."""
    return uniform_paths(space, seed) if sampling is None else ConstrainedPaths(space, sampling, costs, seed)


def sampling_identity(sampling: Sampling | None, costs: Mapping[str, Cost]) -> dict[str, Any] | None:
    """What the paths depend on beside the seed; None where they are uniform."""
    if sampling is None:
        return None
    digest = hashlib.blake2b(digest_size=6)
    if sampling.cost in costs:
        prices = costs[sampling.cost].prices
        digest.update(repr(prices.fixed).encode())
        digest.update(np.ascontiguousarray(prices.choices).data)
        if prices.curve is not None:
            digest.update(repr(prices.curve).encode())
    return {**sampling.model_dump(), "prices": digest.hexdigest()}


def _limit(text: str, cost: Cost) -> float:
    if cost.name not in UNITS:
        raise HwnasError(f"the recipe samples paths by {cost.name}: use one of {', '.join(UNITS)}")
    specs = parse_budget(cost.name, text)
    if len(specs) != 1 or specs[0].zoo:
        raise HwnasError(f"the recipe's {text!r} is no end of a range: write a quantity, as 290M or 70%")
    return specs[0].resolve(cost, lambda _: 0.0).limit


def _between(cost: Cost, low: float, high: float, space: Space) -> Callable[[int, np.random.Generator], Genes]:
    """What draws uniformly from the architectures with ``low <= cost <= high``, by the prediction itself."""
    exact = Cost(cost.name, cost.prices, cost.prices)
    cheapest, dearest = (cost.prices.total_of(genes) for genes in (cost.prices.cheapest(), cost.prices.dearest()))
    refusal = HwnasError(
        f"the recipe samples paths of {cost.name} from {format_cost(cost.name, low)} to {format_cost(cost.name, high)}"
        f", where {space.name} has no architecture (it has {format_cost(cost.name, cheapest)} to "
        f"{format_cost(cost.name, dearest)}): change low, high or bins"
    )
    if low > dearest or high < cheapest:
        raise refusal
    try:
        if high >= dearest and low > cheapest:  # only the low end binds
            return _above(exact, low, space)
        sampler = FeasibleSampler([exact], [high], space=space.name, min_use=max(0.0, low / high * (1 - 1e-12)))
    except ClaimError:
        raise refusal from None
    if low > cheapest and sampler.floor == -np.inf:
        raise refusal
    return sampler.sample


def _above(cost: Cost, low: float, space: Space) -> Callable[[int, np.random.Generator], Genes]:
    """What draws uniformly from the architectures that cost at least `low`.

    With the sign turned, that is an upper limit. What a `Walk` adds is left out of the prices that are counted, at its
    most, so that none is lost; draws below `low` are rejected.
    """
    walk = cost.prices.walk
    most = walk.extra.max(axis=1) if walk is not None else 0.0
    tail = float(walk.tail.max()) if walk is not None else 0.0
    table = np.where(np.isfinite(cost.prices.choices), -(cost.prices.choices + most), np.inf)
    turned = Prices(-(cost.prices.fixed + tail), table)
    sampler = FeasibleSampler([Cost(cost.name, turned, turned)], [-cost.prices.sum_at(low)], space=space.name)

    def sample(n: int, rng: np.random.Generator) -> Genes:
        found = np.empty((0, len(space.slots)), dtype=np.int64)
        while len(found) < n:
            drawn = sampler.sample(n, rng)
            found = np.concatenate([found, drawn[cost.prices.total(drawn) >= low]])
        return found[:n]

    return sample
