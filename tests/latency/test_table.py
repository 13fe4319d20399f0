"""The table: nothing that was stored is lost, nothing of another set-up or of a damaged file gets in."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quick import as_nobody, quick_profile

from hwnas.errors import HwnasError
from hwnas.latency.builds import builds_error
from hwnas.latency.imported import UNSTATED_ERROR, Imported
from hwnas.latency.listing import default_path, list_tables
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.latency.table_file import FORMAT
from hwnas.latency.writer import TableWriter, write_imported
from hwnas.measure.runtimes.base import BUILDS_MS
from hwnas.measure.statistics import Estimate
from hwnas.network import Network
from hwnas.ops import Op

PROFILE = quick_profile()
DESCRIBE = {"runtime": "onnxruntime", "runtime_version": "1.0", "device": "A CPU", "cores": 2, "threads": 1}
OPS = [Op.conv((8, 4, 4), 8, kernel=3, norm=True), Op.linear(8, 4)]
KEYS = [op.key for op in OPS]
NETWORK = {"input_shape": [8, 4, 4], "ops": KEYS}


def fill(table: TableWriter, *, factor: float = 1.0, reference: int = 25, visits: int = 3) -> int:
    """One session in which the machine is `factor` times as slow: operators of 2 and 3 ms, a network of 6."""
    session = table.start_session({})
    for role, name, content in (
        ("reference", "reference", NETWORK),
        ("network", "a net", NETWORK),
        *(("operator", key, {}) for key in KEYS),
    ):
        table.add_entry(role, name, content)
    for number in range(reference):
        table.add_visit(session, "reference", "reference", number, 1, [10 * factor])
    for number in range(visits):
        table.add_visit(session, "network", "a net", number, 1, [6 * factor] * 2)
        table.add_visit(session, "operator", KEYS[0], number, 4, [8 * factor] * 2)
        table.add_visit(session, "operator", KEYS[1], number, 1, [3 * factor] * 2)
    return session


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with one session, not to be changed."""
    path = tmp_path_factory.mktemp("filled") / "t.lut"
    with TableWriter.create(path, PROFILE, DESCRIBE) as table:
        fill(table)
    return path


@pytest.fixture
def path(filled: Path, tmp_path: Path) -> Path:
    """A copy of the table with one session."""
    return Path(shutil.copy(filled, tmp_path / "t.lut"))


def sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def read_everything(path: Path) -> None:
    """What the commands read of a table."""
    with LatencyTable.open(path) as table:
        table.rows()
        table.networks()
        table.reference()
        assert table.fingerprint
        LatencyModel(table)
        for role in ("operator", "network", "reference"):
            for name in table.names(role):
                table.visits(role, name)
                table.content(role, name)


# -- what is stored --------------------------------------------------------------------------------------------------


def test_rows_are_of_one_execution_with_their_arithmetic(path: Path) -> None:
    with LatencyTable.open(path) as table:
        rows = {row.key: row for row in table.rows()}
        assert table.header["batch_size"] == 1
        assert table.header["runtime_version"] == "1.0"
    conv = rows[KEYS[0]]
    assert (conv.low_ms, conv.latency_ms, conv.high_ms, conv.samples) == (2, 2, 2, 6)  # 8 ms for 4 copies
    assert conv.macs == OPS[0].macs == 8 * 8 * 9 * 16
    assert conv.params == OPS[0].deployed_params == 8 * 8 * 9 + 8
    assert conv.size_bytes == OPS[0].traffic_bytes()
    assert conv.gmacs_per_s == pytest.approx(conv.macs / 2e-3 / 1e9)
    assert rows[KEYS[1]].latency_ms == 3


def test_the_cost_of_an_empty_run_is_taken_off_once_a_run(path: Path) -> None:
    with TableWriter.open(path) as table:
        table.add_entry("overhead", "overhead", {})
        for number in range(3):
            table.add_visit(1, "overhead", "overhead", number, 1, [0.4])
        found = table.operators()
    assert found[KEYS[0]].latency_ms == pytest.approx((8 - 0.4) / 4)
    assert found[KEYS[1]].latency_ms == pytest.approx(3 - 0.4)


