"""The part of `hwnas search` that is of atoms: spaces, prices, recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import UsageError

from .search import Shared, check_calibrated, default_out, prepare_interruption, read_table, table_of, zoo_cost
from .terminal import Terminal

if TYPE_CHECKING:
    from hwnas.atom_costs import AtomCost
    from hwnas.spaces import AtomSpace
    from hwnas.train.data import DataInfo

SPACES = ("atomnas-tiny", "atomnas-c")
"""The space is the first of these that is meant for the data's image size."""

RECIPE = "atomnas"


def search_atoms(terminal: Terminal, asked: Shared) -> dict[str, Any]:
    """Runs the search; returns its JSON document.

    Raises:
        ClaimError: no architecture meets a budget.
        HwnasError: there is no table, or the data or the training failed.
    """
    from hwnas.atom_costs import atom_costs
    from hwnas.search.atomnas import AtomRequest
    from hwnas.search.atomnas import search_atoms as search
    from hwnas.train.recipe import load_recipe

    space = _space(terminal, asked.space, asked.info)
    if asked.recipe is None:
        terminal.default("--recipe", RECIPE)
    recipe = load_recipe(asked.recipe or RECIPE)
    timed = any(spec.cost == "latency" for specs in asked.wanted for spec in specs)
    path = table_of(terminal, space, asked.lut, asked.device, needed=timed)
    model, notes = read_table(path) if path is not None else (None, {})
    check_calibrated(path, model, allowed=asked.allow_uncalibrated or not timed)
    costs = atom_costs(space, model)
    budgets = [[_resolved(spec, space, costs[spec.cost], path, model) for spec in row] for row in asked.wanted]
    out = asked.out
    if out is None:
        out = default_out(asked.method, space, asked.info, asked.recipe)
        terminal.default("--out", out)
    prepare_interruption(terminal, path, out)
    request = AtomRequest(
        space=space,
        data=asked.info.spec,
        budgets=budgets,
        costs=costs,
        recipe=recipe,
        out=out,
        seed=asked.seed,
        threads=asked.threads or len(os.sched_getaffinity(0)),
        method=asked.method,
        notes=notes,
    )
    return {**search(request, terminal.progress()).to_json(), "table": notes.get("table")}


def _space(terminal: Terminal, name: str | None, info: DataInfo) -> AtomSpace:
    """The space that was named, or the one for the data's image size, for the data's classes."""
    from hwnas.spaces import ATOM_SPACES, AtomSpace, find_space

    if name is None:
        fitting = [
            n for n in SPACES if ATOM_SPACES[n].image_sizes[0] <= info.image_size <= ATOM_SPACES[n].image_sizes[1]
        ]
        name = fitting[0] if fitting else SPACES[0]  # the refusal says which sizes there are
        terminal.default("--space", name, f"for images of {info.image_size} pixels")
    space = find_space(name, image_size=info.image_size, num_classes=info.num_classes)
    if not isinstance(space, AtomSpace):
        raise UsageError(f"{name} has no atoms: this method searches {', '.join(ATOM_SPACES)}")
    return space


def _resolved(spec: Any, space: AtomSpace, cost: AtomCost, path: Path | None, model: Any) -> Any:
    """A budget as a number."""
    return spec.resolve_to(lambda: cost.total(space.full), lambda name: zoo_cost(spec.cost, name, path, model))
