"""`LatencyTable`: one SQLite file that holds every raw sample of a device, durable the moment it is made.

The header binds the table to the device, the runtime and its version, precision, batch and threads. Latencies are never
stored: they are derived from the samples, so that a better estimator improves old tables too. The exception are tables
that were imported (`hwnas.latency.foreign`): what somebody else published has no samples, and stands in a place of its
own, as values with the ends that the source gives.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hwnas.devices import DeviceProfile
from hwnas.errors import HwnasError
from hwnas.latency import trust
from hwnas.latency.builds import builds_error
from hwnas.latency.imported import BLOCK, Imported, stated
from hwnas.latency.levels import OVERHEAD_KEYS, Levels, NetworkVisit
from hwnas.latency.table_file import FORMAT, make_file, open_file, upgrade
from hwnas.latency.terms import TERMS
from hwnas.measure.runtimes.base import BUILDS_MS
from hwnas.measure.statistics import ESTIMATOR, Estimate, estimate
from hwnas.network import Network

ROOT = Path("tables")
"""Where tables are kept unless ``--lut`` says otherwise, below the working directory."""

SHORTEST_MS = 1e-6
"""No operator is taken to be faster than a nanosecond, whatever noise makes of the difference to an empty run."""

ELEMENT_BYTES = {"fp16": 2, "int8": 1}
"""Bytes of one number; 4 for every other precision."""

BOUND = ("runtime", "runtime_version", "device", "cores", "threads", "precision", "batch_size")
"""Header keys that measurements of one table share."""


@dataclass(frozen=True, slots=True)
class Row:
    """One operator (or imported block) of the table, as `hwnas lut show` prints it.

    Latencies are None where measuring it failed; `imported` ones have no samples.
    """

    key: str
    kind: str
    latency_ms: float | None
    low_ms: float | None
    high_ms: float | None
    macs: int
    params: int
    size_bytes: int
    gmacs_per_s: float | None
    samples: int
    failure: str | None
    imported: bool = False


@dataclass(frozen=True, slots=True)
class MeasuredNetwork:
    """A calibration network: its operators' keys, its measured latency and, if its wiring is known, the network."""

    name: str
    input_shape: tuple[int, ...]
    keys: tuple[str, ...]
    measured: Estimate
    network: Network | None = None


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table in a listing."""

    path: Path
    header: dict[str, Any]
    entries: int
    changed: float


class LatencyTable:
    """An open table. A context manager; make one with `create`, `open` or `open_or_create`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self._db = connection
        self._format = FORMAT
        self._cache: dict[str, Estimate] | None = None
        self._levels_cache: Levels | None = None

    # -- opening -----------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path | str, *, writable: bool = False) -> LatencyTable:
        """Opens an existing table.

        Raises:
            HwnasError: there is none, it is truncated, foreign, or of a newer hwnas.
        """
        path = Path(path)
        connection, version = open_file(path, writable=writable)
        table = cls(path, connection, writable=writable)
        table._format = version
        try:
            if not trust.complete(table.header):
                raise HwnasError(trust.damaged(path))
            if writable:
                upgrade(path, connection, version)
                table._format = FORMAT
        except BaseException:
            connection.close()
            raise
        return table

    @classmethod
    def create(cls, path: Path, profile: DeviceProfile, describe: dict[str, Any]) -> LatencyTable:
        """Makes a table bound to what the measuring process said of itself. The file appears only when it is whole."""
        header = {
            **describe,
            "profile": profile.model_dump(exclude={"python"}),
            "precision": profile.precision,
            "batch_size": profile.batch_size,
            "estimator": ESTIMATOR,
        }
        make_file(path, header, ())
        return cls.open(path, writable=True)

    @classmethod
    def create_imported(cls, path: Path, header: Mapping[str, Any], entries: Iterable[Imported]) -> None:
        """Makes a table of what somebody else measured, in place of one that may be there.

        Args:
            path: the file; it appears, or is replaced, only when the table is whole.
            header: what the table is bound to, and under ``imported`` where it comes from.
            entries: each name of a role once.

        Raises:
            HwnasError: it cannot be written.
        """
        make_file(path, header, entries)

    @classmethod
    def open_or_create(cls, path: Path, profile: DeviceProfile, describe: dict[str, Any]) -> LatencyTable:
        """Opens a table to add to it, or makes it.

        Raises:
            HwnasError: the table belongs to another device, runtime, precision, batch or thread count.
        """
        if not path.exists():
            return cls.create(path, profile, describe)
        with cls.open(path) as table:  # what is refused is not even touched
            table.check_bound_to(profile, describe)
        return cls.open(path, writable=True)

    def check_bound_to(self, profile: DeviceProfile, describe: dict[str, Any]) -> None:
        """Refuses to mix measurements of two set-ups.

        Raises:
            HwnasError: it names the first difference.
        """
        now = {**describe, "precision": profile.precision, "batch_size": profile.batch_size}
        for key in BOUND:
            if self.header[key] != now[key]:
                raise HwnasError(
                    f"{self.path} was measured with {key} {self.header[key]}, this is {now[key]}: give another --lut"
                )

    def close(self) -> None:
        """Leaves one plain file behind."""
        if self.writable:
            # where another process reads it, the last one to close folds the journal in
            with suppress(sqlite3.OperationalError):
                self._db.execute("PRAGMA journal_mode = DELETE")
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- reading -----------------------------------------------------------------------------------------------------

    @property
    def header(self) -> dict[str, Any]:
        """What the table is bound to, and how it was made."""
        return {key: trust.document(self.path, value) for key, value in self._select("SELECT key, value FROM header")}

    @property
    def fingerprint(self) -> str:
        """Changes whenever a measurement is added: runs record it."""
        ((count, newest),) = self._select("SELECT count(*), coalesce(max(id), 0) FROM visits")
        if self._format >= 2:
            count += self._select("SELECT count(*) FROM imported")[0][0]
        return f"{self.header['created']:.6f}-{count}-{newest}"

    def names(self, role: str) -> list[str]:
        """Names of all entries of a role (operator, block, network, reference, overhead), failed ones included."""
        names = [name for (name,) in self._select("SELECT name FROM entries WHERE role = ? ORDER BY id", role)]
        return [*names, *(row.name for row in self._imported(role))]

    def failures(self) -> dict[str, str]:
        """Operators that could not be measured, and why."""
        imported = {row.name: row.failure for row in self._imported("operator") if row.failure is not None}
        here = self._select("SELECT name, failure FROM entries WHERE failure IS NOT NULL AND role = 'operator'")
        if not all(isinstance(why, str) for _, why in here):
            raise HwnasError(trust.damaged(self.path))
        return {**imported, **dict(here)}

    def failed(self, role: str) -> set[str]:
        """Entries of a role that could not be measured."""
        query = "SELECT name FROM entries WHERE failure IS NOT NULL AND role = ?"
        return {name for (name,) in self._select(query, role)}

    def blocks(self) -> dict[str, Estimate]:
        """Latencies of operators that were timed as one, by their keys joined by `BLOCK`."""
        return stated(self._imported("block"))

    def _imported(self, role: str) -> list[Imported]:
        """What an imported table says; a table of format 1 has no place for it."""
        if self._format < 2:
            return []
        query = "SELECT role, name, latency_ms, low_ms, high_ms, failure FROM imported WHERE role = ?"
        rows = [Imported(*values) for values in self._select(query, role)]
        if not all(row.sound for row in rows):
            raise HwnasError(trust.damaged(self.path))
        return rows

    def visits(self, role: str, name: str) -> list[NDArray[np.float64]]:
        """Samples of each visit, oldest first: ms of one execution, as the clock showed them."""
        alone = "AND place IS NULL" if self._format >= 3 else ""
        query = f"""SELECT repeats, samples_ms FROM visits JOIN entries ON entry = entries.id
                    WHERE role = ? AND name = ? {alone} ORDER BY visits.id"""
        return [trust.samples(self.path, blob, repeats) for repeats, blob in self._select(query, role, name)]

    def states(self, role: str) -> dict[str, list[dict[str, Any]]]:
        """What the runtime told of the device at the visits of a role's entries, by name; those that told nothing
        are left out."""
        if self._format < 4:
            return {}
        query = """SELECT name, state FROM visits JOIN entries ON entry = entries.id
                   WHERE role = ? AND state IS NOT NULL ORDER BY visits.id"""
        found: dict[str, list[dict[str, Any]]] = {}
        for name, text in self._select(query, role):
            state = trust.document(self.path, text)
            if not isinstance(state, dict):
                raise HwnasError(trust.damaged(self.path))
            found.setdefault(name, []).append(state)
        return found

    @property
    def builds_error(self) -> float:
        """Relative standard error of whole networks from which builds of them were timed (`hwnas.latency.builds`)."""
        told = self.states("network").values()
        visits = [[trust.times(self.path, state.get(BUILDS_MS, ())) for state in states] for states in told]
        return builds_error(visits)

    def seconds(self, counted: Callable[[str], bool]) -> float:
        """About how long the visits of those entries took whose names are `counted`, loading included."""
        query = """SELECT session, name, at FROM visits JOIN entries ON entry = entries.id
                   WHERE place IS NULL ORDER BY visits.id"""
        rows = self._select(query)
        gaps = [(now, name, at - before) for (then, _, before), (now, name, at) in pairwise(rows) if now == then]
        return float(sum(gap for _, name, gap in gaps if counted(name)))

    def inside(self) -> dict[str, set[str]]:
        """Operators that were timed inside networks: their keys, and which networks (role ``cover``)."""
        if self._format < 3:
            return {}
        query = """SELECT DISTINCT operators.name, covers.name FROM visits AS kernel
                   JOIN visits AS whole ON kernel.place = whole.id
                   JOIN entries AS operators ON kernel.entry = operators.id
                   JOIN entries AS covers ON whole.entry = covers.id WHERE operators.role = 'operator'"""
        found: dict[str, set[str]] = {}
        for key, name in self._select(query):
            found.setdefault(key, set()).add(name)
        return found

    def content(self, role: str, name: str) -> dict[str, Any]:
        """What an entry's row says of it; nothing where it was imported."""
        found = self._select("SELECT content FROM entries WHERE role = ? AND name = ?", role, name)
        return dict(trust.document(self.path, found[0][0])) if found else {}

    def drift(self) -> dict[int, float]:
        """For each session the factor that brings its times to the level of the first session, by the reference."""
        return self._levels.sessions

    def reference(self) -> Estimate | None:
        """The reference network at the level that all latencies of the table are given at."""
        return self._levels.networks("reference").get("reference")

    def quiet_visits(self, role: str, name: str) -> int:
        """Visits of a network that were made while the machine was quiet."""
        return self._levels.quiet((role, name))

    @property
    def estimator(self) -> str:
        """How latencies of whole networks are told from their samples, in words."""
        return self._levels.estimator

    def operators(self) -> dict[str, Estimate]:
        """Latency of one execution of each measured operator, by key.

        Those that were timed inside networks are as they were there, the others as they are alone.
        """
        if self._cache is None:
            inside = self._levels.kernels(self._timed_inside("operator"))
            self._cache = {**stated(self._imported("operator")), **self._alone(), **inside}
        return self._cache

    @property
    def _levels(self) -> Levels:
        if self._levels_cache is None:
            shapes: dict[str, tuple[int, ...]] = {}
            query = """SELECT visits.id, role, name, session, samples_ms, content FROM visits
                       JOIN entries ON entry = entries.id
                       WHERE role IN ('reference', 'network', 'cover') AND failure IS NULL ORDER BY visits.id"""
            visits = []
            for number, role, name, session, blob, content in self._select(query):
                if content not in shapes:
                    shapes[content] = self._input_shape(content)
                samples = trust.samples(self.path, blob)
                visits.append(NetworkVisit(number, (role, name), session, shapes[content], samples))
            self._levels_cache = Levels(visits)
        return self._levels_cache

    def _input_shape(self, content: str) -> tuple[int, ...]:
        data = trust.document(self.path, content)
        shape = data.get("input_shape") if isinstance(data, dict) else None
        if not isinstance(shape, list) or not trust.list_of(int, shape):
            raise HwnasError(trust.damaged(self.path))
        return tuple(shape)

    def terms(self) -> list[tuple[Network, dict[str, float]]]:
        """Networks that were timed whole and by kernels, with what their runs take that no operator does, in ms."""
        found = self._levels.terms(self._timed_inside("operator"), self._timed_inside("term"))
        return [(trust.network(self.path, self.content("cover", name)), terms) for name, terms in found.items()]

    def _timed_inside(self, role: str) -> Iterator[tuple[str, int, float, NDArray[np.float64]]]:
        """Operators, or terms, inside networks: name, visit of the network, kernels that it is run as, durations."""
        if self._format < 3:
            return
        query = """SELECT name, place, repeats, samples_ms FROM visits JOIN entries ON entry = entries.id
                   WHERE role = ? AND place IS NOT NULL ORDER BY visits.id"""
        for name, place, launches, blob in self._select(query, role):
            yield name, place, trust.launches(self.path, launches), trust.samples(self.path, blob)

    def _alone(self) -> dict[str, Estimate]:
        """Operators that were timed alone, less what an empty run costs."""
        drift = self.drift()
        place = "AND place IS NULL" if self._format >= 3 else ""
        query = f"""SELECT name, session, repeats, samples_ms FROM visits JOIN entries ON entry = entries.id
                    WHERE role = ? AND failure IS NULL {place} ORDER BY visits.id"""

        def estimates(role: str, overhead_ms: float) -> dict[str, Estimate]:
            visits: dict[str, list[NDArray[np.float64]]] = {}
            for name, session, repeats, blob in self._select(query, role):
                samples = trust.samples(self.path, blob, repeats) * drift.get(session, 1.0) - overhead_ms / repeats
                visits.setdefault(name, []).append(np.maximum(samples, SHORTEST_MS))
            return {name: estimate(found) for name, found in visits.items()}

        overhead = estimates("overhead", 0.0).get("overhead")
        return estimates("operator", overhead.latency_ms if overhead else 0.0)

    def networks(self) -> list[MeasuredNetwork]:
        """The calibration networks that were measured."""
        measured = self._levels.networks("network")
        found = []
        for name, content in self._select("SELECT name, content FROM entries WHERE role = 'network' ORDER BY id"):
            if name in measured:
                data = trust.document(self.path, content)
                data = data if isinstance(data, dict) else {}
                shape, keys = data.get("input_shape", ()), data.get("ops", ())
                if not (shape and keys and trust.list_of(int, shape) and trust.list_of(str, keys)):
                    raise HwnasError(trust.damaged(self.path))
                network = trust.network(self.path, data) if "inputs" in data else None
                found.append(MeasuredNetwork(name, tuple(shape), tuple(keys), measured[name], network))
        return found

    def rows(self) -> list[Row]:
        """Every operator, and every imported block, with its latency, interval and arithmetic."""
        header = self.header
        batch, element_bytes = int(header["batch_size"]), ELEMENT_BYTES.get(header["precision"], 4)
        measured, failures = {**self.operators(), **self.blocks()}, self.failures()
        rows = []
        for name in (*self.names("operator"), *self.names("block")):
            ops, found = [trust.operator(self.path, key) for key in name.split(BLOCK)], measured.get(name)
            if found is None and name not in failures:
                continue
            macs = sum(op.macs for op in ops)
            kind = "block" if len(ops) > 1 else "depthwise conv" if ops[0].depthwise else ops[0].kind
            rows.append(
                Row(
                    name,
                    kind,
                    found.latency_ms if found else None,
                    found.low_ms if found else None,
                    found.high_ms if found else None,
                    macs,
                    sum(op.deployed_params for op in ops),
                    sum(op.traffic_bytes(element_bytes, batch) for op in ops),
                    None if found is None else macs * batch / found.latency_ms / 1e6,
                    found.samples if found else 0,
                    failures.get(name),
                    bool(header.get("imported")),
                )
            )
        return rows

    def _select(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            raise HwnasError(f"cannot read the table {self.path}: {error}") from None
        except (sqlite3.DatabaseError, UnicodeError):
            raise HwnasError(trust.damaged(self.path)) from None

    # -- writing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._db
        except sqlite3.OperationalError as error:
            raise HwnasError(
                f"cannot write to {self.path} ({error}): free space or give another --lut; what was measured is kept"
            ) from None
        except sqlite3.DatabaseError:
            raise HwnasError(trust.damaged(self.path)) from None
        self._cache = self._levels_cache = None

    def start_session(self, environment: dict[str, Any]) -> int:
        """A contiguous stretch of measuring, with one level of the reference network."""
        with self._writing() as db:
            cursor = db.execute(
                "INSERT INTO sessions (started, environment) VALUES (?, ?)", (time.time(), json.dumps(environment))
            )
            return int(cursor.lastrowid or 0)

    def add_entry(self, role: str, name: str, content: dict[str, Any]) -> None:
        """Makes room for an entry; one that is there keeps its samples. A failure that was recorded is forgotten."""
        with self._writing() as db:
            db.execute(
                """INSERT INTO entries (role, name, content) VALUES (?, ?, ?)
                   ON CONFLICT (role, name) DO UPDATE SET failure = NULL""",
                (role, name, json.dumps(content)),
            )

    def add_visit(
        self,
        session: int,
        role: str,
        name: str,
        number: int,
        repeats: int,
        samples_ms: Sequence[float],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Stores the samples of one visit, and what the device was doing; they are safe when this returns."""
        with self._writing() as db:
            self._insert_visit(db, session, role, name, number, repeats, samples_ms, state=state)

    def _insert_visit(
        self,
        db: sqlite3.Connection,
        session: int,
        role: str,
        name: str,
        number: int,
        repeats: float,
        samples_ms: Sequence[float] | NDArray[np.float64],
        place: int | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> int:
        """Adds a row; returns its id."""
        cursor = db.execute(
            """INSERT INTO visits (entry, session, pass, at, repeats, samples_ms, place, state)
               SELECT id, ?, ?, ?, ?, ?, ?, ? FROM entries WHERE role = ? AND name = ?""",
            (session, number, time.time(), repeats, np.asarray(samples_ms, np.float64).tobytes(), place,
             json.dumps(dict(state)) if state else None, role, name),
        )  # fmt: skip
        if cursor.rowcount != 1:
            raise KeyError(f"no entry {role} {name}: its visit has nowhere to go")
        return int(cursor.lastrowid or 0)

    def add_kernels(
        self,
        session: int,
        name: str,
        number: int,
        totals_ms: Sequence[float],
        kernels: Mapping[str, NDArray[np.float64]],
        launches: Mapping[str, float],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Stores one visit of the network `name` (role ``cover``) with what each operator took inside it, all or none.

        Args:
            session, number: of the visit.
            totals_ms: of all kernels, in each run.
            kernels: by operator key, the durations in each run; by the names of `TERMS` those of what is none.
            launches: by operator key, as how many kernels it is run, each of which timing makes dearer; the column
                `repeats` has it.
            state: of the device meanwhile.
        """
        with self._writing() as db:
            db.execute("BEGIN")
            try:
                shown = np.maximum(totals_ms, SHORTEST_MS)  # a clock of whole microseconds may show nothing
                place = self._insert_visit(db, session, "cover", name, number, 1, shown, state=state)
                for key, samples in kernels.items():
                    role = "term" if key in TERMS else "operator"
                    db.execute("INSERT OR IGNORE INTO entries (role, name, content) VALUES (?, ?, '{}')", (role, key))
                    self._insert_visit(db, session, role, key, number, launches[key], samples, place)
            except BaseException:
                if db.in_transaction:  # on a full disk SQLite may have rolled back already
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def add_failure(self, role: str, name: str, failure: str) -> None:
        """Records why an entry cannot be measured."""
        with self._writing() as db:
            db.execute("UPDATE entries SET failure = ? WHERE role = ? AND name = ?", (failure, role, name))


def list_tables(root: Path = ROOT) -> list[TableInfo]:
    """The readable tables below `root`, newest first."""
    found = []
    for path in root.glob("*.lut"):
        try:
            with LatencyTable.open(path) as table:
                entries = len(set(table.names("operator")) - OVERHEAD_KEYS)
                found.append(TableInfo(path, table.header, entries, path.stat().st_mtime))
        except HwnasError:
            continue
    return sorted(found, key=lambda info: info.changed, reverse=True)


def default_path(profile: DeviceProfile, root: Path = ROOT) -> Path:
    """Where a profile's table goes: ``tables/cpu-fp32-b1-t1.lut``."""
    host = profile.host.removeprefix("ssh://").translate(str.maketrans("@:[]", "----"))
    name = f"{host}-{profile.name}" if host else profile.name
    return root / f"{name}-{profile.precision}-b{profile.batch_size}-t{profile.thread_count or 'all'}.lut"
