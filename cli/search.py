"""`hwnas search`: trains a supernet and searches it under budgets."""

from __future__ import annotations

import itertools
import re
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
from .torchrun import several
from .training import joined, thread_count, train_options

if TYPE_CHECKING:
    from hwnas.budget import Budget
    from hwnas.costs import Cost
    from hwnas.latency.model import LatencyModel
    from hwnas.spaces import Space, WidthSpace
    from hwnas.train.data import DataInfo
    from hwnas.train.recipe import Recipe

SLOT_METHODS = ("spos", "random")
ATOM_METHODS = ("atomnas", "atomnas-equal", "width")
GATE_METHODS = ("figs", "morphnet")
"""Methods on spaces of gates only; width and random search those too."""
METHODS = SLOT_METHODS + ATOM_METHODS + GATE_METHODS

DATA = "fashion-mnist"


@click.command("search", cls=Command)
@option("--method", default="spos", metavar="METHOD", help=f"{', '.join(METHODS)}  [default: spos]")
@option("--space", metavar="SPACE", help=f"{SPACE_NAMES}  [default: proxyless or its tiny form]")
@option("--data", metavar="DATA", help="fashion-mnist, folder:DIR or torchvision:NAME:DIR  [default: fashion-mnist]")
@option("--lut", type=file_path, metavar="FILE", help="The latency table  [default: the newest that fits]")
@option("--device", metavar="DEVICE", help="Whose tables are looked for without --lut  [default: cpu]")
@option("--allow-uncalibrated", is_flag=True, help="Accept a table without whole networks: wide intervals.")
@option("--latency", metavar="B", help="Budget: 17ms, 60% of the most expensive, zoo:NAME; several by comma.")
@option("--macs", metavar="B", help="Budget: 330M; several by comma.")
@option("--params", metavar="B", help="Budget: 4.2M; several by comma.")
@option("--front", type=click.IntRange(2), metavar="N", help="Up to N nets, accuracy against the first budget's cost.")
@option("--bitops", metavar="B", help="Budget of a quantised space: 6.3G (G is 2^30); several by comma.")
@option("--out", type=file_path, metavar="RUN", help="The run folder; the same one goes on  [default: one under runs/]")
@option("--recipe", metavar="NAME", help="A recipe that ships, or a TOML file  [default: default, atomnas or figs]")
@option("--population", type=click.IntRange(2), metavar="N", help="Of the evolution  [default: the recipe's]")
@option("--generations", type=click.IntRange(1), metavar="N", help="Of the evolution  [default: the recipe's]")
@option("--image-size", type=click.IntRange(1), metavar="N", help="Scale the images  [default: their own size]")
@option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Of everything random  [default: 0]")
@train_options
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
    front: int | None,
    bitops: str | None,
    out: Path | None,
    recipe: str | None,
    population: int | None,
    generations: int | None,
    image_size: int | None,
    seed: int,
    train_threads: int | None,
    train_device: str | None,
) -> None:
    """Train a supernet on your images and search it under budgets.

    spos evolves architectures of one trained supernet, random is its baseline alone. atomnas shrinks a supernet of
    atoms while it trains, once for every budget; atomnas-equal (no cost coefficients) and width (a width multiplier)
    are its baselines. figs learns gates on every channel of a net, cuts it onto the budget and retrains it; morphnet
    (an L1 penalty on BatchNorms), width and random are its baselines. Without a budget atomnas, figs and morphnet keep
    the recipe's penalty, as the papers do.

    Feasible is what meets the budget with the upper end of its predicted latency. The same RUN goes on where it was
    interrupted, and reuses its trained supernet for other budgets. With --front the nets are those that no other one
    scored beats in both accuracy and cost, spread from the cheapest to the budget.

    \b
    Example:
      hwnas search --latency 17ms
      hwnas search --latency 60% --recipe quickstart --out runs/quickstart
      hwnas search --latency 8ms,12ms,17ms --data folder:flowers --lut p.lut
      hwnas search --latency 17ms --front 6
      hwnas search --method atomnas --space atomnas-tiny --latency 50%
      hwnas search --method figs --space torchvision:resnet18 --data folder:flowers --params 60%
      hwnas search --latency 2ms --lut v100-tensorrt-fp16-b32 --allow-uncalibrated
      torchrun --nproc-per-node 2 --no-python hwnas search --latency 17ms
    """
    _check_method(method)
    given = {"latency": latency, "macs": macs, "params": params, "bitops": bitops}
    typed = {cost: text for cost, text in given.items() if text}
    if not typed and method not in ("atomnas", "figs", "morphnet"):
        raise UsageError(
            "give a budget: --latency 17ms, --macs 330M, --params 4M, or --bitops 6.3G of a quantised space"
        )
    wanted = _combinations(typed) if typed else [[]]
    if front and method != "spos":
        raise UsageError("--front is for the method spos")
    info = _describe(terminal, data, image_size)
    if method in ATOM_METHODS + GATE_METHODS or (space is not None and method == "random" and is_gated(space)):
        from .search_atoms import search_atoms

        if several():
            raise UsageError(f"{method} is for one process: start it without torchrun")
        where = thread_count(train_threads), train_device or "cpu"
        shared = Shared(method, space, info, lut, device, allow_uncalibrated, wanted, out, recipe, seed, *where)
        document = search_atoms(terminal, shared)
        terminal.document(document) if terminal.json else _show(terminal, document)
        return
    searched = _space(terminal, space, info)
    _check_bits(searched, typed)
    settings = _recipe(terminal, recipe, population, generations)
    priced = _price(terminal, searched, lut, device, needed="latency" in typed)
    _check_calibrated(priced, allowed=allow_uncalibrated or "latency" not in typed)
    budgets = [[_resolve(terminal, spec, priced) for spec in specs] for specs in wanted]
    if out is None:
        out = default_out(method, searched, info, recipe)
        terminal.default("--out", out)
    prepare_interruption(terminal, priced.path, out)

    from hwnas.search.request import SearchRequest
    from hwnas.search.spos import search
    from hwnas.search.workshop import follow

    request = SearchRequest(
        space=searched,
        data=info.spec,
        budgets=budgets,
        costs=priced.costs,
        recipe=settings,
        out=out,
        seed=seed,
        threads=thread_count(train_threads),
        method=method,
        device=train_device or "cpu",
        front=front or 0,
        notes=priced.notes,
    )
    with joined(train_device) as ranks:
        if not ranks.leads:
            follow(request, ranks)
            return
        with ranks.leading():
            outcome = search(request, terminal.progress(), ranks)
    document = {**outcome.to_json(), "table": priced.notes.get("table")}
    document["zoo"] = priced.notes.get("zoo", {})  # what is said of budgets that are a net's
    if terminal.json:
        terminal.document(document)
    else:
        _show(terminal, document)


