"""What is asked of a search, the nets it is to find, and their figures."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from hwnas.budget import Budget
from hwnas.costs import Cost, macs_cost, params_cost
from hwnas.errors import ClaimError, HwnasError
from hwnas.ops import Shape
from hwnas.runs import NetFolder
from hwnas.search.contradiction import contradiction
from hwnas.search.feasible import FeasibleSampler
from hwnas.spaces.base import Arch, Space
from hwnas.train.paths import sampling_identity
from hwnas.train.recipe import Recipe

METHODS = ("spos", "random")


class Described(Protocol):
    """What a run notes of a space, of slots or of atoms."""

    name: str
    input_shape: Shape
    num_classes: int


S = TypeVar("S", bound=Described)
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Request(Generic[S, C]):
    """What every search is asked for, whatever its space is made of, fully resolved.

    Attributes:
        space: of the data's image size and number of classes.
        data: ``fashion-mnist``, ``folder:DIR`` or ``torchvision:NAME:DIR``.
        budgets: one inner list for each net that is wanted, all of whose budgets it must meet; an empty inner list is
            a search without a limit.
        costs: by name, of `space`; those that the budgets name, and `latency` where there is a table.
        recipe: of training, and of whatever else the method does.
        out: the run folder.
        seed: of everything random.
        threads: of torch.
        method: by its name on the command line.
        device: of torch, ``cpu`` or ``cuda``; which GPU is the `Ranks`' to say.
        notes: anything else to keep in run.toml, such as the latency table and its fingerprint.
    """

    space: S
    data: str
    budgets: Sequence[Sequence[Budget]]
    costs: Mapping[str, C]
    recipe: Recipe
    out: Path
    seed: int = 0
    threads: int = 1
    method: str = ""
    device: str = "cpu"
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SearchRequest(Request[Space, Cost]):
    """A search in a space of slots.

    Attributes:
        method: ``spos``, or ``random``: the baseline alone.
        baseline: searches at random under the same budgets too (method spos).
        front: 0 looks for the best net under its budgets; else for up to so many nets of the front of accuracy against
            the first budget's cost (method spos).
    """

    method: str = "spos"
    baseline: bool = True
    front: int = 0

    @property
    def has_baseline(self) -> bool:
        """Whether a random baseline is searched and fine-tuned beside."""
        return self.method == "spos" and self.baseline


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """What a search found: the JSON of ``hwnas search``."""

    run: Path
    method: str
    space: str
    seconds: float
    evaluated: int
    results: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """As `hwnas search --json` prints it."""
        return {**asdict(self), "run": str(self.run)}


@dataclass(frozen=True, slots=True)
class Goal:
    """One net that is wanted, with everything that judges it.

    Attributes:
        name: of the net, from its budgets: ``latency-17ms``.
        budgets: all of which it must meet.
        sampler: of the architectures that do.
        key: changes with whatever a finished net depends on; one with another key is made again.
    """

    name: str
    budgets: tuple[Budget, ...]
    sampler: FeasibleSampler
    key: str

    @property
    def text(self) -> str:
        """The budgets for people."""
        return " and ".join(map(str, self.budgets)) or "no budget"


class Keyed(Protocol):
    """A net that is wanted; see `Goal`."""

    @property
    def key(self) -> str: ...


def make_goal(request: SearchRequest, budgets: Sequence[Budget]) -> Goal:
    """The net that meets `budgets`.

    Raises:
        ClaimError: no architecture does; it says what the cheapest one costs, or what contradicting budgets would have
            to be.
        HwnasError: a budget limits a cost that the request has no prices of.
    """
    for budget in budgets:
        if budget.cost not in request.costs:
            raise HwnasError(f"a budget for {budget.cost} needs its prices: profile the device first (hwnas profile)")
    if budgets:
        costs, limits = [request.costs[budget.cost] for budget in budgets], [budget.limit for budget in budgets]
    else:
        costs, limits = [macs_cost(request.space)], [np.inf]
    min_use = 0.0 if request.front else request.recipe.evolution.budget_use  # a front has nets of every cost
    try:
        sampler = FeasibleSampler(costs, limits, space=request.space.name, min_use=min_use)
    except ClaimError:
        if (refusal := contradiction(costs, limits, request.space.name)) is None:
            raise
        raise refusal from None
    digest = hashlib.blake2b(digest_size=8)
    for cost, limit in zip(costs, limits, strict=True):
        digest.update(repr((cost.name, limit, cost.upper.fixed)).encode())
        if cost.upper.curve is not None:
            digest.update(repr(cost.upper.curve).encode())
        walk = cost.upper.walk
        for prices in (cost.upper.choices, *((walk.extra, walk.tail) if walk is not None else ())):
            digest.update(np.ascontiguousarray(prices).data)
    elsewhere = {"supernet", "sampling", "train", "atoms"}  # of the identity, or of no net among slots
    recipe = request.recipe.model_dump(exclude=elsewhere)
    recipe["finetune"] = request.recipe.finetune.identity()
    digest.update(json.dumps([slot_identity(request), recipe, request.method]).encode())
    if request.front:
        digest.update(f"front of {request.front}, baseline: {request.has_baseline}".encode())
    return Goal(net_name(budgets), tuple(budgets), sampler, digest.hexdigest())


def net_name(budgets: Sequence[Budget]) -> str:
    """A folder name: ``latency-17ms``, ``latency-60pct-params-4.2M``."""
    parts = []
    for budget in budgets:
        text = budget.text.replace("%", "pct").replace("µ", "u")
        parts.append(f"{budget.cost}-{re.sub(r'[^A-Za-z0-9.]+', '-', text).strip('-.')}")
    return "-".join(parts) or "unlimited"


def identity(request: Request[Any, Any]) -> dict[str, Any]:
    """What the supernet depends on: a run folder belongs to one such set."""
    return {
        "method": request.method,
        "space": request.space.name,
        "data": request.data,
        "image_size": request.space.input_shape[1],
        "num_classes": request.space.num_classes,
        "seed": request.seed,
        "zero_init_residual": request.recipe.zero_init_residual,
        "supernet": request.recipe.supernet.identity(),
    }


def slot_identity(request: SearchRequest) -> dict[str, Any]:
    """That of a search among slots, whose supernet depends on the sampled paths too."""
    return {**identity(request), "sampling": sampling_identity(request.recipe.sampling, request.costs)}


def configuration(request: Request[Any, Any]) -> dict[str, Any]:
    """The rest of what run.toml keeps."""
    return {
        "budgets": [[asdict(budget) for budget in budgets] for budgets in request.budgets],
        "threads": request.threads,
        "device": request.device,
        "recipe": request.recipe.model_dump(),
        "notes": dict(request.notes),
    }


def binding(budgets: Sequence[Budget], costs: Mapping[str, Cost]) -> bool:
    """Whether any architecture of the space breaks one of `budgets`."""
    for budget in budgets:
        upper = costs[budget.cost].upper
        if upper.total_of(upper.dearest()) > budget.limit:
            return True
    return False


def generator(request: SearchRequest, goal: Goal, method: str) -> np.random.Generator:
    """The chance of one search: of the seed, the budgets and the method, and of nothing else."""
    text = repr((method, [(budget.cost, budget.limit) for budget in goal.budgets]))
    return np.random.default_rng(np.random.SeedSequence([request.seed, zlib.crc32(text.encode())]))


def finished(folder: NetFolder, goal: Keyed) -> bool:
    """The net is there, and is what this request would make."""
    files = (folder.arch, folder.weights, folder.onnx)
    return folder.result().get("key") == goal.key and all(file.is_file() for file in files)


def figures(request: SearchRequest, goal: Goal, arch: Arch) -> dict[str, Any]:
    """What an architecture costs and how much of its budgets it uses.

    ``predicted_ms`` and ``high_ms`` (the one-sided upper end) are null where the request has no latencies.
    ``budget_used`` is the upper end's share of the limit, of the budget that is nearest to it.
    ``feasible_fraction`` is the share of all architectures that meet the budgets, ``acceptance`` the share of the
    sampler's draws that could be kept.
    """
    latency, bitops = request.costs.get("latency"), request.costs.get("bitops")
    used = [request.costs[budget.cost].upper.total_of(arch.genes) / budget.limit for budget in goal.budgets]
    return {
        "predicted_ms": latency.prices.total_of(arch.genes) if latency else None,
        "high_ms": latency.upper.total_of(arch.genes) if latency else None,
        "macs": round(macs_cost(request.space).prices.total_of(arch.genes)),
        "params": round(params_cost(request.space).prices.total_of(arch.genes)),
        "bitops": round(bitops.prices.total_of(arch.genes)) if bitops else None,
        "budgets": [asdict(budget) for budget in goal.budgets],
        "budget_used": max(used) if used else None,
        "binding": binding(goal.budgets, request.costs),
        "feasible_fraction": goal.sampler.fraction,
        "acceptance": goal.sampler.acceptance,
    }
