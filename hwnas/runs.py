"""`RunFolder`: everything one search leaves behind, enough to repeat, resume and audit it.

    run.toml                     resolved configuration, seeds, versions, fingerprint of the latency table
    metrics.csv                  the supernet's training
    checkpoints/                 of the supernet and of fine-tunings under way
    evaluations.jsonl            every candidate that was scored, one line each, appended when it is known
    results.json                 the found nets with their figures
    channels.txt, source/        of gates: what can go, and the files that a net of one's own was made by
    nets/NAME/arch.json, weights.safetensors, model.onnx, result.json, verify.json

Nothing here is ever unpickled, and no path inside a file is followed.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hwnas.errors import HwnasError
from hwnas.train.checkpoint import disk_errors, write_atomically

if TYPE_CHECKING:
    from filelock import BaseFileLock

FORMAT = 1
ROOT = Path("runs")
"""Where runs go that are given no name."""


def default_name(method: str, space: str, data_slug: str) -> str:
    """The folder name of a run that is given none: the same search finds its folder again."""
    return f"{method}-{space}-{data_slug}"


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    found = {}
    for package in ("hwnas", "torch", "onnxruntime", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


@dataclass(slots=True)
class RunFolder:
    """One run's folder. As a context manager it is this process's alone.

    Attributes:
        path: ``runs/NAME``.
        config: what run.toml says.
    """

    path: Path
    config: dict[str, Any]
    _lock: BaseFileLock | None = field(default=None, repr=False)

    @classmethod
    def create(cls, path: Path, *, identity: Mapping[str, Any], config: Mapping[str, Any]) -> RunFolder:
        """Makes the folder, or opens it when it is of the same search.

        Args:
            path: the folder; one that is there must be a run or empty.
            identity: what the supernet depends on (space, data, seed, recipe, ...). A folder of a run whose identity
                differs is refused.
            config: everything else worth keeping; the latest run's is kept.

        Raises:
            HwnasError: the folder is something else, or of a search with another identity.
        """
        plain = json.loads(json.dumps(dict(identity)))
        if (path / "run.toml").is_file():
            run = cls.open(path)
            before, now = _flat(run.config.get("identity", {})), _flat(_without_none(plain))
            differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
            if differing:
                shown = ", ".join(f"{key} ({before.get(key)} there, {now.get(key)} now)" for key in differing[:4])
                more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
                raise HwnasError(f"{path} is the run of another search: {shown}{more} differ. Choose another --out")
        elif path.is_file() or (path.is_dir() and any(entry.name != "run.lock" for entry in path.iterdir())):
            raise HwnasError(f"{path} is not a run and not empty: choose another --out")
        run = cls(path, {})
        run.config = _without_none(
            {
                "format": FORMAT,
                **json.loads(json.dumps(dict(config))),
                "identity": plain,
                "versions": versions(),
            }
        )
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            HwnasError: the folder is not a run, or one of a later version.
        """
        file = path / "run.toml"
        if not file.is_file():
            raise HwnasError(f"{path} is not a run: it has no run.toml")
        try:
            config = tomllib.loads(file.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise HwnasError(f"{file} cannot be read: {error}") from error
        if config.get("format") != FORMAT:
            raise HwnasError(f"{file} has format {config.get('format')!r}, this hwnas knows {FORMAT}: update hwnas")
        return cls(path, config)

    @classmethod
    def newest(cls, root: Path = ROOT) -> RunFolder:
        """The run under `root` that was worked on last.

        Raises:
            HwnasError: there is none.
        """
        files = sorted(root.glob("*/run.toml"), key=lambda file: file.stat().st_mtime, reverse=True)
        if not files:
            raise HwnasError(f"there is no run under {root}: make one with hwnas search, or name its folder")
        return cls.open(files[0].parent)

    # -- one process at a time ---------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        from filelock import FileLock, Timeout

        with disk_errors(self.path / "run.toml"):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / "run.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise HwnasError(
                    f"another process works in {self.path}: wait for it or choose another --out"
                ) from error
        self._lock = lock
        try:
            self._write_config()
        except BaseException:
            lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _write_config(self) -> None:
        import tomli_w

        write_atomically(self.path / "run.toml", tomli_w.dumps(self.config).encode())

    # -- what is in it -----------------------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """metrics.csv."""
        return self.path / "metrics.csv"

    def net(self, name: str) -> NetFolder:
        """The folder of a found net; it may not be there yet."""
        return NetFolder(self.path / "nets" / name)

    def nets(self) -> list[NetFolder]:
        """The found nets that are complete, by name."""
        folder = self.path / "nets"
        found = [NetFolder(path) for path in sorted(folder.iterdir())] if folder.is_dir() else []
        return [net for net in found if net.complete]

    def write_json(self, name: str, data: Any) -> None:
        """Writes a JSON file at the top of the run."""
        write_json(self.path / name, data)

    def results(self) -> list[dict[str, Any]]:
        """What the searches of this run answered with, their baselines inside; empty before the first is known.

        results.json holds the newest search only; a run may have been asked for several budgets, one after the other.
        """
        return [result for net in self.nets() if "baseline" in (result := net.result())]

    def evaluations(self, fingerprint: str) -> EvaluationLog:
        """The scores of candidates with the supernet that has this fingerprint."""
        return EvaluationLog(self.path / "evaluations.jsonl", fingerprint)


@dataclass(frozen=True, slots=True)
class NetFolder:
    """One found net."""

    path: Path

    @property
    def name(self) -> str:
        """Of the net."""
        return self.path.name

    @property
    def arch(self) -> Path:
        """arch.json, in the form of `Space.to_json`."""
        return self.path / "arch.json"

    @property
    def weights(self) -> Path:
        """weights.safetensors, with the names of ``space.build(arch)``."""
        return self.path / "weights.safetensors"

    @property
    def onnx(self) -> Path:
        """The deployable file."""
        return self.path / "model.onnx"

    @property
    def complete(self) -> bool:
        """Everything that a search writes is there; result.json is written last."""
        return (self.path / "result.json").is_file()

    def result(self) -> dict[str, Any]:
        """The net's figures; empty before they are known."""
        data = read_json(self.path / "result.json")
        return data if isinstance(data, dict) else {}

    def write_json(self, name: str, data: Any) -> None:
        """Writes a JSON file of the net, atomically."""
        write_json(self.path / name, data)


class EvaluationLog:
    """evaluations.jsonl: one line for each scored candidate, durable when it is written.

    A line of another supernet (another fingerprint) is kept and not used; a torn last line is left out.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.scores: dict[tuple[int, ...], float] = {}
        if path.is_file():
            text = path.read_text(errors="replace")
            for line in text.splitlines():
                self._read(line)
            if text and not text.endswith("\n"):  # torn by a kill: what follows begins a line of its own
                with disk_errors(path), path.open("a") as file:
                    file.write("\n")

    def _read(self, line: str) -> None:
        try:
            row = json.loads(line)
            if row["supernet"] == self.fingerprint:
                self.scores[tuple(int(gene) for gene in row["genes"])] = float(row["accuracy"])
        except (ValueError, KeyError, TypeError):
            return

    def add(self, genes: tuple[int, ...], accuracy: float) -> None:
        """Appends a score."""
        row = {"genes": list(genes), "accuracy": accuracy, "supernet": self.fingerprint}
        with disk_errors(self.path), self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
        self.scores[genes] = accuracy


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file atomically."""
    write_atomically(path, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """A JSON file; None where it is absent or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: what is None is left out."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in data.items()
        if value is not None
    }
