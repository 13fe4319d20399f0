"""A search for widths, of atoms or of gated channels: what is asked, the nets that are wanted, the run they go to.

How a net is made says `hwnas.search.atomnas` on spaces of atoms and `hwnas.search.figs` on spaces of gates. A killed
run goes on from its last checkpoint to the same net. Under torchrun the first process does the search, and the others
train with it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwnas.atom_costs import AtomCost, cheaper, cheapest
from hwnas.budget import Budget, at_least
from hwnas.errors import ClaimError, HwnasError
from hwnas.progress import NullProgress, Progress
from hwnas.runs import RunFolder
from hwnas.search.atom_projection import Limit
from hwnas.search.request import Request, SearchOutcome, configuration, finished, identity, net_name
from hwnas.spaces.gated import GateSpace
from hwnas.spaces.widths import WidthSpace
from hwnas.train.ranks import SOLO, Ranks

if TYPE_CHECKING:
    from hwnas.search.width_work import WidthShop

METHODS = ("atomnas", "atomnas-equal", "width")
"""Methods on spaces of atoms (`hwnas.search.atomnas`)."""
GATE_METHODS = ("figs", "morphnet", "width", "random")
"""Methods on spaces of gates (`hwnas.search.figs`)."""


@dataclass(frozen=True, slots=True)
class AtomRequest(Request[WidthSpace, AtomCost]):
    """A search among atoms or gated channels."""

    method: str = "atomnas"


@dataclass(frozen=True, slots=True)
class AtomGoal:
    """One net that is wanted: its budgets as limits, and a key that changes with whatever it depends on."""

    name: str
    budgets: tuple[Budget, ...]
    limits: tuple[Limit, ...]
    key: str


def make_goal(request: AtomRequest, budgets: Sequence[Budget]) -> AtomGoal:
    """The net that meets `budgets`; with none, the one that a fixed lambda leads to.

    Raises:
        ClaimError: no architecture does; it says what the cheapest one costs.
        HwnasError: a budget limits a cost that the request has no prices of.
    """
    limits, space = [], request.space
    for budget in budgets:
        if budget.cost not in request.costs:
            raise HwnasError(f"a budget for {budget.cost} needs its prices: profile the device first (hwnas profile)")
        cost = request.costs[budget.cost]
        least = cost.upper(cheaper(space, cost, cheapest(space, cost), budget.limit))
        if least > budget.limit:
            text, what = at_least(budget.cost, least), "upper end" if budget.cost == "latency" else "cost"
            raise ClaimError(
                f"no architecture of {space.name} meets {budget}: give {text} or more, the {what} of the cheapest one"
            )
        limits.append(Limit(cost, budget.limit))
    facts = [
        identity(request),
        request.recipe.model_dump(),
        [(b.cost, b.limit) for b in budgets],
        [[cost.name, cost.upper(space.full), sorted(cost.per_atom(space.full).items())] for cost in _priced(request)],
    ]
    key = hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
    return AtomGoal(net_name(budgets), tuple(budgets), tuple(limits), key)


def _priced(request: AtomRequest) -> list[AtomCost]:
    return [request.costs[name] for name in sorted(request.costs)]


def search_atoms(request: AtomRequest, progress: Progress, ranks: Ranks = SOLO) -> SearchOutcome:
    """Runs the search, or what is left of it; of several `ranks` the first does, and the others `follow`.

    Raises:
        ClaimError: no architecture meets a budget; nothing was trained.
        HwnasError: the data, the folder or the training failed; the message says what to do.
    """
    began = time.monotonic()
    gated = isinstance(request.space, GateSpace)
    if request.method not in (GATE_METHODS if gated else METHODS):
        raise ValueError(f"method {request.method!r} is not one of {GATE_METHODS if gated else METHODS}")
    if gated:
        _check_recipe(request)
        request.space.network(request.space.supernet_arch)  # refuses what has no cost
    goals = [make_goal(request, budgets) for budgets in request.budgets]
    if len({goal.name for goal in goals}) < len(goals):
        raise HwnasError("the same budget is given twice: give each once")
    for goal in goals:
        for budget, limit in zip(goal.budgets, goal.limits, strict=True):
            if limit.met(request.space.full):
                progress.note(f"{budget} does not bind: every architecture of {request.space.name} meets it")
    recipe = request.recipe
    settings = {**identity(request), **(
        {"gates": recipe.gates.model_dump(), "finetune": recipe.finetune.identity()} if gated
        else {"atoms": recipe.atoms.model_dump()}
    )}  # fmt: skip
    run = RunFolder.create(request.out, identity=settings, config=configuration(request))
    with run:
        if all(finished(run.net(goal.name), goal) for goal in goals):
            progress.note(f"{run.path} holds the results already")
        else:
            progress.stage("Data")
            ranks.order("begin")
            work = _shop(request, progress, ranks).work(run)
            for goal in goals:
                if not finished(run.net(goal.name), goal):
                    work.make(goal)
        results = [run.net(goal.name).result() for goal in goals]
        run.write_json("results.json", {"format": 1, "method": request.method, "results": results})
    return SearchOutcome(run.path, request.method, request.space.name, time.monotonic() - began, len(results), results)


def _check_recipe(request: AtomRequest) -> None:
    """Raises:
    HwnasError: the recipe is none of gates, or has no search in it.
    """
    if "gates" not in request.recipe.model_fields_set:
        raise HwnasError(
            "the recipe has no [gates]: take figs or figs-paper, or add the part to yours, empty if need be"
        )
    if request.method in ("figs", "morphnet") and not request.recipe.supernet.steps:
        raise HwnasError(f"the recipe has no steps in [supernet]: {request.method} decides in them which channels stay")


def follow(request: AtomRequest, ranks: Ranks) -> None:
    """What every rank but the first does of a search."""
    orders: dict[str, Callable[[dict[str, Any]], None]] = {}
    orders["begin"] = lambda _: orders.update(_shop(request, NullProgress(), ranks).orders())
    ranks.follow(orders)


def _shop(request: AtomRequest, progress: Progress, ranks: Ranks) -> WidthShop:
    if isinstance(request.space, GateSpace):
        from hwnas.search.figs import GateShop

        return GateShop(request, progress, ranks)
    from hwnas.search.atomnas import AtomShop

    return AtomShop(request, progress, ranks)
