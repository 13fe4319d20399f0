"""The nets that `hwnas verify` is about: those of a run, or a single one from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import HwnasError, UsageError

from .terminal import Terminal

if TYPE_CHECKING:
    from hwnas.models import LoadedModel


@dataclass(frozen=True)
class Subject:
    """A net and, of a found one, what the search said of it (result.json) and how it was made (run.toml)."""

    loaded: LoadedModel
    found: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def latency_budget_ms(self) -> float | None:
        """The latency that a found net must keep; None where it has no such budget."""
        for budget in self.found.get("budgets", []):
            if budget["cost"] == "latency":
                return float(budget["limit"])
        return None


def subjects_of(terminal: Terminal, model: str | None) -> list[Subject]:
    """The nets that MODEL stands for; of a run, those that its search answered with."""
    from hwnas.models import load_model
    from hwnas.runs import NetFolder, RunFolder

    if model is None:
        run = RunFolder.newest()
        terminal.default("MODEL", run.path, "the newest run")
    elif Path(model).is_dir() and not (Path(model) / "arch.json").is_file():
        run = RunFolder.open(Path(model))
    else:
        loaded = load_model(model)
        if loaded.supernet:
            raise UsageError(f"{model} is a whole space: name one of its nets")
        if loaded.folder is None:
            return [Subject(loaded)]
        return [Subject(loaded, NetFolder(loaded.folder).result(), _config_of(loaded.folder))]
    results = run.results()
    if not results:
        raise HwnasError(f"{run.path} has no finished net yet: go on with the hwnas search that began it")
    return [Subject(load_model(str(run.net(result["net"]).path)), result, run.config) for result in results]


def refuse_quantised(subjects: Sequence[Subject]) -> None:
    """Raises:
    UsageError: a net has convolutions of few bits, which nothing here runs as they are meant.
    """
    from hwnas.network import NO_LOW_BITS

    names = [subject.loaded.name for subject in subjects if subject.loaded.network.quantised]
    if names:
        raise UsageError(f"{', '.join(names)} cannot be verified: {NO_LOW_BITS}")


def _config_of(net: Path) -> dict[str, Any]:
    """The configuration of the run that a net's folder is in; empty where it was taken out of its run."""
    from hwnas.runs import RunFolder

    folder = net.resolve().parent.parent
    return RunFolder.open(folder).config if (folder / "run.toml").is_file() else {}