def test_an_operator_that_is_faster_than_an_empty_run_still_takes_time(path: Path) -> None:
    with TableWriter.open(path) as table:
        table.add_entry("overhead", "overhead", {})
        table.add_visit(1, "overhead", "overhead", 0, 1, [100.0])
        assert all(found.low_ms > 0 for found in table.operators().values())


def test_failures_are_named_and_no_latency(path: Path) -> None:
    key = Op.linear(8, 5).key
    with TableWriter.open(path) as table:
        table.add_entry("operator", key, {})
        table.add_failure("operator", key, "took the measuring process down")
        assert table.failures() == {key: "took the measuring process down"}
        assert key not in table.operators()
        row = next(row for row in table.rows() if row.key == key)
        assert (row.latency_ms, row.gmacs_per_s, row.failure) == (None, None, "took the measuring process down")
        # once something was measured and fails later, it is a failure too, until it is tried again
        table.add_failure("operator", KEYS[0], "hung")
        assert KEYS[0] not in table.operators()
        table.add_entry("operator", KEYS[0], {})
        assert table.operators()[KEYS[0]].latency_ms == 2


def test_a_visit_of_nothing_that_is_known_is_not_swallowed(path: Path) -> None:
    with TableWriter.open(path) as table, pytest.raises(KeyError, match="nowhere"):
        table.add_visit(1, "operator", "conv of nowhere", 0, 1, [1.0])


def test_the_fingerprint_changes_with_every_measurement(path: Path) -> None:
    with TableWriter.open(path) as table:
        before = table.fingerprint
        assert table.fingerprint == before
        table.add_visit(1, "operator", KEYS[0], 9, 1, [1.0])
        assert table.fingerprint != before


# -- sessions at different speeds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("factors", [(1.0, 1.3), (1.0, 0.7, 1.15), (1.2, 1.0)])
def test_sessions_are_brought_to_the_level_of_the_first(tmp_path: Path, factors: tuple[float, ...]) -> None:
    with TableWriter.create(tmp_path / "t.lut", PROFILE, DESCRIBE) as table:
        sessions = [fill(table, factor=factor) for factor in factors]
        first = factors[0]
        expected = {session: first / factor for session, factor in zip(sessions, factors, strict=True)}
        assert table.drift() == pytest.approx(expected)
        found = table.operators()[KEYS[1]]
        assert (found.low_ms, found.high_ms) == pytest.approx((3 * first, 3 * first))  # no spread is left
        assert table.networks()[0].measured.latency_ms == pytest.approx(6 * first)
        reference = table.reference()
        assert reference is not None
        assert reference.latency_ms == pytest.approx(10 * first)


def test_a_session_whose_level_is_hardly_known_is_left_as_it_is(tmp_path: Path) -> None:
    with TableWriter.create(tmp_path / "t.lut", PROFILE, DESCRIBE) as table:
        fill(table)
        short = fill(table, factor=2.0, reference=3)
        assert short not in table.drift()
        assert [samples[0] for samples in table.visits("operator", KEYS[1])] == [3, 3, 3, 6, 6, 6]
        assert table.operators()[KEYS[1]].samples == 12


# -- kill -9, full disks, many readers -------------------------------------------------------------------------------

WRITER = """
import sys, itertools
from pathlib import Path
from quick import quick_profile
from hwnas.latency.writer import TableWriter
describe = {"runtime": "onnxruntime", "runtime_version": "1.0", "device": "A CPU", "cores": 2, "threads": 1}
with TableWriter.open_or_create(Path(sys.argv[1]), quick_profile(), describe) as table:
    session = table.start_session({})
    table.add_entry("operator", "linear 8>4 bias", {})
    for number in range(int(sys.argv[2])):
        table.add_visit(session, "operator", "linear 8>4 bias", number, 1, [1.0 + number] * 5)
        print(number, flush=True)
"""


