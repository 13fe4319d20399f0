"""Building a table with the real runtime: complete, resumable after kill -9, one at a time, failures recorded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from quick import alive, kernels_of, quick_profile, tiny_network, wait_until

from hwnas.errors import HwnasError
from hwnas.latency.build import BuildReport, build_table, measure_missing
from hwnas.latency.lowering import lowering
from hwnas.latency.model import LatencyModel
from hwnas.latency.plan import CALIBRATION_NETWORKS, calibration_archs, overhead_network, reference_network
from hwnas.latency.table import LatencyTable
from hwnas.measure.lock import device_lock
from hwnas.network import INPUT, Network, NetworkBuilder, Node
from hwnas.ops import Op
from hwnas.progress import NullProgress
from hwnas.spaces import get_space

pytestmark = pytest.mark.usefixtures("own_lock")

TINY = get_space("proxyless-tiny")
SMALL = {"tiny": tiny_network(), "other": tiny_network(16, 16)}


class Notes(NullProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def build(path: Path, models: dict[str, Network] | None = None, **timing: float) -> BuildReport:
    return build_table(quick_profile(**timing), path, models=SMALL if models is None else models, progress=Notes())


def kernels(path: Path, network: Network) -> set[str]:
    """Keys of what the table's runtime runs for a network."""
    with LatencyTable.open(path) as table:
        return {op.key for op in lowering(table.header)(network)}


def visits(path: Path) -> dict[tuple[str, str], int]:
    """Visits of each entry, as any SQLite shows them."""
    query = """SELECT role, name, count(visits.id) FROM entries LEFT JOIN visits ON entry = entries.id
               GROUP BY entries.id"""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return {(role, name): count for role, name, count in connection.execute(query)}
    except sqlite3.Error:
        return {}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildReport]:
    """A real profile of the small space."""
    path = tmp_path_factory.mktemp("profiled") / "t.lut"
    return path, build_table(quick_profile(), path, spaces=[TINY], progress=NullProgress())


def test_a_profile_holds_all_that_the_space_needs(profiled: tuple[Path, BuildReport]) -> None:
    path, report = profiled
    with LatencyTable.open(path) as table:
        keys = {op.key for op in kernels_of(TINY, table.header["channel_block"])}
        assert set(table.operators()) == keys
        assert set(table.names("operator")) == keys | kernels(path, overhead_network())
        assert len(table.networks()) == report.calibration.networks == CALIBRATION_NETWORKS
        inside = table.inside()
        assert keys <= inside.keys()  # nothing that a network runs was timed alone
        calibration = {str(table.content("network", name)) for name in table.names("network")}
        assert not calibration & {str(table.content("cover", name)) for name in table.names("cover")}
        assert all(row.latency_ms and row.low_ms and row.low_ms <= row.latency_ms for row in table.rows())
        model = LatencyModel(table)
    assert (report.entries, report.measured, report.reused, report.failed) == (len(keys), len(keys), 0, {})
    assert model.fits(TINY)
    counts = visits(path)
    assert {count for (role, _), count in counts.items() if role == "network"} == {2}
    assert {count for (role, _), count in counts.items() if role == "cover"} == {2}  # the profile allows no more
    assert {name: count for (role, name), count in counts.items() if role == "operator"} == {
        key: 2 * len(networks) for key, networks in inside.items()
    }
    assert counts["reference", "reference"] >= 4
    json.dumps(report.to_json(), allow_nan=False)
    assert [file.name for file in path.parent.iterdir()] == ["t.lut"]


def test_calibration_networks_reach_from_cheap_to_dear() -> None:
    macs = [TINY.network(arch).macs for arch in calibration_archs(TINY, CALIBRATION_NETWORKS)]
    assert len(macs) == CALIBRATION_NETWORKS
    assert max(macs) > 3 * min(macs)
    assert calibration_archs(TINY, 20) == calibration_archs(TINY, 20)


def test_a_second_call_measures_nothing(profiled: tuple[Path, BuildReport]) -> None:
    path, first = profiled
    before = visits(path)
    began = time.monotonic()
    notes = Notes()
    report = build_table(quick_profile(), path, spaces=[TINY], progress=notes)
    assert time.monotonic() - began < 6
    assert (report.measured, report.reused) == (0, first.measured)
    assert report.calibration == first.calibration
    assert visits(path) == before
    assert any("nothing to measure" in note for note in notes.notes)


