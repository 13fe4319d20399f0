"""A profile meets what happens to machines: broken workers, clocks that are set, disks that fill up."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from hwnas.cli.failures import exit_code_and_line
from hwnas.cli.terminal import Terminal
from quick import quick_profile, tiny_network

from hwnas.errors import HwnasError
from hwnas.latency import build
from hwnas.latency.build import BuildReport, build_table
from hwnas.latency.lowering import lowering
from hwnas.latency.plan import COVER_VISITS, digest_of, overhead_network
from hwnas.latency.table import LatencyTable
from hwnas.latency.writer import TableWriter
from hwnas.measure.process import MeasuringProcess
from hwnas.measure.runtimes.scratch import scratch_folder
from hwnas.progress import NullProgress

pytestmark = pytest.mark.usefixtures("own_lock")

MODELS = {"small": tiny_network(), "wide": tiny_network(16, 16)}
KEYS = sorted({op.deployed().key for network in MODELS.values() for op in network.ops})


def profile_with_worker(script: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildReport:
    """A real profile whose measuring process runs `script`."""
    started = partial(MeasuringProcess, command=(sys.executable, str(script)))
    monkeypatch.setattr(build, "MeasuringProcess", started)
    return build_table(quick_profile(timeout_s=3.0), path, models=MODELS, progress=NullProgress())


# -- a worker that crashes, hangs or lies ----------------------------------------------------------------------------

WORKER = """
import os, sys, time
from hwnas.measure import worker

DO, WANTED, KERNELS = {do!r}, {wanted!r}, {kernels}
LIES = {{"not a number": [float("nan")], "backwards": [-1.0], "too few": []}}

def misbehave():
    if DO == "crash":
        os.abort()
    if DO == "hang":
        time.sleep(60)

honest_open, honest_time, honest_kernels = worker.Worker.do_open, worker.Worker.do_time, worker.Worker.do_kernels
def do_open(self, request):
    answer = honest_open(self, request)
    answer["describe"]["kernels"] = KERNELS
    return answer
def do_time(self, request):
    if request["name"] != WANTED:
        return honest_time(self, request)
    misbehave()
    return {{"samples_ms": LIES[DO]}}
def do_kernels(self, request):
    answer = honest_kernels(self, request)
    if request["name"] == WANTED:
        misbehave()
        answer["kernels"][1]["samples_ms"] = LIES[DO]
    return answer
