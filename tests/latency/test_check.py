"""Checking a table: the verdict by known figures, and a real table that is true, and one that is not."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from quick import quick_profile

from hwnas.errors import HwnasError
from hwnas.latency.build import build_table
from hwnas.latency.check import (
    LEAST_S,
    Pair,
    Rechecked,
    _rechecked,
    check_table,
    find_level,
    judge,
    pick,
    profile_anew,
)
from hwnas.latency.plan import CALIBRATION_NETWORKS
from hwnas.latency.table import LatencyTable
from hwnas.latency.writer import TableWriter
from hwnas.measure.statistics import Estimate
from hwnas.progress import NullProgress
from hwnas.spaces import get_space

pytestmark = pytest.mark.usefixtures("own_lock")

PROFILE = quick_profile(min_passes=6, max_passes=6, runs=3)


def tight(latency_ms: float, error: float = 0.001) -> Estimate:
    return Estimate(latency_ms, latency_ms * (1 - error), latency_ms * (1 + error), 60)


def pairs(network_factor: float, operator_factor: float, networks: int = 5, operators: int = 15) -> list[Pair]:
    """Entries whose times by the clock are now so many times as long as then."""
    found = [Pair("network", f"n{i}", tight(1 + i), tight((1 + i) * network_factor)) for i in range(networks)]
    return found + [Pair("operator", f"o{i}", tight(0.1), tight(0.1 * operator_factor)) for i in range(operators)]


def verdict(found: list[Pair], reference: float) -> tuple[list[Rechecked], list[str]]:
    level = find_level(found, reference)
    entries = [_rechecked(pair, level, 0.001) for pair in found]
    return entries, judge(entries)[3]


# -- the verdict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clock", "reference", "level"),
    [
        (1.0, 1.0, 1.0),
        (1.25, 1.25, 1.25),  # the machine is slower as a whole
        (0.8, 0.8, 0.8),
        (1.0, 1.1, 1.0),  # only the reference is disturbed
        (1.04, 1.1, 1.04),  # something between
    ],
)
def test_a_machine_that_is_faster_or_slower_is_no_drift(clock: float, reference: float, level: float) -> None:
    entries, reasons = verdict(pairs(clock, clock), reference)
    assert find_level(pairs(clock, clock), reference) == pytest.approx(level)
    assert reasons == []
    assert [entry.ratio for entry in entries] == pytest.approx([1.0] * len(entries))


@pytest.mark.parametrize(("clock", "reference"), [(1.1, 1.0), (0.9, 1.0), (1.2, 1.1), (0.9, 1.1), (1.035, 1.0)])
def test_networks_that_no_level_explains_have_drifted(clock: float, reference: float) -> None:
    assert any("networks take" in reason for reason in verdict(pairs(clock, clock), reference)[1])


def test_networks_within_the_bound_have_not() -> None:
    assert verdict(pairs(1.025, 1.025), 1.0)[1] == []


def test_operators_that_changed_alone_have_drifted() -> None:
    """Networks as ever, operators 20% off: calibrated predictions would still be wrong for other networks."""
    _, reasons = verdict(pairs(1.0, 1.2), 1.0)
    assert len(reasons) == 1
    assert "15 of 15 operators are outside" in reasons[0]


def test_a_few_operators_outside_are_chance() -> None:
    few = pairs(1.0, 1.0, operators=17) + pairs(1.0, 1.3, networks=0, operators=3)
    entries, reasons = verdict(few, 1.0)
    assert reasons == []
    assert sum(entry.outside for entry in entries) == 3
    assert verdict(few + pairs(1.0, 1.3, networks=0, operators=6), 1.0)[1]


def test_an_uncertain_operator_is_not_outside() -> None:
    loose = Pair("operator", "o", tight(1.0, 0.2), tight(1.15, 0.2))
    assert not _rechecked(loose, 1.0, 0.0).outside
    assert _rechecked(Pair("operator", "o", tight(1.0), tight(1.15)), 1.0, 0.0).outside


def test_what_cannot_be_measured_any_more_has_drifted() -> None:
    gone = Pair("operator", "gone", tight(0.1), None, "hung")
    entries, reasons = verdict([*pairs(1.0, 1.0), gone], 1.0)
    assert reasons == ["1 of 21 entries cannot be measured any more"]
    assert max(entries, key=lambda entry: entry.distance).failure == "hung"


def test_without_networks_the_operators_settle_the_level() -> None:
    assert find_level(pairs(1.0, 1.1, networks=0), 1.2) == pytest.approx(1.1)
    assert verdict(pairs(1.0, 1.1, networks=0), 1.2)[1] == []


# -- a real table ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profiled") / "t.lut"
    build_table(PROFILE, path, spaces=[get_space("proxyless-tiny")], progress=NullProgress())
    return path


def scaled(path: Path, target: Path, factor: float, where: str) -> Path:
    """A copy whose entries took `factor` times as long."""
    shutil.copy(path, target)
    query = f"SELECT visits.id, samples_ms FROM visits JOIN entries ON entry = entries.id WHERE {where}"
    with closing(sqlite3.connect(target)) as connection:
        for key, blob in connection.execute(query).fetchall():
            samples = (np.frombuffer(blob) * factor).tobytes()
            connection.execute("UPDATE visits SET samples_ms = ? WHERE id = ?", (samples, key))
        connection.commit()
    return target


def test_a_sample_is_seeded_and_has_networks(profiled: Path) -> None:
    with LatencyTable.open(profiled) as table:
        operators, networks = pick(table, 20, 0)
        assert (len(operators), len(networks)) == (15, 5)
        assert set(operators) <= set(table.operators())
        assert [net.name for net in pick(table, 20, 0)[1]] == [net.name for net in networks]
        assert pick(table, 20, 1)[0] != operators
        everything = pick(table, 1000, 0)
        assert (len(everything[0]), len(everything[1])) == (len(table.operators()), CALIBRATION_NETWORKS)
        assert [len(part) for part in pick(table, 1, 0)] == [0, 1]


@pytest.mark.slow
def test_a_table_that_says_something_else_is_found_and_left_alone(profiled: Path, tmp_path: Path) -> None:
    """Everything but the reference took half as long when it was made, or so it says."""
    path = scaled(profiled, tmp_path / "t.lut", 0.5, "role != 'reference'")
    before = path.read_bytes()
    report = check_table(path, PROFILE, sample=8, progress=NullProgress())
    assert report.drifted
    assert report.network_ratio is not None
    assert report.network_ratio > 1.5
    assert [entry.distance for entry in report.entries] == sorted((e.distance for e in report.entries), reverse=True)
    assert len(report.entries) == 8
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["t.lut"]


@pytest.mark.slow
def test_a_machine_that_was_twice_as_fast_is_divided_out(profiled: Path, tmp_path: Path) -> None:
    """All of the table's times are halved, the reference's too. How far entries are off is then the noise's alone."""
    path = scaled(profiled, tmp_path / "t.lut", 0.5, "1")
    report = check_table(path, PROFILE, sample=8, progress=NullProgress())
    assert report.reference > 1.5
    assert report.level > 1.5
    assert report.network_ratio is not None
    assert 0.8 < report.network_ratio < 1.25