@dataclass(frozen=True)
class Shared:
    """What was asked of a search among atoms, as typed; `wanted` are the budgets of each net, not yet numbers."""

    method: str
    space: str | None
    info: DataInfo
    lut: Path | None
    device: str | None
    allow_uncalibrated: bool
    wanted: list[list[Any]]
    out: Path | None
    recipe: str | None
    seed: int
    threads: int
    train_device: str


def is_gated(space: str) -> bool:
    """Whether a space, as typed, is one of gates."""
    from hwnas.spaces import GATE_SPACES

    return space.partition("@")[0] in GATE_SPACES or space.startswith("torchvision:")


def _check_bits(space: Space, typed: dict[str, str]) -> None:
    """Refuses a budget that nothing of the space has: BitOps are of quantised nets only, which have no latency.

    Raises:
        UsageError: it says what to give instead.
    """
    from hwnas.network import NO_LOW_BITS

    quantised = any(op.bits for op in space.supernet_ops())
    if quantised and "latency" in typed:
        raise UsageError(f"{space.name} has no latency: {NO_LOW_BITS}; give --bitops, e.g. --bitops 50%")
    if not quantised and "bitops" in typed:
        raise UsageError(
            f"{space.name} has no BitOps: nothing of it is quantised; resnet18-quant and resnet34-quant are"
        )


def _check_method(method: str) -> None:
    if method in METHODS:
        return
    close = get_close_matches(method, METHODS, n=1)
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
    from hwnas.models import space_name
    from hwnas.spaces import get_space

    if name is None:
        name = default_space(info.image_size) or DEFAULT_SPACES[-1]  # the refusal says which sizes there are
        terminal.default("--space", name, f"for images of {info.image_size} pixels")
    return get_space(space_name(name), image_size=info.image_size, num_classes=info.num_classes)


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


