"""`hwnas search`: trains a supernet and searches it under budgets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.errors import UsageError

from .choices import DEFAULT_SPACES, SPACE_NAMES, default_space
from .options import Command, common, file_path, option
from .search_prices import check_calibrated, price, resolve
from .terminal import Terminal, milliseconds, percent
from .training import joined, thread_count, train_options

if TYPE_CHECKING:
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
@option("--bytes", "bytes_", metavar="B", help="Budget of memory traffic, methods on gates: 12MB; several by comma.")
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
    bytes_: str | None,
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
    scored beats in both accuracy and cost, spread from the cheapest to the budget; the random baseline beside each is
    the best of a random front that costs no more.

    \b
    Example:
      hwnas search --latency 17ms
      hwnas search --latency 60% --recipe quickstart --out runs/quickstart
      hwnas search --latency 8ms,12ms,17ms --data folder:flowers --lut p.lut
      hwnas search --latency 17ms --front 6
      hwnas search --method atomnas --space atomnas-tiny --latency 50%
      hwnas search --method figs --space torchvision:resnet18 --data folder:flowers --params 60%
      hwnas search --method figs --space nets.py:make_net --data folder:flowers --latency 50%
      hwnas search --latency 2ms --lut v100-tensorrt-fp16-b32 --allow-uncalibrated
      torchrun --nproc-per-node 2 --no-python hwnas search --latency 17ms
    """
    _check_method(method)
    given = {"latency": latency, "macs": macs, "params": params, "bytes": bytes_, "bitops": bitops}
    typed = {cost: text for cost, text in given.items() if text}
    if not typed and method not in ("atomnas", "figs", "morphnet"):
        raise UsageError(
            "give a budget: --latency 17ms, --macs 330M, --params 4M, or --bitops 6.3G of a quantised space"
        )
    wanted = _combinations(typed) if typed else [[]]
    gated = method in GATE_METHODS or (space is not None and is_gated(space))
    if bytes_ and not gated:
        raise UsageError(f"--bytes is for {', '.join(GATE_METHODS)}, and width and random on spaces of gates")
    if bitops and gated:
        raise UsageError("--bitops is for quantised spaces, which have no gates")
    if front and method != "spos":
        raise UsageError("--front is for the method spos")
    info = _describe(terminal, data, image_size)
    if method in ATOM_METHODS + GATE_METHODS or (gated and method == "random"):
        from .search_atoms import search_atoms

        where = thread_count(train_threads), train_device or "cpu"
        shared = Shared(method, space, info, lut, device, allow_uncalibrated, wanted, out, recipe, seed, *where)
        trained = search_atoms(terminal, shared)
        if trained is not None:
            terminal.document(trained) if terminal.json else _show(terminal, trained)
        return
    searched = _space(terminal, space, info)
    _check_bits(searched, typed)
    settings = _recipe(terminal, recipe, population, generations)
    priced = price(terminal, searched, lut, device, needed="latency" in typed)
    check_calibrated(priced.path, priced.model, allowed=allow_uncalibrated or "latency" not in typed)
    budgets = [[resolve(terminal, spec, priced) for spec in specs] for specs in wanted]
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
    from hwnas.spaces.own import is_own

    return space.partition("@")[0] in GATE_SPACES or space.startswith("torchvision:") or is_own(space)


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


def default_out(method: str, space: Space | WidthSpace, info: DataInfo, recipe: str | None) -> Path:
    """The same search finds its folder again; another recipe has another one."""
    from hwnas.runs import ROOT, default_name
    from hwnas.spaces.own import short_name

    name = default_name(method, short_name(space.name), info.slug)
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
    compared = any((result.get("baseline") or {}).get("accuracy") is not None for result in document["results"])
    last = ["by controller + projection"] if reduced else ["random baseline"] if compared else []
    quantised = any(result.get("bitops") for result in document["results"])
    cost = ("BitOps",) if quantised else ("predicted ms", "upper end")
    for title in ("budget", *cost, "MACs", "params", "accuracy", *last):
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
            *([_reduction(result["reduction"]) if result.get("reduction") else percent(baseline)] if last else []),
        )
    trained = document["method"] in ATOM_METHODS + GATE_METHODS or is_gated(document["space"])
    done = "net" + "s" * (document["evaluated"] != 1) + " trained" if trained else "architectures scored"
    evaluated = f"{document['evaluated']} {done} in {duration(document['seconds'])}"
    following = fronts(document["results"])
    following += [] if quantised else [f"next: hwnas verify {document['run']}"]  # nothing here runs so few bits
    terminal.table(table, f"{evaluated}; files in {document['run']}", *following)


def fronts(results: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each front: what it is worth as a whole, and that of random search."""
    lines = {}
    for result in results:
        if (level := result.get("front_accuracy")) is not None:
            rival = result.get("baseline_front_accuracy")
            beside = "" if rival is None else f", of a random front {percent(rival)}"
            lines[budget_text(result["budgets"])] = (
                f"front up to {budget_text(result['budgets'])}: with the supernet's weights the best net within a "
                f"budget has {percent(level)} on average over all budgets{beside}"
            )
    return list(lines.values())


def _reduction(shares: dict[str, float]) -> str:
    """How much of a net's reduction came from the controller, and what the projection added or took back."""
    sign = "-" if shares["projection"] < 0 else "+"
    return f"{100 * shares['controller']:.1f}% {sign} {100 * abs(shares['projection']):.1f}%"


def budget_text(budgets: Sequence[dict[str, Any]]) -> str:
    """The budgets of a result, for people: what was typed, and what that is."""
    from hwnas.budget import format_cost

    texts = []
    for budget in budgets:
        limit, typed = format_cost(budget["cost"], budget["limit"]), budget["text"]
        texts.append(f"{typed}: {limit}" if "%" in typed or ":" in typed else limit)
    return ", ".join(texts)
