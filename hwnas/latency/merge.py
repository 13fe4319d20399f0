"""Merging two tables of one set-up: every visit of both, sessions apart, so that their levels can be divided out."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hwnas.errors import HwnasError, UsageError
from hwnas.latency import trust
from hwnas.latency.levels import OVERHEAD_KEYS
from hwnas.latency.table import BOUND, LatencyTable
from hwnas.latency.writer import TableWriter

MERGED = (*BOUND, "channel_block")
"""Header keys that tables must share to be merged; where the second is missing in both, that is the same."""


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge made.

    Attributes:
        out: the new table.
        entries, operators: in it, failed ones included.
        added: entries that only the second table had.
        visits: taken over from the second table.
        same: visits of the second table that the first one had already: of a copy that was added to.
    """

    out: str
    entries: int
    operators: int
    added: int
    visits: int
    same: int


def merge_tables(first: Path, second: Path, out: Path) -> MergeReport:
    """Writes a table with everything that two tables hold. Latencies are at the level of the first one.

    Raises:
        UsageError: `out` exists.
        HwnasError: the tables are of different set-ups, imported or damaged, or `out` cannot be written.
    """
    if out.exists():
        raise UsageError(f"{out} exists: give another --out")
    with LatencyTable.open(first) as one, LatencyTable.open(second) as other:
        _check_alike(one, other)
        for table in (one, other):  # everything is read once: what is damaged is not merged
            table.rows()
            table.networks()
            table.reference()
        drafts = [out.with_name(f".{out.name}.{os.getpid()}{end}") for end in ("", "-second")]
        try:
            for path, draft in zip((first, second), drafts, strict=True):
                _copy(path, draft)
            with closing(sqlite3.connect(drafts[0])) as target, closing(sqlite3.connect(drafts[1])) as extra:
                with target:
                    added, visits, same = _add(target, extra)
                entries = target.execute("SELECT count(*) FROM entries").fetchone()[0]
                found = target.execute("SELECT name FROM entries WHERE role = 'operator'").fetchall()
            operators = len({name for (name,) in found} - OVERHEAD_KEYS)
            drafts[0].rename(out)
        except KeyError:  # a visit of no entry, of no session or inside no visit
            raise HwnasError(trust.damaged(second)) from None
        except (OSError, sqlite3.OperationalError) as error:
            raise HwnasError(f"cannot write {out} ({error}): free space or give another --out") from None
        finally:
            for draft in drafts:
                for end in ("", "-journal", "-wal", "-shm"):
                    with suppress(OSError):
                        draft.with_name(draft.name + end).unlink(missing_ok=True)
    return MergeReport(str(out), entries, operators, added, visits, same)


def _check_alike(one: LatencyTable, other: LatencyTable) -> None:
    for table in (one, other):
        if table.header.get("imported"):
            raise HwnasError(f"{table.path} was imported, not measured here: only measured tables can be merged")
    for key in MERGED:
        mine, theirs = one.header.get(key), other.header.get(key)
        if mine != theirs:
            raise HwnasError(
                f"{one.path} was measured with {key} {mine}, {other.path} with {theirs}: only tables of one set-up can "
                "be merged; compare them with 'hwnas lut diff'"
            )
    if "reference" in one.names("reference") and "reference" in other.names("reference"):
        references = [table.content("reference", "reference") for table in (one, other)]
        if references[0] != references[1]:
            raise HwnasError(f"{one.path} and {other.path} have different reference networks: profile one of them anew")


def _copy(path: Path, draft: Path) -> None:
    """A copy of a table of whatever format, brought to the newest."""
    source = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
    with closing(source), closing(sqlite3.connect(draft)) as target:
        trust.harden(source)
        source.backup(target)
    TableWriter.open(draft).close()


def _add(target: sqlite3.Connection, extra: sqlite3.Connection) -> tuple[int, int, int]:
    """Adds entries, sessions and visits of `extra`; returns (new entries, visits added, visits that were there)."""
    entries, added = _add_entries(target, extra)
    sessions = _add_sessions(target, extra)
    columns = "entry, session, pass, at, repeats, samples_ms, state, place"
    known = {tuple(row): number for number, *row in target.execute(f"SELECT id, {columns} FROM visits")}
    places: dict[Any, int | None] = {None: None}
    visits = same = 0
    for old, entry, session, *rest, place in extra.execute(f"SELECT id, {columns} FROM visits ORDER BY id"):
        # an operator that was timed inside a network comes after that network's visit
        row = (entries[entry], sessions[session], *rest, places[place])
        if row in known:
            places[old] = known[row]
            same += 1
            continue
        cursor = target.execute(f"INSERT INTO visits ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        places[old] = int(cursor.lastrowid or 0)
        visits += 1
    return added, visits, same


def _add_entries(target: sqlite3.Connection, extra: sqlite3.Connection) -> tuple[dict[Any, int], int]:
    """New ids of the entries of `extra`, and how many are new. A failure stays where nothing was ever measured."""
    ids: dict[Any, int] = {}
    added = 0
    for old, role, name, content, failure in extra.execute("SELECT id, role, name, content, failure FROM entries"):
        found = target.execute("SELECT id, failure FROM entries WHERE role = ? AND name = ?", (role, name)).fetchone()
        if found is None:
            cursor = target.execute(
                "INSERT INTO entries (role, name, content, failure) VALUES (?, ?, ?, ?)", (role, name, content, failure)
            )
            ids[old], added = int(cursor.lastrowid or 0), added + 1
            continue
        ids[old] = int(found[0])
        if failure is None and found[1] is not None and _measured(extra, old):
            target.execute("UPDATE entries SET failure = NULL WHERE id = ?", (ids[old],))
        elif failure is not None and found[1] is None and not _measured(target, ids[old]):
            target.execute("UPDATE entries SET failure = ? WHERE id = ?", (failure, ids[old]))
    return ids, added


def _measured(connection: sqlite3.Connection, entry: Any) -> bool:
    return connection.execute("SELECT 1 FROM visits WHERE entry = ? LIMIT 1", (entry,)).fetchone() is not None


def _add_sessions(target: sqlite3.Connection, extra: sqlite3.Connection) -> dict[Any, int]:
    """New ids of the sessions of `extra`. One that began at the same instant in the same circumstances is the same."""
    ids: dict[Any, int] = {}
    for old, started, environment in extra.execute("SELECT id, started, environment FROM sessions ORDER BY id"):
        query = "SELECT id FROM sessions WHERE started = ? AND environment = ?"
        found = target.execute(query, (started, environment)).fetchone()
        if found is None:
            cursor = target.execute("INSERT INTO sessions (started, environment) VALUES (?, ?)", (started, environment))
            found = (cursor.lastrowid,)
        ids[old] = int(found[0])
    return ids