def start_writer(path: Path, visits: int, before: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", before + WRITER, str(path), str(visits)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )


def stored(path: Path) -> list[int]:
    with LatencyTable.open(path) as table:
        return [int(samples[0] - 1) for samples in table.visits("operator", "linear 8>4 bias")]


@pytest.mark.parametrize("at", [1, 37, 1200])
def test_kill_9_loses_nothing_that_was_stored(tmp_path: Path, at: int) -> None:
    path = tmp_path / "t.lut"
    with start_writer(path, 1_000_000) as writer:
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(at)]
        writer.kill()
        said += [int(line) for line in writer.stdout.read().splitlines()]  # communicate() passes over what is buffered
    assert stored(path)[: len(said)] == said
    # and the next one goes on in the same file, and leaves one plain file
    with TableWriter.open_or_create(path, PROFILE, DESCRIBE) as table:
        table.add_visit(table.start_session({}), "operator", "linear 8>4 bias", 0, 1, [8.0])
    assert stored(path)[-1] == 7
    assert [found.name for found in tmp_path.iterdir()] == ["t.lut"]


def test_a_deleted_table_does_not_come_back_from_its_journal(tmp_path: Path) -> None:
    path = tmp_path / "t.lut"
    writer = start_writer(path, 1_000_000)
    assert writer.stdout is not None
    assert writer.stdout.readline()
    writer.kill()
    writer.communicate()
    assert path.with_name("t.lut-wal").exists()
    path.unlink()  # "delete it and profile again"
    with TableWriter.create(path, PROFILE, {**DESCRIBE, "device": "Another CPU"}) as table:
        assert table.names("operator") == []
        assert table.header["device"] == "Another CPU"


def test_two_read_while_one_writes(tmp_path: Path) -> None:
    path = tmp_path / "t.lut"
    writer = start_writer(path, 3000)
    assert writer.stdout is not None
    writer.stdout.readline()
    with LatencyTable.open(path) as first:
        counts = [0]
        while writer.poll() is None:
            second = len(stored(path))
            visits = len(first.visits("operator", "linear 8>4 bias"))
            assert counts[-1] <= second <= visits
            counts.append(visits)
    _, errors = writer.communicate()
    assert (writer.returncode, errors) == (0, "")
    assert len(stored(path)) == 3000


LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
"""


def test_a_full_disk_is_one_line_and_keeps_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "t.lut"
    writer = start_writer(path, 100_000, before=LIMIT)
    output, errors = writer.communicate(timeout=60)
    assert writer.returncode == 1
    assert errors.splitlines()[-1].startswith("hwnas.errors.HwnasError: cannot write to ")
    assert "free space" in errors.splitlines()[-1]
    said = [int(line) for line in output.split()]
    assert len(said) > 10
    assert stored(path)[: len(said)] == said


def write_much(path: Path) -> None:
    with TableWriter.open(path) as table:
        for number in range(1000):
            table.add_visit(1, "operator", KEYS[0], number, 1, [1.0] * 50)


def test_a_disk_that_is_full_for_all_that_is_asked(small_disk: Path) -> None:
    path = small_disk / "t.lut"
    with TableWriter.create(path, PROFILE, DESCRIBE) as table:
        fill(table)
        rows = len(table.rows())
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(b"0" * 4096)
    with pytest.raises(HwnasError, match=r"No space left|full|disk I/O") as caught:
        TableWriter.create(small_disk / "other.lut", PROFILE, DESCRIBE)
    assert "damaged" not in str(caught.value)
    assert [file.name for file in small_disk.glob("*other*")] == []
    with pytest.raises(HwnasError) as caught:
        write_much(path)
    assert "damaged" not in str(caught.value)  # whoever reads that deletes a table that is whole
    (small_disk / "ballast").unlink()
    with LatencyTable.open(path) as table:
        assert len(table.rows()) == rows


# -- files that are none ---------------------------------------------------------------------------------------------


def one_line(caught: pytest.ExceptionInfo[HwnasError]) -> str:
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize("kept", [0, 1, 50, 99, 100, 4096, 6000, -4096, -1])
def test_truncated(path: Path, kept: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    with pytest.raises(HwnasError, match=r"damaged|not an hwnas table") as caught:
        read_everything(path)
    assert str(path) in one_line(caught)
    with pytest.raises(HwnasError):
        TableWriter.open_or_create(path, PROFILE, DESCRIBE)
    assert path.read_bytes() == whole[:kept]  # left as it is


@pytest.mark.parametrize("seed", range(40))
def test_damaged_anywhere(path: Path, seed: int) -> None:
    """Some bytes changed: it still opens, or it is refused in one line; nothing else."""
    rng = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for place in rng.integers(len(data), size=30):
        data[place] = rng.integers(256)
    path.write_bytes(bytes(data))
    try:
        read_everything(path)
    except HwnasError as error:
        message = str(error)
    else:
        return
    assert len(message.splitlines()) == 1


def test_foreign(tmp_path: Path) -> None:
    path = tmp_path / "t.lut"
    with pytest.raises(HwnasError, match=r"no table .*hwnas profile"):
        LatencyTable.open(path)
    path.write_text("not a table at all\n" * 200)
    with pytest.raises(HwnasError, match="not an hwnas table"):
        LatencyTable.open(path)
    path.unlink()
    sql(path, "CREATE TABLE cats (name TEXT)")
    with pytest.raises(HwnasError, match="not an hwnas table"):
        TableWriter.open(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)  # was not touched
    path.unlink()
    path.mkdir()
    with pytest.raises(HwnasError):
        LatencyTable.open(path)
    with pytest.raises(HwnasError):
        TableWriter.open_or_create(path, PROFILE, DESCRIBE)


def test_of_a_newer_hwnas(path: Path) -> None:
    sql(path, f"PRAGMA user_version = {FORMAT + 1}")
    with pytest.raises(HwnasError, match=f"format {FORMAT + 1}.*upgrade"):
        LatencyTable.open(path)


HOSTILE = {
    "header key gone": "DELETE FROM header WHERE key = 'threads'",
    "profile gone": "DELETE FROM header WHERE key = 'profile'",
    "header empty": "DELETE FROM header",
    "header no JSON": "UPDATE header SET value = '{' WHERE key = 'device'",
    "header deep JSON": f"UPDATE header SET value = '{'[' * 100_000}' WHERE key = 'device'",
    "header of another type": "UPDATE header SET value = '\"two\"' WHERE key = 'batch_size'",
    "a batch of nothing": "UPDATE header SET value = '0' WHERE key = 'batch_size'",
    "profile of another type": "UPDATE header SET value = '3' WHERE key = 'profile'",
    "created of another type": "UPDATE header SET value = '\"today\"' WHERE key = 'created'",
    "header not text": "UPDATE header SET value = x'ff00' WHERE key = 'device'",
    "table gone": "DROP TABLE visits",
    "other columns": "ALTER TABLE visits RENAME COLUMN samples_ms TO samples",
    "bad operator key": "UPDATE entries SET name = 'conv of evil ' || id WHERE role = 'operator'",
    "operator key not text": "UPDATE entries SET name = x'00ff' || id WHERE role = 'operator'",
    "operator without channels": f"UPDATE entries SET name = 'conv 0x1x1>8x1x1' WHERE name = '{KEYS[0]}'",
    "network no JSON": "UPDATE entries SET content = 'x' WHERE role = 'network'",
    "network without operators": "UPDATE entries SET content = '{}' WHERE role = 'network'",
    "network of another type": "UPDATE entries SET content = '7' WHERE role = 'network'",
    "network with a number for operators": """UPDATE entries SET content = '{"input_shape": [3], "ops": 3}'
                                              WHERE role = 'network'""",
    "network with lists for operators": """UPDATE entries SET content = '{"input_shape": [3], "ops": [[1]]}'
                                           WHERE role = 'network'""",
    "network with a list for a size": """UPDATE entries SET content = '{"input_shape": [[3]], "ops": []}'
                                         WHERE role = 'network'""",
    "odd samples": "UPDATE visits SET samples_ms = x'010203'",
    "no samples": "UPDATE visits SET samples_ms = x''",
    "samples as text": "UPDATE visits SET samples_ms = 'fast'",
    "samples not a number": "UPDATE visits SET samples_ms = x'000000000000f87f'",
    "samples infinite": "UPDATE visits SET samples_ms = x'000000000000f07f'",
    "samples of no time": "UPDATE visits SET samples_ms = x'0000000000000000'",
    "samples below zero": "UPDATE visits SET samples_ms = x'000000000000f0bf'",
    "no repeats": "UPDATE visits SET repeats = 0",
    "repeats as text": "UPDATE visits SET repeats = 'many'",
}


@pytest.mark.parametrize("statement", HOSTILE.values(), ids=HOSTILE)
def test_hostile_content_is_refused_in_one_line(path: Path, statement: str) -> None:
    sql(path, statement)
    with pytest.raises(HwnasError) as caught:
        read_everything(path)
    assert str(path) in one_line(caught)


# -- format 1, and what was imported ---------------------------------------------------------------------------------


def as_format_1(path: Path) -> Path:
    """The file as hwnas wrote it before format 2."""
    sql(as_format_2(path), "DROP TABLE imported", "PRAGMA user_version = 1")
    return path


def as_format_2(path: Path) -> Path:
    """The file as hwnas wrote it before format 3."""
    sql(as_format_3(path), "ALTER TABLE visits DROP COLUMN place", "PRAGMA user_version = 2")
    return path


def as_format_3(path: Path) -> Path:
    """The file as hwnas wrote it before format 4."""
    sql(path, "ALTER TABLE visits DROP COLUMN state", "PRAGMA user_version = 3")
    return path


@pytest.mark.parametrize("older", [as_format_1, as_format_2, as_format_3])
def test_a_table_of_an_older_format_is_read_and_added_to(path: Path, older: Callable[[Path], Path]) -> None:
    with LatencyTable.open(path) as table:
        now = table.operators(), table.fingerprint, table.names("operator"), table.rows()
    before = older(path).read_bytes()
    with LatencyTable.open(path) as table:
        assert table.inside() == {}
        assert (table.operators(), table.fingerprint, table.names("operator"), table.rows()) == now
        assert table.blocks() == {}
    assert path.read_bytes() == before
    with TableWriter.open_or_create(path, PROFILE, DESCRIBE) as table:
        assert table.operators() == now[0]
        key = Op.linear(8, 5).key
        table.add_entry("operator", key, {})
        table.add_visit(1, "operator", key, 0, 1, [3.0])
        assert key in table.operators()
        table.add_entry("cover", "a net", NETWORK)
        table.add_kernels(1, "a net", 0, [5.0], {KEYS[1]: np.array([4.0])}, {KEYS[1]: 1})
        assert table.inside() == {KEYS[1]: {"a net"}}
    read_everything(path)


# -- kernels inside networks -----------------------------------------------------------------------------------------


def test_kernels_are_stored_with_their_network_all_or_none(path: Path) -> None:
    kernels = {KEYS[0]: np.array([1.0, 1.2]), Op.linear(16, 4).key: np.array([2.0, 2.0])}
    launches = dict.fromkeys((*kernels, Op.linear(9, 9).key), 1)
    with TableWriter.open(path) as table:
        table.add_entry("cover", "a net", NETWORK)
        table.add_kernels(1, "a net", 0, [3.0, 3.2], kernels, launches)
        assert table.inside() == {key: {"a net"} for key in kernels}
        assert len(table.visits("cover", "a net")) == 1
        assert len(table.visits("operator", KEYS[0])) == 3  # those that were timed alone
        before = table.fingerprint, table.names("operator"), table.operators()
        spoilt = {Op.linear(9, 9).key: np.array([1.0]), KEYS[0]: ["no number"]}
        with pytest.raises(ValueError):
            table.add_kernels(1, "a net", 1, [3.0], spoilt, launches)
        with pytest.raises(KeyError, match="nowhere"):
            table.add_kernels(1, "no such net", 1, [3.0], kernels, launches)
        assert (table.fingerprint, table.names("operator"), table.operators()) == before
        table.add_kernels(1, "a net", 1, [3.0], kernels, launches, {"sm_mhz": 1500})  # and it goes on
        assert len(table.visits("cover", "a net")) == 2
        assert table.states("cover") == {"a net": [{"sm_mhz": 1500}]}


def test_timing_costs_nothing_where_nothing_was_launched(path: Path) -> None:
    """The cost of timing a kernel is taken off once for each kernel: not at all off what runs in another one's."""
    own, shared, hidden = (Op.linear(size, 4).key for size in (16, 17, 18))
    empty = Op.activation((1, 1, 1), "relu").key
    with TableWriter.open(path) as table:
        for name in ("overhead", "a net"):
            table.add_entry("cover", name, NETWORK)
        table.add_kernels(1, "overhead", 0, [0.5], {empty: np.array([0.5])}, {empty: 1})
        kernels = {own: np.array([4.0]), shared: np.array([3.0]), hidden: np.array([1e-4])}
        table.add_kernels(1, "a net", 1, [7.0], kernels, {own: 2, shared: 0.5, hidden: 0})
        found = table.operators()
    latencies = [found[key].latency_ms for key in (own, shared, hidden)]
    assert latencies == pytest.approx([3.0, 2.75, 1e-4])
    read_everything(path)


