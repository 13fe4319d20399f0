"""`TableWriter`: a table that is made or added to. What is added is durable the moment the call returns."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hwnas.devices import DeviceProfile
from hwnas.errors import HwnasError
from hwnas.latency import trust
from hwnas.latency.imported import Imported
from hwnas.latency.table import SHORTEST_MS, LatencyTable
from hwnas.latency.table_file import FORMAT, make_file, upgrade
from hwnas.latency.terms import TERMS
from hwnas.measure.statistics import ESTIMATOR


class TableWriter(LatencyTable):
    """A table that can be added to. A context manager; make one with `create`, `open` or `open_or_create`."""

    _writable = True

    @classmethod
    def create(cls, path: Path, profile: DeviceProfile, describe: dict[str, Any]) -> Self:
        """Makes a table bound to what the measuring process said of itself. The file appears only when it is whole."""
        header = {
            **describe,
            "profile": profile.model_dump(exclude={"python"}),
            "precision": profile.precision,
            "batch_size": profile.batch_size,
            "estimator": ESTIMATOR,
        }
        make_file(path, header, ())
        return cls.open(path)

    @classmethod
    def open_or_create(cls, path: Path, profile: DeviceProfile, describe: dict[str, Any]) -> Self:
        """Opens a table to add to it, or makes it.

        Raises:
            HwnasError: the table belongs to another device, runtime, precision, batch or thread count.
        """
        if not path.exists():
            return cls.create(path, profile, describe)
        with LatencyTable.open(path) as table:  # what is refused is not even touched
            table.check_bound_to(profile, describe)
        return cls.open(path)

    def _opened(self) -> None:
        upgrade(self.path, self._db, self._format)
        self._format = FORMAT

    def close(self) -> None:
        """Leaves one plain file behind."""
        # where another process reads it, the last one to close folds the journal in
        with suppress(sqlite3.OperationalError):
            self._db.execute("PRAGMA journal_mode = DELETE")
        super().close()

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


def write_imported(path: Path, header: Mapping[str, Any], entries: Iterable[Imported]) -> None:
    """Makes a table of what somebody else measured, in place of one that may be there.

    Args:
        path: the file; it appears, or is replaced, only when the table is whole.
        header: what the table is bound to, and under ``imported`` where it comes from.
        entries: each name of a role once.

    Raises:
        HwnasError: it cannot be written.
    """
    make_file(path, header, entries)
