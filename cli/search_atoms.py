"""The part of `hwnas search` that is of atoms and gates: spaces, prices, recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hwnas.errors import UsageError

from .search import GATE_METHODS, Shared, default_out, is_gated, prepare_interruption
from .search_prices import check_calibrated, read_table, table_of, zoo_cost
from .terminal import Terminal
from .training import joined

if TYPE_CHECKING:
    from hwnas.atom_costs import AtomCost
    from hwnas.spaces import WidthSpace

SPACES = ("atomnas-tiny", "atomnas-c")
"""The space is the first of these that is meant for the data's image size."""

GATE_SPACES = ("figs-fbnet-tiny", "figs-fbnet")
"""The same for the methods on gates."""

RECIPE, GATE_RECIPE = "atomnas", "figs"


def search_atoms(terminal: Terminal, asked: Shared) -> dict[str, Any] | None:
    """Runs the search; returns its JSON document, None where another process of torchrun has it.

    Raises:
        ClaimError: no architecture meets a budget.
        HwnasError: there is no table, or the data or the training failed.
    """
    from hwnas.atom_costs import atom_costs
    from hwnas.gate_costs import gate_costs
    from hwnas.search.width_search import AtomRequest, follow
    from hwnas.search.width_search import search_atoms as search
    from hwnas.spaces import AtomSpace, GateSpace
    from hwnas.train.recipe import load_recipe

    space = _space(terminal, asked)
    usual = GATE_RECIPE if isinstance(space, GateSpace) else RECIPE
    if asked.recipe is None:
        terminal.default("--recipe", usual)
    recipe = load_recipe(asked.recipe or usual)
    timed = any(spec.cost == "latency" for specs in asked.wanted for spec in specs)
    timed |= isinstance(space, GateSpace) and recipe.gates.cost == "latency" and not any(asked.wanted)
    path = table_of(terminal, space, asked.lut, asked.device, needed=timed)
    model, notes = read_table(path) if path is not None else (None, {})
    check_calibrated(path, model, allowed=asked.allow_uncalibrated or not timed)
    costs: Mapping[str, AtomCost]
    if isinstance(space, GateSpace):
        costs = gate_costs(space, model, recipe.gates.latency, stairs=recipe.gates.stairs)
    else:
        assert isinstance(space, AtomSpace)
        costs = atom_costs(space, model, stairs=recipe.atoms.stairs)

    def resolved(spec: Any) -> Any:
        return spec.resolve_to(
            lambda: costs[spec.cost].total(space.full),
            lambda name: zoo_cost(terminal, spec.cost, name, path, model, notes),
        )

    budgets = [[resolved(spec) for spec in row] for row in asked.wanted]
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
        threads=asked.threads,
        method=asked.method,
        device=asked.train_device,
        notes=notes,
    )
    with joined(asked.train_device) as ranks:
        if not ranks.leads:
            follow(request, ranks)
            return None
        with ranks.leading():
            outcome = search(request, terminal.progress(), ranks)
    return {**outcome.to_json(), "table": notes.get("table"), "zoo": notes.get("zoo", {})}


def _space(terminal: Terminal, asked: Shared) -> WidthSpace:
    """The space that was named, or the one for the data's image size, for the data's classes."""
    from hwnas.models import space_name
    from hwnas.spaces import ATOM_SPACES, AtomSpace, GateSpace, WidthSpace, find_space
    from hwnas.spaces import GATE_SPACES as GATES
    from hwnas.spaces import SPACES as SLOT_SPACES

    name, size = asked.space, asked.info.image_size
    gated = asked.method in GATE_METHODS if name is None else is_gated(name)
    if name is None:
        sizes = {other: family.image_sizes for other, family in (GATES.items() if gated else ATOM_SPACES.items())}
        options = GATE_SPACES if gated else SPACES
        fitting = [n for n in options if sizes[n][0] <= size <= sizes[n][1]]
        name = fitting[0] if fitting else options[0]  # the refusal says which sizes there are
        terminal.default("--space", name, f"for images of {size} pixels")
    lacking = UsageError(
        f"{name} has no gates: this method searches {', '.join(GATES)}, torchvision:NAME and FILE.py:NAME"
        if asked.method in GATE_METHODS
        else f"{name} has no atoms: this method searches {', '.join(ATOM_SPACES)}"
    )
    if name.partition("@")[0] in SLOT_SPACES:  # said before that its images are of another size
        raise lacking
    space = find_space(space_name(name), image_size=size, num_classes=asked.info.num_classes)
    gates_only, both = (*GATE_METHODS, "random"), asked.method == "width"
    if not isinstance(space, WidthSpace if both else GateSpace if asked.method in gates_only else AtomSpace):
        raise lacking
    return space
