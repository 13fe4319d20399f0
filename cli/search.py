"""`hwnas search`: trains a supernet and searches it under budgets."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.errors import HwnasError, UsageError

from .choices import DEFAULT_SPACES, SPACE_NAMES, chosen_table, default_space, device_profile, named_table
from .options import Command, common, file_path, option
from .terminal import Terminal, milliseconds, percent

if TYPE_CHECKING:
    from hwnas.budget import Budget
    from hwnas.costs import Cost
    from hwnas.latency.model import LatencyModel
    from hwnas.spaces import Space
    from hwnas.train.data import DataInfo
    from hwnas.train.recipe import Recipe

METHODS = ("spos", "random")
LATER = ("atomnas", "figs", "width", "morphnet", "atomnas-equal")
"""Methods that have a name already and are not in this version."""

DATA = "fashion-mnist"


@click.command("search", cls=Command)
@option("--method", default="spos", metavar="METHOD", help="spos, or random: its baseline alone  [default: spos]")
@option("--space", metavar="SPACE", help=f"{SPACE_NAMES}  [default: proxyless or its tiny form]")
@option("--data", metavar="DATA", help="fashion-mnist, folder:DIR or torchvision:NAME:DIR  [default: fashion-mnist]")
@option("--lut", type=file_path, metavar="FILE", help="The latency table  [default: the newest that fits]")
@option("--device", metavar="DEVICE", help="Whose tables are looked for without --lut  [default: cpu]")
@option("--allow-uncalibrated", is_flag=True, help="Accept a table without whole networks: wide intervals.")
@option("--latency", metavar="B", help="Budget: 17ms, 60% of the most expensive, zoo:NAME; several by comma.")
@option("--macs", metavar="B", help="Budget: 330M; several by comma.")
@option("--params", metavar="B", help="Budget: 4.2M; several by comma.")
@option("--out", type=file_path, metavar="RUN", help="The run folder; the same one goes on  [default: one under runs/]")
@option("--recipe", metavar="NAME", help="default, quickstart, paper, or a TOML file  [default: default]")
@option("--population", type=click.IntRange(2), metavar="N", help="Of the evolution  [default: the recipe's]")
@option("--generations", type=click.IntRange(1), metavar="N", help="Of the evolution  [default: the recipe's]")
@option("--image-size", type=click.IntRange(1), metavar="N", help="Scale the images  [default: their own size]")
@option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Of everything random  [default: 0]")
@option("--train-threads", type=click.IntRange(1), metavar="N", help="CPU threads of training  [default: all cores]")
@common
@click.pass_obj
def command(
    terminal: Terminal,
    method: str,
    space: str | None,
    data: str | None,
    lut: Path | None,
    device: str | None,
    allow_uncalibrated: bool,
    latency: str | None,
    macs: str | None,
    params: str | None,
    out: Path | None,
    recipe: str | None,
    population: int | None,
    generations: int | None,
    image_size: int | None,
    seed: int,
    train_threads: int | None,
) -> None:
    """Train a supernet on your images and search it under budgets.

    Feasible is what meets the budget with the upper end of its predicted latency. The same RUN goes on where it was
    interrupted, and reuses its trained supernet for other budgets.

    \b
    Example:
      hwnas search --latency 17ms
      hwnas search --latency 60% --recipe quickstart --out runs/quickstart
      hwnas search --latency 8ms,12ms,17ms --data folder:flowers --lut p.lut
      hwnas search --latency 2ms --lut v100-tensorrt-fp16-b32 --allow-uncalibrated
    """
    _check_method(method)
    typed = {cost: text for cost, text in (("latency", latency), ("macs", macs), ("params", params)) if text}
    if not typed:
        raise UsageError("give a budget: --latency 17ms, --macs 330M or --params 4M")
    wanted = _combinations(typed)
    info = _describe(terminal, data, image_size)
    searched = _space(terminal, space, info)
    settings = _recipe(terminal, recipe, population, generations)
    priced = _price(terminal, searched, lut, device, needed="latency" in typed)
    _check_calibrated(priced, allowed=allow_uncalibrated or "latency" not in typed)
    budgets = [[_resolve(spec, priced) for spec in specs] for specs in wanted]
    if out is None:
        out = _default_out(method, searched, info, recipe)
        terminal.default("--out", out)
    _prepare_interruption(terminal, priced.path, out)

    from hwnas.search.request import SearchRequest
    from hwnas.search.spos import search

    request = SearchRequest(
        space=searched,
        data=info.spec,
        budgets=budgets,
        costs=priced.costs,
        recipe=settings,
        out=out,
        seed=seed,
        threads=train_threads or len(os.sched_getaffinity(0)),
        method=method,
        notes=priced.notes,
    )
    document = {**search(request, terminal.progress()).to_json(), "table": priced.notes.get("table")}
    if terminal.json:
        terminal.document(document)
    else:
        _show(terminal, document)


def _check_method(method: str) -> None:
    if method in METHODS:
        return
    if method in LATER:
        raise UsageError(f"the method {method!r} is not in this version: use {' or '.join(METHODS)}")
    close = get_close_matches(method, METHODS + LATER, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"use {' or '.join(METHODS)}"
    raise UsageError(f"no method is called {method!r}: {hint}")


def _combinations(typed: dict[str, str]) -> list[list[Any]]:
    """The budgets of each net that is wanted: lists go side by side, a single budget goes with each of a list.

    Raises:
        UsageError: a budget is none, or two lists differ in length.
    """
    from hwnas.budget import parse_budget

    lists = [parse_budget(cost, text) for cost, text in typed.items()]
    count = max(map(len, lists))
    if any(len(specs) not in (1, count) for specs in lists):
        raise UsageError("lists of budgets must be equally long: they are combined side by side")
    return [
        list(specs) for specs in zip(*(specs * count if len(specs) == 1 else specs for specs in lists), strict=True)
    ]


def _describe(terminal: Terminal, data: str | None, image_size: int | None) -> DataInfo:
    from hwnas.train.data import describe_data

    if data is None:
        data = DATA
        terminal.default("--data", data)
    return describe_data(data, image_size=image_size)


def _space(terminal: Terminal, name: str | None, info: DataInfo) -> Space:
    """The space that was named, or the one for the data's image size, for the data's classes."""
    from hwnas.spaces import get_space

    if name is None:
        name = default_space(info.image_size) or DEFAULT_SPACES[-1]  # the refusal says which sizes there are
        terminal.default("--space", name, f"for images of {info.image_size} pixels")
    return get_space(name, image_size=info.image_size, num_classes=info.num_classes)


def _recipe(terminal: Terminal, name: str | None, population: int | None, generations: int | None) -> Recipe:
    from hwnas.train.recipe import load_recipe, recipe_from

    if name is None:
        name = "default"
        terminal.default("--recipe", name)
    recipe = load_recipe(name)
    changes = {"population": population, "generations": generations}
    data = recipe.model_dump()
    data["evolution"] |= {key: value for key, value in changes.items() if value is not None}
    data["evolution"]["topk"] = min(data["evolution"]["topk"], data["evolution"]["population"])
    return recipe_from(data, name)


@dataclass(frozen=True)
class _Priced:
    """A space with what its architectures cost."""

    space: Space
    costs: dict[str, Cost]
    path: Path | None
    model: LatencyModel | None
    notes: dict[str, Any]


def _price(terminal: Terminal, space: Space, lut: Path | None, device: str | None, *, needed: bool) -> _Priced:
    """Prices by arithmetic, and by a table: the one that was named or the newest that fits.

    Raises:
        HwnasError: a latency budget needs a table and there is none, or it lacks operators; it names the command.
    """
    from hwnas.costs import macs_cost, params_cost
    from hwnas.latency.model import LatencyModel
    from hwnas.latency.table import LatencyTable

    costs = {"macs": macs_cost(space), "params": params_cost(space)}
    if lut is not None:
        path: Path | None = named_table(terminal, lut, device)
    else:
        profile = device_profile(terminal, device)
        path = chosen_table(terminal, None, profile, space=space)
        if path is None and needed:
            command = f"hwnas profile --device {shlex.quote(device or profile.name)} {_space_options(space)}"
            raise HwnasError(f"no table under tables/ covers {space.name} on this device: make one with '{command}'")
    if path is None:
        return _Priced(space, costs, None, None, {})
    with LatencyTable.open(path) as table:
        model = LatencyModel(table)
        kept = ("created", "device", "runtime", "batch_size", "threads", "precision")
        made = {key: model.header[key] for key in kept}
        notes = {"table": {"lut": str(path.absolute()), "fingerprint": table.fingerprint, **made}}
    cost, counts = model.cost(space), model.priced(space)
    notes["table"] |= {"imported": model.imported, "calibrated": model.calibrated, "operators": counts}
    if counts["interpolated"] or counts["estimated"] or not model.calibrated:
        terminal.note(_said(counts, calibrated=model.calibrated))
    return _Priced(space, {**costs, "latency": cost}, path, model, notes)


def _said(counts: dict[str, int], *, calibrated: bool) -> str:
    """How the operators of the space are priced, in words."""
    how = f"{counts['measured']} operators measured, {counts['interpolated']} interpolated between measured ones"
    text = f"prices: {how}, {counts['estimated']} estimated from bytes and MACs"
    return text if calibrated else f"{text}; no whole networks were measured: intervals are wide"


def _check_calibrated(priced: _Priced, *, allowed: bool) -> None:
    """Refuses a latency budget on a table whose predictions were never compared with whole networks.

    Raises:
        HwnasError: it says what to add.
    """
    if priced.model is not None and not priced.model.calibrated and not allowed:
        raise HwnasError(
            f"{priced.path} is uncalibrated (no whole networks were measured): predictions may be off by half; add "
            "--allow-uncalibrated to search with its wide intervals"
        )


def _space_options(space: Space) -> str:
    """The options that name a space, without those that are its own defaults."""
    from hwnas.spaces import get_space

    usual = get_space(space.name)
    options = f"--space {space.name}"
    if space.input_shape != usual.input_shape:
        options += f" --image-size {space.input_shape[1]}"
    return options if space.num_classes == usual.num_classes else f"{options} --num-classes {space.num_classes}"


def _resolve(spec: Any, priced: _Priced) -> Budget:
    """A budget as a number.

    Raises:
        HwnasError: it is as much as a zoo's net costs, and the table lacks operators of that net.
    """
    from hwnas.zoo import zoo_network

    def zoo_cost(name: str) -> float:
        network = zoo_network(name)
        if spec.cost != "latency":
            return float(getattr(network, spec.cost))
        assert priced.model is not None
        latency = priced.model.predict(network).latency_ms
        if latency is None:
            command = f"hwnas predict zoo:{name} --lut {priced.path} --measure"
            raise HwnasError(f"{priced.path} lacks operators of zoo:{name}: measure them with '{command}'")
        return latency

    budget: Budget = spec.resolve(priced.costs[spec.cost], zoo_cost)
    return budget


def _default_out(method: str, space: Space, info: DataInfo, recipe: str | None) -> Path:
    """The same search finds its folder again; another recipe has another one."""
    from hwnas.runs import ROOT, default_name

    name = default_name(method, space.name, info.slug)
    return ROOT / (name if recipe is None or recipe == "default" else f"{name}-{Path(recipe).stem}")


def _prepare_interruption(terminal: Terminal, lut: Path | None, out: Path) -> None:
    terminal.kept = f"everything finished is in {out}"
    given = set(itertools.chain.from_iterable(word.split("=")[:1] for word in terminal.argv))
    extra: list[str] = []
    if lut is not None and "--lut" not in given:
        extra += ["--lut", str(lut)]
    if "--out" not in given:
        extra += ["--out", str(out)]
    terminal.resume = (*terminal.argv, *extra)


def _show(terminal: Terminal, document: dict[str, Any]) -> None:
    from rich.table import Table

    from hwnas.progress import duration

    table = Table(box=None, pad_edge=False)
    table.add_column("net")
    for title in ("budget", "predicted ms", "upper end", "MACs", "params", "accuracy", "random baseline"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in document["results"]:
        baseline = (result.get("baseline") or {}).get("accuracy")
        table.add_row(
            result["net"],
            budget_text(result["budgets"]),
            milliseconds(result["predicted_ms"]),
            milliseconds(result["high_ms"]),
            f"{result['macs']:,}",
            f"{result['params']:,}",
            percent(result["accuracy"]),
            percent(baseline),
        )
    evaluated = f"{document['evaluated']} architectures scored in {duration(document['seconds'])}"
    terminal.table(table, f"{evaluated}; files in {document['run']}", f"next: hwnas verify {document['run']}")


def budget_text(budgets: Sequence[dict[str, Any]]) -> str:
    """The budgets of a result, for people: what was typed, and what that is."""
    from hwnas.budget import format_cost

    texts = []
    for budget in budgets:
        limit, typed = format_cost(budget["cost"], budget["limit"]), budget["text"]
        texts.append(f"{typed}: {limit}" if "%" in typed or ":" in typed else limit)
    return ", ".join(texts)
