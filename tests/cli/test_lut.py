"""`lut check`, `merge`, `diff` and `export` as users type them, on a real, quickly measured table."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Hwnas

CHECK = {"lut", "device", "seed", "reference", "level", "network_ratio", "outside", "allowed", "entries", "reasons",
         "command", "drifted"}  # fmt: skip
ENTRY = {"role", "name", "then_ms", "then_low_ms", "then_high_ms", "now_ms", "now_low_ms", "now_high_ms", "ratio",
         "outside", "failure"}  # fmt: skip
ROW = ["key", "kind", "latency_ms", "low_ms", "high_ms", "macs", "params", "size_bytes", "gmacs_per_s", "samples",
       "failure", "imported"]  # fmt: skip


def spoilt(source: Path, target: Path, statement: str) -> Path:
    shutil.copy(source, target)
    with closing(sqlite3.connect(target)) as connection:
        connection.execute(statement)
        connection.commit()
    return target


@pytest.fixture
def halved(hwnas: Hwnas, measured: Any) -> Path:
    """A table that says that everything but the reference takes half as long as it does."""
    path = Path(shutil.copy(measured.lut, hwnas.folder / "halved.lut"))
    query = "SELECT visits.id, samples_ms FROM visits JOIN entries ON entry = entries.id WHERE role != 'reference'"
    with closing(sqlite3.connect(path)) as connection:
        for key, blob in connection.execute(query).fetchall():
            half = (np.frombuffer(blob) / 2).tobytes()
            connection.execute("UPDATE visits SET samples_ms = ? WHERE id = ?", (half, key))
        connection.commit()
    return path


@pytest.mark.slow
def test_check_finds_a_table_that_drifted(hwnas: Hwnas, halved: Path) -> None:
    before = halved.read_bytes()
    done = hwnas("lut", "check", halved, "--sample", "6", "--seed", "3", "--json")
    assert done.code == 3
    document = done.document
    assert set(document) >= CHECK
    assert document["drifted"] is True
    assert document["seed"] == 3
    assert document["network_ratio"] > 1.3
    assert len(document["entries"]) == 6
    assert all(set(entry) >= ENTRY for entry in document["entries"])
    assert document["entries"][0]["name"] in done.error  # the worst one is named
    assert "profile anew: hwnas profile --device " in done.error
    assert document["command"] in done.error
    assert "--space proxyless-tiny --batch 1 --threads 1 --lut " in document["command"]
    assert halved.read_bytes() == before


@pytest.mark.slow
def test_check_says_for_people_what_it_found(hwnas: Hwnas, measured: Any) -> None:
    """Whether a table of two passes holds is the machine's affair; what is said must agree with the exit code."""
    done = hwnas("lut", "check", measured.lut, "--sample", "4")
    assert done.code in (0, 3)
    assert ("verdict: the table holds" in done.stdout) == (done.code == 0)
    assert ("verdict: DRIFTED" in done.stdout) == (done.code == 3)
    assert "3 operators and 1 network measured again" in done.stdout


def test_check_refuses_a_table_of_another_device(hwnas: Hwnas, measured: Any) -> None:
    path = spoilt(measured.lut, hwnas.folder / "t.lut", "UPDATE header SET value = '\"Abacus 3\"' WHERE key = 'device'")
    done = hwnas("lut", "check", path)
    assert done.code == 1
    assert "Abacus 3" in done.error
    assert hwnas("lut", "check").code == 1  # and there is none here
    assert "hwnas profile" in hwnas("lut", "check").error


def test_merge(hwnas: Hwnas, measured: Any) -> None:
    report = hwnas("lut", "merge", measured.lut, measured.lut, "--out", "both.lut", "--json").document
    assert report["operators"] == measured.done.document["entries"]  # what the profiler costs is none
    assert (report["added"], report["visits"]) == (0, 0)
    assert report["same"] > 100
    shown = [hwnas("lut", "show", path, "--json").document["rows"] for path in (measured.lut, "both.lut")]
    assert shown[0] == shown[1]
    again = hwnas("lut", "merge", measured.lut, measured.lut, "--out", "both.lut")
    assert (again.code, "both.lut exists" in again.error) == (2, True)
    other = spoilt(measured.lut, hwnas.folder / "t.lut", "UPDATE header SET value = '2' WHERE key = 'threads'")
    refused = hwnas("lut", "merge", measured.lut, other, "--out", "c.lut")
    assert (refused.code, "threads" in refused.error) == (1, True)
    assert not (hwnas.folder / "c.lut").exists()


def test_diff(hwnas: Hwnas, measured: Any, halved: Path) -> None:
    report = hwnas("lut", "diff", measured.lut, halved, "--json").document
    assert report["median_ratio"] == pytest.approx(0.5, abs=0.02)
    assert report["differing"] == {}
    assert len(report["common"]) > 50
    human = hwnas("lut", "diff", halved, measured.lut)
    assert human.code == 0
    assert "operators of the second table take 2.0" in human.stdout
    other = spoilt(
        measured.lut, hwnas.folder / "t.lut", "UPDATE header SET value = '\"Abacus 3\"' WHERE key = 'device'"
    )
    across = hwnas("lut", "diff", measured.lut, other)
    assert across.code == 0
    assert "/ Abacus 3" in across.stdout


def test_export(hwnas: Hwnas, measured: Any) -> None:
    done = hwnas("lut", "export", measured.lut)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert list(rows[0]) == ROW
    shown = hwnas("lut", "show", measured.lut, "--json").document["rows"]
    assert {row["key"]: float(row["latency_ms"]) for row in rows} == {row["key"]: row["latency_ms"] for row in shown}
    by_key = {row["key"]: row for row in shown}
    assert hwnas("lut", "export", measured.lut, "--json").document["rows"] == [by_key[row["key"]] for row in rows]
    written = hwnas("lut", "export", measured.lut, "--out", "t.json", "--json").document
    assert (written["format"], written["entries"]) == ("json", len(rows))
    assert len(json.loads((hwnas.folder / "t.json").read_text())["rows"]) == len(rows)
    assert hwnas("lut", "export", measured.lut, "--out", "t.parquet").code == 0
    assert (hwnas.folder / "t.parquet").read_bytes()[:4] == b"PAR1"
    for args in (("--format", "parquet"), ("--format", "csv", "--json")):
        refused = hwnas("lut", "export", measured.lut, *args)
        assert (refused.code, "give --out FILE." in refused.error) == (2, True)
    assert hwnas("lut", "export", measured.lut, "--format", "xls").code == 2