def _price(terminal: Terminal, space: Space, lut: Path | None, device: str | None, *, needed: bool) -> _Priced:
    """Prices by arithmetic, and by a table: the one that was named or the newest that fits.

    Raises:
        HwnasError: a latency budget needs a table and there is none, or it lacks operators; it names the command.
    """
    from hwnas.costs import bitops_cost, macs_cost, params_cost

    costs = {"macs": macs_cost(space), "params": params_cost(space)}
    if bitops := bitops_cost(space):
        return _Priced(space, {**costs, "bitops": bitops}, None, None, {})
    path = table_of(terminal, space, lut, device, needed=needed)
    if path is None:
        return _Priced(space, costs, None, None, {})
    model, notes = read_table(path)
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
    check_calibrated(priced.path, priced.model, allowed=allowed)


def check_calibrated(path: Path | None, model: LatencyModel | None, *, allowed: bool) -> None:
    """See `_check_calibrated`."""
    if model is not None and not model.calibrated and not allowed:
        raise HwnasError(
            f"{path} is uncalibrated (no whole networks were measured): predictions may be off by half; add "
            "--allow-uncalibrated to search with its wide intervals"
        )


def _space_options(space: Space | WidthSpace) -> str:
    """The options that name a space, without those that are its own defaults."""
    from hwnas.spaces import find_space

    usual = find_space(space.name)
    options = f"--space {space.name}"
    if space.input_shape != usual.input_shape:
        options += f" --image-size {space.input_shape[1]}"
    return options if space.num_classes == usual.num_classes else f"{options} --num-classes {space.num_classes}"


def _resolve(terminal: Terminal, spec: Any, priced: _Priced) -> Budget:
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
        return float(getattr(network, cost))
    assert model is not None
    predicted = model.predict(network)
    if predicted.latency_ms is None:
        command = f"hwnas predict zoo:{name} --lut {path} --measure"
        raise HwnasError(f"{path} lacks operators of zoo:{name}: measure them with '{command}'")
    if predicted.guessed and name not in notes.get("zoo", {}):
        notes.setdefault("zoo", {})[name] = predicted.guessed
        terminal.note(f"the budget zoo:{name} rests on more than measurements: {predicted.guessed}")
    return predicted.latency_ms


def default_out(method: str, space: Space | WidthSpace, info: DataInfo, recipe: str | None) -> Path:
    """The same search finds its folder again; another recipe has another one."""
    from hwnas.runs import ROOT, default_name

    name = default_name(method, re.sub(r"[:@]", "-", space.name), info.slug)
    return ROOT / (name if recipe in (None, "default", "atomnas", "figs") else f"{name}-{Path(str(recipe)).stem}")


def prepare_interruption(terminal: Terminal, lut: Path | None, out: Path) -> None:
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
    reduced = any(result.get("reduction") for result in document["results"])
    last = "by controller + projection" if reduced else "random baseline"
    quantised = any(result.get("bitops") for result in document["results"])
    cost = ("BitOps",) if quantised else ("predicted ms", "upper end")
    for title in ("budget", *cost, "MACs", "params", "accuracy", last):
        table.add_column(title, justify="right", no_wrap=True)
    for result in document["results"]:
        baseline = (result.get("baseline") or {}).get("accuracy")
        table.add_row(
            result["net"],
            budget_text(result["budgets"]),
            *(
                [f"{result['bitops']:,}"]
                if quantised
                else map(milliseconds, (result["predicted_ms"], result["high_ms"]))
            ),
            f"{result['macs']:,}",
            f"{result['params']:,}",
            percent(result["accuracy"]),
            _reduction(result["reduction"]) if result.get("reduction") else percent(baseline),
        )
    trained = document["method"] in ATOM_METHODS + GATE_METHODS or is_gated(document["space"])
    done = "nets trained" if trained else "architectures scored"
    evaluated = f"{document['evaluated']} {done} in {duration(document['seconds'])}"
    following = [] if quantised else [f"next: hwnas verify {document['run']}"]  # nothing here runs so few bits
    terminal.table(table, f"{evaluated}; files in {document['run']}", *following)


def _reduction(shares: dict[str, float]) -> str:
    """How much of a net's reduction came from the controller and how much from the projection."""
    return f"{100 * shares['controller']:.1f}% + {100 * shares['projection']:.1f}%"


def budget_text(budgets: Sequence[dict[str, Any]]) -> str:
    """The budgets of a result, for people: what was typed, and what that is."""
    from hwnas.budget import format_cost

    texts = []
    for budget in budgets:
        limit, typed = format_cost(budget["cost"], budget["limit"]), budget["text"]
        texts.append(f"{typed}: {limit}" if "%" in typed or ":" in typed else limit)
    return ", ".join(texts)