def test_only_what_is_missing_is_measured(profiled: tuple[Path, BuildReport], tmp_path: Path) -> None:
    path = Path(shutil.copy(profiled[0], tmp_path / "t.lut"))
    before = visits(path)
    known = TINY.network(calibration_archs(TINY, 1)[0])
    assert measure_missing(quick_profile(), path, known, NullProgress()).measured == 0
    assert visits(path) == before
    network = tiny_network(24, 12)
    keys = kernels(path, network)
    report = measure_missing(quick_profile(), path, network, NullProgress())
    assert (report.measured, report.reused, report.failed) == (len(keys), 0, {})
    after = visits(path)
    changed = {entry for entry, count in after.items() if count != before.get(entry)}
    assert {name for role, name in changed if role == "operator"} == keys
    assert {role for role, _ in changed} == {
        "operator",
        "reference",
        "cover",
        "network",
    }  # calibration nets for company
    assert len([role for role, _ in changed if role == "cover"]) == 1
    assert report.calibration.networks == CALIBRATION_NETWORKS  # what is asked about is no calibration network
    assert measure_missing(quick_profile(), path, network, NullProgress()).measured == 0
    assert visits(path) == after


def test_a_tighter_target_goes_on_with_what_is_not_tight_enough(tmp_path: Path) -> None:
    path = tmp_path / "t.lut"
    build(path, min_passes=2, max_passes=2)
    build(path, min_passes=2, max_passes=4, target_error=1e-9)
    after = visits(path)
    assert {count for (role, _), count in after.items() if role == "network"} == {4}
    assert {count for (role, _), count in after.items() if role == "cover"} == {4}
    build(path, min_passes=2, max_passes=4, target_error=1e-9)
    assert visits(path) == after


def test_networks_that_are_not_certain_get_more_visits_in_one_go_too(tmp_path: Path) -> None:
    build(tmp_path / "t.lut", min_passes=2, max_passes=5, target_error=1e-9)
    assert {count for (role, _), count in visits(tmp_path / "t.lut").items() if role == "network"} == {5}


def test_a_table_of_another_set_up_is_left_alone(profiled: tuple[Path, BuildReport], tmp_path: Path) -> None:
    path = Path(shutil.copy(profiled[0], tmp_path / "t.lut"))
    before = path.read_bytes()
    for change in ({"batch_size": 2}, {"threads": 2}):
        profile = quick_profile().model_copy(update=change)
        with pytest.raises(HwnasError, match=f"{next(iter(change))} 1, this is 2"):
            build_table(profile, path, models=SMALL, progress=NullProgress())
    assert path.read_bytes() == before


def test_the_reference_takes_a_few_ms() -> None:
    assert 50e6 < reference_network().macs < 150e6


# -- failures --------------------------------------------------------------------------------------------------------


def test_failures_are_recorded_and_named_and_the_others_survive(tmp_path: Path) -> None:
    path = tmp_path / "t.lut"
    vast = Op.linear(4, 2 * 10**9)  # 32 GB of weights
    odd = replace(Op.conv((3, 5, 5), 4, kernel=3), output=(4, 9, 9), inputs=((3, 5, 5), (4, 9, 9)), residual=True)
    builder = NetworkBuilder((3, 5, 5))
    builder.add(Op.conv((3, 5, 5), 4, kernel=1, padding=2))
    builder.add(odd, (INPUT, builder.last))
    for op in (Op.linear(4 * 9 * 9, 4), vast):
        builder.add(op)
    network, bad = builder.build(), {vast.key, odd.key}
    notes = Notes()
    report = measure_missing(quick_profile(), path, network, notes)
    good = kernels(path, network) - bad
    assert Op.linear(4 * 9 * 9, 4).key in good
    assert set(report.failed) == bad
    assert "memory" in report.failed[vast.key]
    assert (report.entries, report.measured) == (len(good), len(good))
    assert sum(note.startswith("failed: ") for note in notes.notes) == 3  # the network as a whole is the third
    with LatencyTable.open(path) as table:
        assert table.failures() == report.failed
        assert set(table.operators()) == good
        assert {row.key for row in table.rows()} == good | bad
    json.dumps(report.to_json())
    # it is tried again, and nothing else is
    again = measure_missing(quick_profile(), path, network, NullProgress())
    assert (set(again.failed), again.measured, again.reused) == (bad, 0, len(good))


