"""`hwnas train`: trains the nets that a search has found."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.errors import HwnasError, UsageError

from .options import Command, common, option
from .terminal import Terminal, percent
from .training import joined, thread_count, train_options

if TYPE_CHECKING:
    from hwnas.runs import RunFolder
    from hwnas.train.recipe import Phase


@click.command("train", cls=Command)
@click.argument("run", required=False, metavar="[RUN]")
@option("--data", metavar="DATA", help="fashion-mnist, folder:DIR or torchvision:NAME:DIR  [default: the run's]")
@option("--from", "from_", metavar="WHERE", help="scratch, or inherited: go on from its weights  [default: scratch]")
@option("--baselines", is_flag=True, help="Train the random baselines of the nets alike.")
@option("--recipe", metavar="NAME", help="default, quickstart, paper, or a TOML file  [default: the run's]")
@option("--seed", type=click.IntRange(0), metavar="N", help="Of weights, order and augmentation  [default: the run's]")
@train_options
@common
@click.pass_obj
def command(
    terminal: Terminal,
    run: str | None,
    data: str | None,
    from_: str | None,
    baselines: bool,
    recipe: str | None,
    seed: int | None,
    train_threads: int | None,
    train_device: str | None,
) -> None:
    """Train the nets that a search has found: their weights, model.onnx and accuracy are then of the trained nets.

    RUN is a run's folder  [default: the newest under runs/], all of whose nets are trained, or RUN/nets/NAME: that one
    alone. The same command goes on where it was interrupted. How to train says the
    recipe's part [train].

    \b
    Example:
      hwnas train
      hwnas train runs/quickstart --recipe quickstart
      hwnas train runs/mine/nets/latency-17ms --from inherited
      torchrun --nproc-per-node 8 --no-python hwnas train runs/mine --recipe paper --train-device cuda
    """
    from hwnas.train.retrain import STARTS, TrainRequest, follow_training, train_nets

    start = from_ or STARTS[0]
    if from_ is None:
        terminal.default("--from", start)
    if start not in STARTS:
        raise UsageError(f"--from {start!r} is neither {' nor '.join(STARTS)}")
    folder, nets = _nets(terminal, run, baselines=baselines)
    identity = folder.config.get("identity", {})
    if data is None:
        data = str(identity.get("data", "fashion-mnist"))
        terminal.default("--data", data, "the run's")
    split_seed = int(identity.get("seed", 0))
    request = TrainRequest(
        run=folder.path,
        nets=nets,
        data=data,
        phase=_phase(terminal, recipe, folder),
        start=start,
        seed=split_seed if seed is None else seed,
        split_seed=split_seed,
        threads=thread_count(train_threads),
    )
    terminal.kept = f"checkpoints are in {folder.path}"
    with joined(train_device) as ranks:
        if not ranks.leads:
            follow_training(request, ranks)
            return
        with ranks.leading():
            document = train_nets(request, terminal.progress(), ranks)
    if terminal.json:
        terminal.document(document)
    else:
        _show(terminal, document)


def _nets(terminal: Terminal, text: str | None, *, baselines: bool) -> tuple[RunFolder, list[str]]:
    """The run and the names of its nets that are to be trained.

    Raises:
        HwnasError: there is no such run, or it has no net yet.
    """
    from hwnas.runs import RunFolder

    if text is None:
        run = RunFolder.newest()
        terminal.default("RUN", run.path, "the newest run")
    else:
        path = Path(text)
        if (path / "arch.json").is_file():
            name = path.resolve().name
            home = path.parent.parent if path.parent.name == "nets" else path.resolve().parent.parent
            run = RunFolder.open(home)
            if not run.net(name).complete:
                raise HwnasError(f"{text} is not finished: go on with the hwnas search that began it")
            return run, [name]
        run = RunFolder.open(path)
    names = []
    for result in run.results():
        names.append(result["net"])
        if baselines and result["baseline"]:
            names.append(result["baseline"]["net"])
    if not names:
        raise HwnasError(f"{run.path} has no finished net yet: go on with the hwnas search that began it")
    return run, list(dict.fromkeys(names))  # nets of a front may share a baseline


def _phase(terminal: Terminal, name: str | None, run: RunFolder) -> Phase:
    """How to train: the named recipe's [train], else the run's own, else the default recipe's.

    Raises:
        UsageError: the recipe does not say how to train a net.
    """
    from hwnas.train.recipe import load_recipe, phase_from

    if name is None:
        own = run.config.get("recipe", {}).get("train")
        if own is not None:
            terminal.default("--recipe", run.path / "run.toml", "the run's")
            return phase_from(own, str(run.path / "run.toml"))
        name = "default"
        terminal.default("--recipe", name, "the run's has no [train]")
    phase = load_recipe(name).train
    if phase is None:
        raise UsageError(f"recipe {name} has no [train]: add one, with the same keys as [supernet]")
    return phase


def _show(terminal: Terminal, document: dict[str, Any]) -> None:
    from rich.table import Table

    from hwnas.progress import duration

    table = Table(box=None, pad_edge=False)
    table.add_column("net")
    for title in ("accuracy", "of split", "as found", "validation", "steps", "trained for"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in document["results"]:
        table.add_row(
            result["net"],
            percent(result["accuracy"]),
            result["accuracy_split"],
            percent(result["accuracy_before"]),
            percent(result["val_accuracy"]),
            str(result["steps"]),
            duration(result["seconds"]),
        )
    run = document["run"]
    terminal.table(table, f"from {document['from']} on {document['data']}; files in {run}",
                   f"next: hwnas verify {shlex.quote(str(run))}")  # fmt: skip
