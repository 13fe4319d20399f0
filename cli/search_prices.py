"""What the architectures of a search cost: by arithmetic and by a latency table, and budgets in numbers."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import HwnasError

from .choices import chosen_table, device_profile, named_table
from .terminal import Terminal

if TYPE_CHECKING:
    from hwnas.budget import Budget
    from hwnas.costs import Cost
    from hwnas.latency.model import LatencyModel
    from hwnas.spaces import Space, WidthSpace


@dataclass(frozen=True)
class Priced:
    """A space with what its architectures cost."""

    space: Space
    costs: dict[str, Cost]
    path: Path | None
    model: LatencyModel | None
    notes: dict[str, Any]


def table_of(
    terminal: Terminal, space: Space | WidthSpace, lut: Path | None, device: str | None, *, needed: bool
) -> Path | None:
    """The table that was named, or the newest that covers the space.

    Raises:
        HwnasError: a latency budget needs one and there is none; it names the command.
    """
    if lut is not None:
        return named_table(terminal, lut, device)
    profile = device_profile(terminal, device)
    path = chosen_table(terminal, None, profile, space=space)
    if path is None and needed:
        command = f"hwnas profile --device {shlex.quote(device or profile.name)} {_space_options(space)}"
        raise HwnasError(f"no table under tables/ covers {space.name} on this device: make one with '{command}'")
    return path


def read_table(path: Path) -> tuple[LatencyModel, dict[str, Any]]:
    """The model of a table, and what run.toml keeps of it."""
    from hwnas.latency.model import LatencyModel
    from hwnas.latency.table import LatencyTable

    with LatencyTable.open(path) as table:
        model = LatencyModel(table)
        kept = ("created", "device", "runtime", "batch_size", "threads", "precision")
        made = {key: model.header[key] for key in kept}
        notes = {"table": {"lut": str(path.absolute()), "fingerprint": table.fingerprint, **made}}
    return model, notes


def price(terminal: Terminal, space: Space, lut: Path | None, device: str | None, *, needed: bool) -> Priced:
    """Prices by arithmetic, and by a table: the one that was named or the newest that fits.

    Raises:
        HwnasError: a latency budget needs a table and there is none, or it lacks operators; it names the command.
    """
    from hwnas.costs import bitops_cost, macs_cost, params_cost

    costs = {"macs": macs_cost(space), "params": params_cost(space)}
    if bitops := bitops_cost(space):
        return Priced(space, {**costs, "bitops": bitops}, None, None, {})
    path = table_of(terminal, space, lut, device, needed=needed)
    if path is None:
        return Priced(space, costs, None, None, {})
    model, notes = read_table(path)
    cost, counts = model.cost(space), model.priced(space)
    notes["table"] |= {"imported": model.imported, "calibrated": model.calibrated, "operators": counts}
    if counts["interpolated"] or counts["estimated"] or not model.calibrated:
        terminal.note(_said(counts, calibrated=model.calibrated))
    return Priced(space, {**costs, "latency": cost}, path, model, notes)


def _said(counts: dict[str, int], *, calibrated: bool) -> str:
    """How the operators of the space are priced, in words."""
    how = f"{counts['measured']} operators measured, {counts['interpolated']} interpolated between measured ones"
    text = f"prices: {how}, {counts['estimated']} estimated from bytes and MACs"
    return text if calibrated else f"{text}; no whole networks were measured: intervals are wide"


def check_calibrated(path: Path | None, model: LatencyModel | None, *, allowed: bool) -> None:
    """Refuses a latency budget on a table whose predictions were never compared with whole networks.

    Raises:
        HwnasError: it says what to add.
    """
    if model is not None and not model.calibrated and not allowed:
        raise HwnasError(
            f"{path} is uncalibrated (no whole networks were measured): predictions may be off by half; add "
            "--allow-uncalibrated to search with its wide intervals"
        )


def _space_options(space: Space | WidthSpace) -> str:
    """The options that name a space, without those that are its own defaults."""
    from hwnas.spaces import find_space

    usual = find_space(space.name)
    options = f"--space {shlex.quote(space.name)}"
    if space.input_shape != usual.input_shape:
        options += f" --image-size {space.input_shape[1]}"
    return options if space.num_classes == usual.num_classes else f"{options} --num-classes {space.num_classes}"


def resolve(terminal: Terminal, spec: Any, priced: Priced) -> Budget:
    """A budget as a number.

    Raises:
        HwnasError: it is as much as a zoo's net costs, and the table lacks operators of that net.
    """
    budget: Budget = spec.resolve(
        priced.costs[spec.cost],
        lambda name: zoo_cost(terminal, spec.cost, name, priced.path, priced.model, priced.notes),
    )
    return budget


def zoo_cost(
    terminal: Terminal, cost: str, name: str, path: Path | None, model: LatencyModel | None, notes: dict[str, Any]
) -> float:
    """What a net of the zoo costs; where that rests on operators that were not measured, it is said, and in `notes`.

    Raises:
        HwnasError: the table lacks operators of that net.
    """
    from hwnas.zoo import zoo_network

    network = zoo_network(name)
    if cost != "latency":
        return float(network.bitops if cost == "bitops" else network.counts[cost])
    assert model is not None
    predicted = model.predict(network)
    if predicted.latency_ms is None:
        command = f"hwnas predict zoo:{name} --lut {path} --measure"
        raise HwnasError(f"{path} lacks operators of zoo:{name}: measure them with '{command}'")
    if predicted.guessed and name not in notes.get("zoo", {}):
        notes.setdefault("zoo", {})[name] = predicted.guessed
        terminal.note(f"the budget zoo:{name} rests on more than measurements: {predicted.guessed}")
    return predicted.latency_ms