def test_a_check_is_long_enough_to_meet_regimes() -> None:
    assert LEAST_S >= 5


def test_a_table_of_another_device_is_refused_before_anything_is_measured(profiled: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.lut"
    shutil.copy(profiled, path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE header SET value = '\"Abacus 3\"' WHERE key = 'device'")
        connection.commit()
    with pytest.raises(HwnasError, match="measured with device Abacus 3"):
        check_table(path, PROFILE, progress=NullProgress())


def test_an_empty_table_has_nothing_to_check(profiled: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.lut"
    shutil.copy(profiled, path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM visits")
        connection.commit()
    with pytest.raises(HwnasError, match=r"nothing|no measurements to check"):
        check_table(path, PROFILE, progress=NullProgress())


def test_the_command_that_profiles_anew_names_what_was_profiled(profiled: Path, tmp_path: Path) -> None:
    with LatencyTable.open(profiled) as table:
        words = profile_anew(table).split()
    assert words[:6] == ["hwnas", "profile", "--device", "cpu", "--space", "proxyless-tiny"]
    assert words[6:-1] == ["--batch", "1", "--threads", "1", "--lut"]
    assert words[-1] == str(profiled.with_name("t-new.lut"))
    path = tmp_path / "m m.lut"
    shutil.copy(profiled, path)
    with TableWriter.open(path) as table:
        for name in ("proxyless-tiny #0 0123456789ab", "zoo:mobilenet-v2 0123456789ab"):
            table.add_entry("network", name, {"input_shape": [3, 40, 40], "ops": ["linear 8>4"]})
            table.add_visit(1, "network", name, 0, 1, [1.0])
        command = profile_anew(table)
    assert "--space proxyless-tiny --model zoo:mobilenet-v2 --image-size 40 " in command
    assert command.endswith("m m-new.lut'")