worker.Worker.do_open, worker.Worker.do_time, worker.Worker.do_kernels = do_open, do_time, do_kernels
worker.main()
"""
BROKEN = [
    ("crash", "SIGABRT"),
    ("hang", "timed out after 3 s"),
    ("not a number", "impossible times"),
    ("backwards", "impossible times"),
    ("too few", "impossible times"),
]


def operators(path: Path) -> list[str]:
    """What a table has of operators, less the one that tells what timing kernels costs."""
    with LatencyTable.open(path) as table:
        nothing = {op.key for op in lowering(table.header)(overhead_network())}
        return sorted(set(table.names("operator")) - nothing)


@pytest.mark.parametrize(("does", "says"), BROKEN)
def test_what_a_broken_worker_does_to_one_operator_is_that_operators_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, says: str
) -> None:
    bad = next(key for key in KEYS if key.startswith("linear"))
    script, path = tmp_path / "worker.py", tmp_path / "t.lut"
    script.write_text(WORKER.format(do=does, wanted=f"operator {bad}", kernels=0))
    report = profile_with_worker(script, path, monkeypatch)
    assert list(report.failed) == [bad]
    assert says in report.failed[bad]
    with LatencyTable.open(path) as table:
        assert set(table.names("operator")) == set(report.failed) | set(table.operators())
        assert bad not in table.operators()
        assert table.inside() == {}  # this worker times no kernels inside networks
        assert all(row.latency_ms and row.latency_ms > 0 for row in table.rows() if row.key != bad)
    # a worker that is whole again makes up for it, and repeats nothing else
    script.write_text(WORKER.format(do="nothing", wanted="", kernels=0))
    again = profile_with_worker(script, path, monkeypatch)
    assert (again.failed, again.measured) == ({}, 1)


@pytest.mark.parametrize(("does", "says"), BROKEN)
def test_operators_of_a_network_whose_kernels_cannot_be_timed_are_timed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, says: str
) -> None:
    bad = f"wide {digest_of(MODELS['wide'])}"
    script, path = tmp_path / "worker.py", tmp_path / "t.lut"
    script.write_text(WORKER.format(do=does, wanted=f"cover {bad}", kernels=1))
    report = profile_with_worker(script, path, monkeypatch)
    assert report.failed == {}
    with LatencyTable.open(path) as table:
        lower = lowering(table.header)
        small, wide = ({op.key for op in lower(network)} for network in MODELS.values())
        assert set(table.operators()) == small | wide
        assert table.failed("cover") == {bad}
        assert {key for key in wide if table.visits("operator", key)} == wide - small
        assert small <= table.inside().keys()
        assert not (wide - small) & table.inside().keys()
    with closing(sqlite3.connect(path)) as connection:
        assert (
            says
            in connection.execute("SELECT failure FROM entries WHERE role = 'cover' AND failure > ''").fetchone()[0]
        )
    assert report.measured == len(small | wide)
    assert build_table(quick_profile(), path, models=MODELS, progress=NullProgress()).measured == 0


# -- what the device does meanwhile ----------------------------------------------------------------------------------

HOT = """
from hwnas.measure import worker
kernels, time = worker.Worker.do_kernels, worker.Worker.do_time
worker.Worker.do_kernels = lambda self, asked: {**kernels(self, asked), "state": {"sm_mhz": 1200, "disturbed": "hot"}}
worker.Worker.do_time = lambda self, asked: {**time(self, asked), "state": {"sm_mhz": 1500, "disturbed": ""}}
worker.main()
"""


def test_what_the_device_does_is_stored_beside_kernels_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, path = tmp_path / "worker.py", tmp_path / "t.lut"
    told: list[str] = []
    script.write_text(HOT)
    monkeypatch.setattr(NullProgress, "note", lambda self, text: told.append(text))
    profile_with_worker(script, path, monkeypatch)
    with LatencyTable.open(path) as table:
        covers = table.states("cover")
        assert set(covers) == set(table.names("cover"))
        visits = [state for states in covers.values() for state in states]
        assert visits == [{"sm_mhz": 1200, "disturbed": "hot"}] * sum(len(table.visits("cover", one)) for one in covers)
        assert {state["sm_mhz"] for states in table.states("network").values() for state in states} == {1500}
    assert [text for text in told if text.startswith(f"{len(visits)} visits were made while the device was slowed")]


# -- clocks that are set ---------------------------------------------------------------------------------------------

NO_WALL_CLOCK = """
import time
def asked():
    raise AssertionError("the wall clock was asked while measuring")
from hwnas.measure import worker
time.time = time.time_ns = asked
worker.main()
"""


def test_a_wall_clock_that_runs_backwards_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's clock is set back by a day at every look, and the worker has none at all."""
    script, path = tmp_path / "worker.py", tmp_path / "t.lut"
    script.write_text(NO_WALL_CLOCK)
    asked: list[float] = []

    def backwards() -> float:
        asked.append(2e9 - 86_400.0 * len(asked))
        return asked[-1]

    monkeypatch.setattr(time, "time", backwards)
    report = profile_with_worker(script, path, monkeypatch)
    assert asked[-1] < asked[0]
    assert (report.failed, report.entries) == ({}, report.measured)
    assert report.measured >= len(KEYS)
    assert 0 < report.seconds < 60
    with LatencyTable.open(path) as table:
        first = {key: found.latency_ms for key, found in table.operators().items()}
        assert all(0 < latency < 100 for latency in first.values())
        before = table.fingerprint
    with closing(sqlite3.connect(path)) as connection:
        times = [at for (at,) in connection.execute("SELECT at FROM visits ORDER BY id")]
    assert times == sorted(times, reverse=True)  # what the clock said is kept, and nothing is made of it
    # the same command has nothing to do, and a tighter one adds to what is there
    again = build_table(quick_profile(), path, models=MODELS, progress=NullProgress())
    assert (again.measured, again.reused) == (0, report.measured)
    build_table(quick_profile(min_passes=4, max_passes=4), path, models=MODELS, progress=NullProgress())
    with LatencyTable.open(path) as table:
        assert table.fingerprint != before
        assert table.operators().keys() == first.keys()
        assert {len(table.visits("network", name)) for name in table.names("network")} == {4}