def test_a_time_out_is_a_failure_of_its_operator(tmp_path: Path) -> None:
    path = tmp_path / "t.lut"
    slow = Op.conv((256, 224, 224), 256, kernel=7, norm=True)  # 160 GMAC
    builder = NetworkBuilder((256, 224, 224))
    builder.add(slow)
    builder.add(Op.global_avg_pool(builder.shape()))
    report = measure_missing(quick_profile(timeout_s=2.0), path, builder.build(), NullProgress())
    assert list(report.failed) == [slow.key]
    assert "timed out after 2 s" in report.failed[slow.key]
    assert report.entries == len(kernels(path, builder.build())) - 1


def test_a_network_with_a_failed_operator_does_not_calibrate(tmp_path: Path) -> None:
    vast = Op.linear(4, 10**12)
    nodes = (*SMALL["tiny"].nodes, Node(vast, ((2, 0),)))
    models = {**SMALL, "vast": Network(SMALL["tiny"].input_shape, nodes, (3, 0))}
    report = build(tmp_path / "t.lut", models)
    assert list(report.failed) == [vast.key]
    assert report.calibration.networks == 2


def test_unknown_operators_are_named(tmp_path: Path) -> None:
    models = {**SMALL, "strange": replace(SMALL["tiny"], unknown=("aten.einsum (head)",))}
    report = build(tmp_path / "t.lut", models)
    assert report.unknown == ("aten.einsum (head)",)
    assert report.calibration.networks == 2


# -- kill -9, and two at once ----------------------------------------------------------------------------------------

SCRIPT = """
import sys, tempfile
from pathlib import Path
tempfile.tempdir = sys.argv[2]
from quick import quick_profile
from hwnas.latency.build import build_table
from hwnas.progress import RichProgress
from hwnas.spaces import get_space
profile = quick_profile(min_passes=4, max_passes=4)
build_table(profile, Path(sys.argv[1]), spaces=[get_space("proxyless-tiny")], progress=RichProgress())
"""


def start(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path), str(tempfile.tempdir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )


def workers(parent: int) -> list[int]:
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in found]


def test_kill_9_in_the_middle_loses_nothing_and_the_same_command_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "t.lut"
    profile = start(path)
    try:
        wait_until(lambda: sum(visits(path).values()) > 100, 60)
        children = workers(profile.pid)
        assert children
    finally:
        profile.send_signal(signal.SIGKILL)
        profile.communicate()
    before = visits(path)
    assert sum(before.values()) > 100
    assert min(before.values()) < 4  # in the middle
    wait_until(lambda: not any(map(alive, children)), 10)
    rerun = start(path)
    _, errors = rerun.communicate(timeout=120)
    assert rerun.returncode == 0, errors
    after = visits(path)
    assert set(after) >= set(before)
    assert {entry for entry in after if entry[0] != "operator"} == {entry for entry in before if entry[0] != "operator"}
    assert {after[entry] for entry in after if entry[0] == "network"} == {4}  # not one too many
    assert {after[entry] for entry in after if entry[0] == "cover"} == {4}
    with LatencyTable.open(path) as table:
        assert {name: after["operator", name] for name in table.names("operator")} == {
            key: 4 * len(networks) for key, networks in table.inside().items()
        }
    assert all(after[entry] >= count for entry, count in before.items())


def test_two_profiles_of_one_device_wait_for_each_other(tmp_path: Path) -> None:
    with device_lock("cpu", NullProgress()):
        second = start(tmp_path / "t.lut")
        assert second.stderr is not None
        said = second.stderr.readline()
        assert "waiting" in said
        time.sleep(0.3)
        assert second.poll() is None
        assert not (tmp_path / "t.lut").exists()
    second.kill()
    second.communicate()


def test_the_lock_is_free_after_a_kill_and_after_an_error() -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
         "from hwnas.measure.lock import device_lock\nfrom hwnas.progress import NullProgress\n"
         "with device_lock('cpu', NullProgress()): print('held', flush=True); input()", str(tempfile.tempdir)],
        stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    notes = Notes()
    with pytest.raises(HwnasError, match="still being measured"), device_lock("cpu", notes, wait_s=0.2):
        pass
    assert "another hwnas process" in notes.notes[0]
    holder.kill()
    holder.communicate()
    with pytest.raises(ZeroDivisionError), device_lock("cpu", NullProgress(), wait_s=0):
        raise ZeroDivisionError
    with device_lock("cpu", NullProgress(), wait_s=0), device_lock("cuda:1", NullProgress(), wait_s=0):
        pass


def test_locks_hold_between_threads_too() -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with device_lock("cpu", NullProgress(), wait_s=20):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]