def test_what_the_device_was_doing_is_stored_with_its_visits(path: Path, tmp_path: Path) -> None:
    from hwnas.latency.merge import merge_tables

    with LatencyTable.open(path) as table:
        (name, *_) = table.names("network")
        assert (table.states("network"), table.builds_error) == ({}, 0.0)
    states = [{"sm_mhz": 1500, BUILDS_MS: [1.0, 1.2]}, {"sm_mhz": 1490, BUILDS_MS: [1.0, 1.2]}]
    with TableWriter.open(path) as table:
        for number, state in enumerate(states):
            table.add_visit(1, "network", name, 90 + number, 1, [1.1], state)
    merge_tables(path, path, tmp_path / "merged.lut")
    for file in (path, tmp_path / "merged.lut"):
        with LatencyTable.open(file) as table:
            assert table.states("network") == {name: states}
            assert table.builds_error == pytest.approx(np.log(1.2) / 2)
    for spoilt in ("'no JSON'", "'[1]'", """'{"builds_ms": "many"}'""", """'{"builds_ms": [-1.0, 1.0]}'""", "x'00'"):
        sql(path, f"UPDATE visits SET state = {spoilt} WHERE state IS NOT NULL")
        with LatencyTable.open(path) as table, pytest.raises(HwnasError) as caught:
            _ = table.builds_error
        assert "damaged" in one_line(caught)


