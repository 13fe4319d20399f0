"""The file of a latency table: its schema, its format, and how it is opened without trusting it and made whole.

Format history (tables of older formats are read, and brought to the newest when they are added to):
    1 (2026) first.
    2 (2026) the table `imported`; the header of an imported table has the key ``imported`` and may say null for cores
      and threads.
    3 (2026) `visits.place`: the visit of a network inside which an operator was timed; null where it was timed alone.
    4 (2026) `visits.state`: what the runtime told of the device meanwhile, JSON; null where it told nothing.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

from hwnas.errors import HwnasError
from hwnas.latency import trust
from hwnas.latency.imported import Imported

FORMAT = 4
APPLICATION_ID = 0x68776E41  # "hwnA"
_SIDE_FILES = ("-wal", "-shm", "-journal")

_IMPORTED = """CREATE TABLE imported (
    role TEXT NOT NULL, name TEXT NOT NULL, latency_ms REAL, low_ms REAL, high_ms REAL, failure TEXT,
    PRIMARY KEY (role, name)
) WITHOUT ROWID;"""

_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
CREATE TABLE header (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE sessions (id INTEGER PRIMARY KEY, started REAL NOT NULL, environment TEXT NOT NULL);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL, content TEXT NOT NULL,
    failure TEXT, UNIQUE (role, name)
);
CREATE TABLE visits (
    id INTEGER PRIMARY KEY, entry INTEGER NOT NULL REFERENCES entries (id),
    session INTEGER NOT NULL REFERENCES sessions (id),
    pass INTEGER NOT NULL, at REAL NOT NULL, repeats INTEGER NOT NULL, samples_ms BLOB NOT NULL, place INTEGER,
    state TEXT
);
CREATE INDEX visits_of_entry ON visits (entry);
{_IMPORTED}
"""

_UPGRADES = {1: _IMPORTED, 2: "ALTER TABLE visits ADD COLUMN place INTEGER;",
             3: "ALTER TABLE visits ADD COLUMN state TEXT;"}  # fmt: skip
"""What brings a table of each older format to the next."""


def open_file(path: Path, *, writable: bool) -> tuple[sqlite3.Connection, int]:
    """Opens the file of a table and checks it; returns its format too. Nothing is changed.

    Raises:
        HwnasError: there is none, it is truncated, foreign, or of a newer hwnas.
    """
    if not path.is_file():
        raise HwnasError(f"no table {path}: make it with 'hwnas profile --device cpu --lut {path}'")
    mode = "rw" if writable else "ro"
    journal = path.with_name(path.name + "-wal")
    if not writable and not os.access(path.parent, os.W_OK) and not journal.exists():
        mode = "ro&immutable=1"  # a folder that cannot be written: SQLite must not look for its side files
    with _refused(path):
        connection = sqlite3.connect(f"file:{_quoted(path)}?mode={mode}", uri=True, isolation_level=None)
    try:
        with _refused(path):
            return connection, _checked(path, connection)
    except BaseException:
        connection.close()
        raise


def _checked(path: Path, connection: sqlite3.Connection) -> int:
    """The format of a file that is a whole table."""
    trust.harden(connection)
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if application != APPLICATION_ID:
        raise HwnasError(f"{path} is not an hwnas table: give another --lut")
    if version > FORMAT:
        raise HwnasError(
            f"{path} has format {version}, this hwnas reads up to {FORMAT}: upgrade hwnas, or profile anew"
        )
    if not trust.plain_tables(connection):
        raise HwnasError(trust.damaged(path))
    page_size = connection.execute("PRAGMA page_size").fetchone()[0]
    whole = path.stat().st_size % page_size == 0  # SQLite would fill the rest of the last page with zeros
    if not whole or connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise HwnasError(trust.damaged(path))
    return version


def upgrade(path: Path, connection: sqlite3.Connection, version: int) -> None:
    """Makes a table that was opened to be written durable, and of the newest format.

    Raises:
        HwnasError: it cannot be written.
    """
    with _refused(path):
        connection.execute("PRAGMA journal_mode = WAL")  # a commit costs microseconds and survives kill -9
        connection.execute("PRAGMA synchronous = NORMAL")
        for old in range(version, FORMAT):
            connection.executescript(f"BEGIN; {_UPGRADES[old]} PRAGMA user_version = {old + 1}; COMMIT;")


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """What SQLite finds wrong with the table at `path`, as an error that says so."""
    try:
        yield
    except sqlite3.OperationalError as error:  # locked, no space, no permission: the table may be whole
        raise HwnasError(f"cannot open the table {path}: {error}") from None
    except (sqlite3.DatabaseError, UnicodeError):
        raise HwnasError(trust.damaged(path)) from None


def make_file(path: Path, header: Mapping[str, Any], entries: Iterable[Imported]) -> None:
    """Writes a whole table, in place of one that may be there; the file appears only when it is whole.

    Raises:
        HwnasError: it cannot be written.
    """
    from hwnas import __version__

    rows = {"created": time.time(), "hwnas_version": __version__, **header}
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (draft, *(path.with_name(path.name + end) for end in _SIDE_FILES)):
            leftover.unlink(missing_ok=True)  # SQLite would play the journal of a deleted table into the new one
        with _connect(draft) as connection:
            connection.executescript(_SCHEMA)
            connection.executemany(
                "INSERT INTO header VALUES (?, ?)", [(key, json.dumps(value)) for key, value in rows.items()]
            )
            connection.executemany("INSERT INTO imported VALUES (?, ?, ?, ?, ?, ?)", map(astuple, entries))
            connection.commit()
            connection.execute("VACUUM")
        draft.replace(path)
    except OSError as error:
        raise HwnasError(f"cannot create {path} ({error}): give another --lut") from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


@contextmanager
def _connect(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        connection = sqlite3.connect(path)
    except sqlite3.OperationalError as error:
        raise HwnasError(f"cannot create {path} ({error}): give another --lut") from None
    try:
        yield connection
    except sqlite3.OperationalError as error:
        raise HwnasError(f"cannot write {path} ({error}): free space or give another --lut") from None
    finally:
        connection.close()


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path.absolute()))
