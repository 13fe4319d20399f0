"""kill -9 at fifty random moments of a profile: no finished measurement is lost and nothing is corrupted."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from hwnas.latency.plan import COVER_VISITS, MOST_COVER_VISITS
from hwnas.latency.table import LatencyTable

PROFILE = """
import sys, tempfile
from pathlib import Path
tempfile.tempdir = str(Path(sys.argv[1]).parent)  # a device lock of its own
from quick import quick_profile, tiny_network
from hwnas.latency.build import build_table
from hwnas.latency.writer import TableWriter
from hwnas.progress import NullProgress

store, store_kernels = TableWriter.add_visit, TableWriter.add_kernels
def say(*values, samples_ms):
    print(*values, *(float(sample).hex() for sample in samples_ms), sep="|", flush=True)
def store_and_say(table, session, role, name, number, repeats, samples_ms, state):
    store(table, session, role, name, number, repeats, samples_ms, state)
    say(session, role, name, number, repeats, samples_ms=samples_ms)
def store_kernels_and_say(table, session, name, number, totals_ms, kernels, launches, state=None):
    store_kernels(table, session, name, number, totals_ms, kernels, launches, state)
    say(session, "cover", name, number, 1, samples_ms=totals_ms)
    for key, samples_ms in kernels.items():
        say(session, "operator", key, number, launches[key], samples_ms=samples_ms)
TableWriter.add_visit, TableWriter.add_kernels = store_and_say, store_kernels_and_say

passes = int(sys.argv[2])
models = {"small": tiny_network(), "wide": tiny_network(24), "large": tiny_network(8, 24)}
profile = quick_profile(min_passes=passes, max_passes=passes)
build_table(profile, Path(sys.argv[1]), models=models, progress=NullProgress())
"""
"""A real profile that says of each measurement when it is finished: when the table's method has returned."""

CHAINS, KILLS = 2, 25
PASSES = 500
MOST_LINES = 40
"""Measurements that are waited for before a kill, at most: all of them together are far from the whole."""
EARLY = 0.25
"""Share of the kills at any moment from the start of the process on; the others come once it measures."""

Stored = dict[int, tuple[object, ...]]


def start(path: Path, passes: int = PASSES) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROFILE, str(path), str(passes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )


def stored(path: Path) -> Stored:
    """Every visit of the table as it lies in the file, by id."""
    query = """SELECT visits.id, session, role, name, pass, repeats, samples_ms, at, place
               FROM visits JOIN entries ON entry = entries.id"""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return {row[0]: row[1:] for row in connection.execute(query)}


def finished(output: str) -> list[str]:
    """The measurements that a process said it had finished; a line that the kill cut off was said by nobody."""
    return [line.rstrip("\n") for line in output.splitlines(keepends=True) if line.endswith("\n")]


def as_said(rows: Stored) -> set[str]:
    lines = set()
    for session, role, name, number, repeats, blob, *_ in rows.values():
        assert isinstance(blob, bytes)
        lines.add("|".join(map(str, (session, role, name, number, repeats, *map(float.hex, np.frombuffer(blob))))))
    return lines


def check_kernels(rows: Stored) -> None:
    """A visit of a network inside which kernels are timed has all of them, or is not there."""
    covers = {key: row[2] for key, row in rows.items() if row[1] == "cover"}
    kernels: dict[int, set[object]] = {key: set() for key in covers}
    for _, role, name, *_, place in rows.values():
        if role == "operator":
            assert place in kernels
            kernels[place].add(name)
    of_network: dict[object, set[object]] = {}
    for key, name in covers.items():
        assert kernels[key]
        assert of_network.setdefault(name, kernels[key]) == kernels[key]


def kill_again_and_again(path: Path, seed: int) -> int:
    """Kills profiles of one table at random moments; returns how many of them had measured something."""
    rng = np.random.default_rng(seed)
    before: Stored = {}
    in_the_middle = 0
    for _ in range(KILLS):
        process = start(path)
        assert process.stdout is not None
        said = ""
        if rng.random() < EARLY:
            time.sleep(rng.uniform(0, 1.2))
        else:
            said = "".join(process.stdout.readline() for _ in range(rng.integers(1, MOST_LINES)))
            time.sleep(rng.uniform(0, 0.005))  # a measurement takes about as long
        process.kill()
        said += process.stdout.read()
        _, errors = process.communicate()
        assert process.returncode == -9, errors
        if not path.exists():  # killed before there was a table
            assert not finished(said)
            continue
        with LatencyTable.open(path) as table:
            table.rows()
            table.networks()
        after = stored(path)
        assert {key: after.get(key) for key in before} == before  # byte for byte
        assert as_said(after) >= set(finished(said))
        check_kernels(after)
        in_the_middle += len(after) > len(before)
        before = after
    done = start(path)
    _, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors
    after = stored(path)
    assert {key: after.get(key) for key in before} == before
    check_kernels(after)
    visits = Counter((role, name) for _, role, name, *_ in after.values())
    assert visits.pop(("reference", "reference")) >= PASSES
    # every entry is complete, and none was measured twice for a kill
    # (those that met no quiet moment get more visits, and so does their company)
    covers = {name: count for (role, name), count in visits.items() if role == "cover"}
    most = PASSES if set(covers.values()) == {COVER_VISITS} else 10 * PASSES
    assert all(PASSES <= count <= most for (role, _), count in visits.items() if role == "network")
    assert all(COVER_VISITS <= count <= MOST_COVER_VISITS for count in covers.values())
    with LatencyTable.open(path) as table:
        inside = table.inside()
    assert {name: count for (role, name), count in visits.items() if role == "operator"} == {
        key: sum(covers[network] for network in networks) for key, networks in inside.items()
    }
    assert len(before) < len(after)  # there was something left to do
    return in_the_middle


@pytest.mark.slow
def test_fifty_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """Two profiles of tables of their own at a time, since a process spends most of its life starting."""
    folders = [tmp_path / str(seed) for seed in range(CHAINS)]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(CHAINS) as pool:
        chains = [pool.submit(kill_again_and_again, folder / "t.lut", seed) for seed, folder in enumerate(folders)]
        in_the_middle = sum(chain.result() for chain in chains)
    assert in_the_middle >= CHAINS * KILLS // 2
    for folder in folders:  # the last, undisturbed run leaves one plain file (and the lock)
        assert sorted(file.suffix for file in folder.iterdir() if file.is_file()) == [".lock", ".lut"]