def test_builds_of_all_networks_tell_how_far_builds_are_apart() -> None:
    assert builds_error([]) == builds_error([[[1.0], [1.1]]]) == 0
    apart = [[[1.0, 1.1]] * 3, [[2.0, 2.0], [2.4, 2.4]]]  # the second network's visits differ, its builds do not
    assert builds_error(apart) == pytest.approx(np.log(1.1) / 2 / 2**0.5)
    assert builds_error([[[3.0, 3.3]]]) == pytest.approx(builds_error([[[30.0, 33.0]]]))


HOSTILE_PLACES = (
    "'text'",
    "-1",
    "1e300",
    "x'00'",
    "id",
    "999999",
    "9223372036854775807",
    "(SELECT min(id) FROM visits)",
)


@pytest.mark.parametrize("place", HOSTILE_PLACES)
def test_a_hostile_place_is_refused_or_harmless(path: Path, place: str) -> None:
    with TableWriter.open(path) as table:
        table.add_entry("cover", "a net", NETWORK)
        table.add_kernels(1, "a net", 0, [3.0], {KEYS[1]: np.array([2.0])}, {KEYS[1]: 1})
    sql(path, f"UPDATE visits SET place = {place} WHERE place IS NOT NULL")
    with suppress(HwnasError):  # refused is as well
        read_everything(path)
        with LatencyTable.open(path) as table:
            assert table.operators()[KEYS[0]].latency_ms == 2
            assert all(found.latency_ms > 0 for found in table.operators().values())
            table.inside()