def test_a_session_that_began_before_its_predecessor_does_not_become_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions are in the order in which they were made: the level of a table does not move when a clock is set."""
    path = tmp_path / "t.lut"
    describe = {"runtime": "onnxruntime", "runtime_version": "1.0", "device": "A CPU", "cores": 2, "threads": 1}
    with TableWriter.create(path, quick_profile(), describe) as table:
        table.add_entry("reference", "reference", MODELS["small"].to_json())
        for factor, clock in ((1.0, 2e9), (2.0, 1e9)):
            monkeypatch.setattr(time, "time", lambda clock=clock: clock)
            session = table.start_session({})
            for number in range(25):
                table.add_visit(session, "reference", "reference", number, 1, [10 * factor])
        assert table.drift() == pytest.approx({1: 1.0, 2: 0.5})


# -- disks that fill up ----------------------------------------------------------------------------------------------

COMMAND = """
import sys, tempfile
tempfile.tempdir = sys.argv[2]
from pathlib import Path
from quick import quick_profile, tiny_network
from hwnas.cli.failures import exit_code_and_line
from hwnas.cli.terminal import Terminal
from hwnas.latency.build import build_table
from hwnas.progress import NullProgress
models = {"small": tiny_network(), "wide": tiny_network(16, 16)}
profile = quick_profile(min_passes=150, max_passes=150)
try:
    build_table(profile, Path(sys.argv[1]), models=models, progress=NullProgress())
except BaseException as error:
    code, line = exit_code_and_line(error, Terminal(()))
    print(line)
    sys.exit(code)
"""


def profile_command(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, str(path), str(tempfile.tempdir)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )


def rows(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT * FROM visits ORDER BY id").fetchall()


def test_a_profile_onto_a_disk_that_fills_up_keeps_what_fits_and_goes_on(tmp_path: Path) -> None:
    """A real file system, full in the middle of a profile; with room again the same command finishes the table."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        path = disk / "t.lut"
        full = profile_command(path)
        assert full.returncode == 1, full.stderr
        assert "free space" in full.stdout
        assert "what was measured is kept" in full.stdout
        assert len(full.stdout.splitlines()) == 1
        assert full.stderr == ""
        kept = rows(path)
        assert len(kept) > 20
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        done = profile_command(path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert rows(path)[: len(kept)] == kept
        with LatencyTable.open(path) as table:
            assert {len(table.visits("network", name)) for name in table.names("network")} == {150}
            # some have more, where the machine was not quiet
            assert all(len(table.visits("cover", name)) >= COVER_VISITS for name in table.names("cover"))
            assert operators(path) == sorted(table.operators())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


class Fills(NullProgress):
    """Leaves no room on a disk once some visits were made."""

    def __init__(self, disk: Path, visits: int) -> None:
        self.disk, self.visits = disk, visits

    def advance(self, n: int = 1) -> None:
        self.visits -= n
        if self.visits == 0:
            with (self.disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
                while True:
                    ballast.write(b"0" * 4096)

    @contextmanager
    def start(self, total: int, description: str, done: int = 0) -> Iterator[Fills]:
        yield self


def test_a_full_disk_for_temporary_files_is_no_operators_failure(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime writes what it optimised, and its profile, to a folder that is full from the third visit on."""
    path = tmp_path / "t.lut"
    monkeypatch.setenv("TMPDIR", str(small_disk))  # of the measuring process; this one has chosen its own
    with pytest.raises(HwnasError, match="cannot write its temporary files") as caught:
        build_table(quick_profile(), path, models=MODELS, progress=Fills(small_disk, 3))
    assert exit_code_and_line(caught.value, Terminal(())) == (1, str(caught.value))
    assert "\n" not in str(caught.value)
    before = rows(path)
    assert len(before) > 3
    with LatencyTable.open(path) as table:
        assert table.failures() == {}
        assert table.failed("cover") == set()
    (small_disk / "ballast").unlink()
    report = build_table(quick_profile(), path, models=MODELS, progress=NullProgress())
    assert report.failed == {}
    assert rows(path)[: len(before)] == before
    with LatencyTable.open(path) as table:
        lower = lowering(table.header)
        assert {op.key for network in MODELS.values() for op in lower(network)} <= set(table.operators())
        assert {len(table.visits("network", name)) for name in table.names("network")} == {2}


def test_no_temporary_folder_at_all_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "absent")])
    with pytest.raises(FileNotFoundError) as caught:
        build_table(quick_profile(), tmp_path / "t.lut", models=MODELS, progress=NullProgress())
    code, line = exit_code_and_line(caught.value, Terminal(()))
    assert code == 1
    assert "no temporary folder" in line
    with pytest.raises(OSError, match="No usable temporary directory") as full, scratch_folder():
        pass
    assert full.value.errno == errno.ENOSPC
