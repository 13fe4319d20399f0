"""`LatencyTable`: one SQLite file with every raw sample of a device, to be read; `hwnas.latency.writer` adds to it.

The header binds the table to the device, the runtime and its version, precision, batch and threads. Latencies are never
stored: they are derived from the samples, so that a better estimator improves old tables too. The exception are tables
that were imported (`hwnas.latency.foreign`): what somebody else published has no samples, and stands in a place of its
own, as values with the ends that the source gives.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hwnas.devices import DeviceProfile
from hwnas.errors import HwnasError
from hwnas.latency import trust
from hwnas.latency.builds import builds_error
from hwnas.latency.imported import BLOCK, Imported, stated
from hwnas.latency.levels import Levels, NetworkVisit
from hwnas.latency.table_file import open_file
from hwnas.measure.runtimes.base import BUILDS_MS
from hwnas.measure.statistics import Estimate, estimate
from hwnas.network import Network

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


class LatencyTable:
    """An open table. A context manager; `open` gives one."""

    _writable: ClassVar[bool] = False

    def __init__(self, path: Path, connection: sqlite3.Connection, version: int) -> None:
        self.path = path
        self._db = connection
        self._format = version
        self._cache: dict[str, Estimate] | None = None
        self._levels_cache: Levels | None = None

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Opens an existing table.

        Raises:
            HwnasError: there is none, it is truncated, foreign, or of a newer hwnas.
        """
        path = Path(path)
        connection, version = open_file(path, writable=cls._writable)
        table = cls(path, connection, version)
        try:
            if not trust.complete(table.header):
                raise HwnasError(trust.damaged(path))
            table._opened()
        except BaseException:
            connection.close()
            raise
        return table

    def _opened(self) -> None:
        """What is left to do for a table that was opened and found whole."""

    def close(self) -> None:
        """Lets go of the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
                   JOIN entries AS covers ON whole.entry = covers.id
                   WHERE operators.role = 'operator' AND covers.role = 'cover'"""
        found: dict[str, set[str]] = {}
        for key, name in self._select(query):
            if not isinstance(name, str):
                raise HwnasError(trust.damaged(self.path))
            found.setdefault(key, set()).add(name)
        return found

    def input_shapes(self, role: str) -> dict[str, tuple[int, ...]]:
        """The input shapes of the networks of a role (network, cover), by name."""
        rows = self._select("SELECT name, content FROM entries WHERE role = ?", role)
        return {name: self._input_shape(content) for name, content in rows}

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

    def by_network(self) -> dict[str, dict[str, list[float]]]:
        """Of operators that were timed inside networks: what each takes in each, by key and name, in ms."""
        return self._levels.by_network(self._timed_inside("operator"))

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
                whole = isinstance(name, str) and shape and keys
                if not (whole and trust.list_of(int, shape) and trust.list_of(str, keys)):
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