IMPORTED_HEADER = {
    "device": "X", "runtime": "r", "runtime_version": "unknown", "precision": "fp16", "batch_size": 4, "cores": None,
    "threads": None, "profile": {"name": "imported"}, "imported": {"source": "a paper"},
}  # fmt: skip


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """An imported table: one operator with ends, one without, one that failed."""
    rows = [
        Imported("operator", KEYS[0], 2.0, 1.0, 5.0),
        Imported("operator", KEYS[1], 3.0),
        Imported("operator", Op.linear(8, 5).key, None, failure="no"),
    ]
    write_imported(tmp_path / "f.lut", IMPORTED_HEADER, rows)
    assert [file.name for file in tmp_path.iterdir()] == ["f.lut"]
    return tmp_path / "f.lut"


def test_imported_values_are_kept_as_they_are_stated(foreign: Path) -> None:
    with LatencyTable.open(foreign) as table:
        found = table.operators()
        assert found[KEYS[0]] == Estimate(2.0, 1.0, 5.0, 0)
        assert found[KEYS[1]] == Estimate(3.0, 3.0 * (1 - UNSTATED_ERROR), 3.0 * (1 + UNSTATED_ERROR), 0)
        assert table.failures() == {Op.linear(8, 5).key: "no"}
        assert {row.key: row.imported for row in table.rows()} == dict.fromkeys(table.names("operator"), True)
        assert all(table.visits("operator", key) == [] for key in KEYS)
    assert list_tables(foreign.parent)[0].entries == 3


@pytest.mark.parametrize("statement", [
    "UPDATE imported SET latency_ms = 'fast' WHERE failure IS NULL",
    "UPDATE imported SET latency_ms = -1.0 WHERE failure IS NULL",
    "UPDATE imported SET latency_ms = 9e999 WHERE failure IS NULL",
    "UPDATE imported SET low_ms = 9.0 WHERE low_ms IS NOT NULL",
    "UPDATE imported SET high_ms = NULL WHERE high_ms IS NOT NULL",
    "UPDATE imported SET latency_ms = NULL",
    "UPDATE imported SET failure = 'both'",
    "UPDATE imported SET failure = x'05' WHERE failure IS NOT NULL",
    "UPDATE imported SET name = name || ' nonsense'",
    "UPDATE imported SET name = x'00ff' || name",
    "DROP TABLE imported",
    "UPDATE header SET value = '5' WHERE key = 'imported'",
    "UPDATE header SET value = '{}' WHERE key = 'imported'",
    "DELETE FROM header WHERE key = 'imported'",
    "UPDATE header SET value = '\"many\"' WHERE key = 'threads'",
])  # fmt: skip
def test_hostile_imported_content_is_refused_in_one_line(foreign: Path, statement: str) -> None:
    sql(foreign, statement)
    with pytest.raises(HwnasError) as caught:
        read_everything(foreign)
    assert str(foreign) in one_line(caught)


def test_nonsense_among_the_names_is_refused_when_it_is_needed(foreign: Path) -> None:
    sql(foreign, "UPDATE imported SET name = 'conv 1x1x1>what' WHERE failure IS NULL AND low_ms IS NULL")
    with LatencyTable.open(foreign) as table:
        model = LatencyModel(table)
    network = Network.from_json({"input_shape": [4, 4, 4], "ops": [Op.global_avg_pool((4, 4, 4)).key],
                                 "inputs": [[[-1, 0]]], "output": [0, 0]})  # fmt: skip
    with pytest.raises(HwnasError) as caught:
        model.predict(network)
    assert str(foreign) in one_line(caught)


@pytest.mark.parametrize(
    ("key", "value"),
    [("device", "Another CPU"), ("runtime_version", "2.0"), ("cores", 64), ("threads", 2), ("runtime", "tensorrt")],
)
def test_of_another_set_up(path: Path, key: str, value: Any) -> None:
    before = path.read_bytes()
    with pytest.raises(HwnasError, match=f"{key} .*{value}.*--lut") as caught:
        TableWriter.open_or_create(path, PROFILE, {**DESCRIBE, key: value})
    assert str(DESCRIBE[key]) in one_line(caught)
    assert path.read_bytes() == before


def test_of_another_batch_or_precision(path: Path) -> None:
    with pytest.raises(HwnasError, match="batch_size 1, this is 4"):
        TableWriter.open_or_create(path, PROFILE.override(batch_size=4), DESCRIBE)
    sql(path, "UPDATE header SET value = '\"fp16\"' WHERE key = 'precision'")
    with pytest.raises(HwnasError, match="precision fp16, this is fp32"):
        TableWriter.open_or_create(path, PROFILE, DESCRIBE)


# -- places ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach (pytest's own are root's)."""
    folder = Path(tempfile.mkdtemp(prefix="hwnas-test-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written(path: Path, open_folder: Path) -> None:
    copy = open_folder / "t.lut"
    shutil.copy(path, copy)
    copy.chmod(0o444)
    open_folder.chmod(0o555)
    with as_nobody():
        assert os.access(copy, os.R_OK)
        read_everything(copy)
        with pytest.raises(HwnasError) as caught, TableWriter.open(copy) as table:
            table.start_session({})
        assert "damaged" not in one_line(caught)
        with pytest.raises(HwnasError, match="give another --lut") as caught:
            TableWriter.create(open_folder / "new.lut", PROFILE, DESCRIBE)
        with pytest.raises(HwnasError, match="give another --lut"):
            TableWriter.create(open_folder / "below" / "new.lut", PROFILE, DESCRIBE)
    assert [found.name for found in open_folder.iterdir()] == ["t.lut"]


def test_a_file_that_cannot_be_read(path: Path, open_folder: Path) -> None:
    copy = open_folder / "t.lut"
    shutil.copy(path, copy)
    copy.chmod(0)
    with as_nobody(), pytest.raises(HwnasError) as caught:
        LatencyTable.open(copy)
    assert "damaged" not in one_line(caught)


def test_a_place_below_a_file(path: Path) -> None:
    with pytest.raises(HwnasError, match="give another --lut"):
        TableWriter.create(path / "t.lut", PROFILE, DESCRIBE)


@pytest.mark.parametrize("name", ["a b.lut", "50%.lut", "what?#.lut", "ä.lut"])
def test_names_that_mean_something_in_an_address(tmp_path: Path, name: str) -> None:
    with TableWriter.create(tmp_path / name, PROFILE, DESCRIBE) as table:
        fill(table)
    read_everything(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_listing_skips_what_is_damaged(path: Path) -> None:
    root = path.parent
    with TableWriter.create(root / "newer.lut", PROFILE, DESCRIBE) as table:
        fill(table)
    os.utime(path, (1, 1))
    (root / "text.lut").write_text("no")
    (root / "folder.lut").mkdir()
    (root / "empty.lut").touch()
    shutil.copy(path, root / "hostile.lut")
    sql(root / "hostile.lut", "UPDATE header SET value = '{' WHERE key = 'device'")
    found = list_tables(root)
    assert [info.path.name for info in found] == ["newer.lut", "t.lut"]
    assert found[0].entries == 2
    assert json.dumps(found[0].header)
    assert list_tables(root / "absent") == []


def test_default_path() -> None:
    assert default_path(PROFILE) == Path("tables/cpu-fp32-b1-t1.lut")
    cores = len(os.sched_getaffinity(0))
    assert default_path(PROFILE.override(threads=0, batch_size=8)) == Path(f"tables/cpu-fp32-b8-t{cores}.lut")
