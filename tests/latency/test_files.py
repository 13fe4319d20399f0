"""Tables as files: merged, compared, exported."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from quick import as_nobody, quick_profile

from hwnas.errors import HwnasError, UsageError
from hwnas.latency.diff import diff_tables
from hwnas.latency.frames import export_table, to_document, to_frame, to_text
from hwnas.latency.merge import merge_tables
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.latency.writer import TableWriter
from hwnas.ops import Op

PROFILE = quick_profile()
DESCRIBE: dict[str, Any] = {
    "runtime": "onnxruntime", "runtime_version": "1.0", "device": "A CPU", "cores": 2, "threads": 1
}  # fmt: skip
CONV, LINEAR, WIDE = Op.conv((8, 4, 4), 8, kernel=3, norm=True), Op.linear(8, 4), Op.linear(16, 4)
NETWORK = {"input_shape": [8, 4, 4], "ops": [CONV.key, LINEAR.key]}

Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Makes tables of one session."""

    def make(
        name: str, latencies: dict[str, float], *, factor: float = 1.0, failed: tuple[str, ...] = (), **header: Any
    ) -> Path:
        path = tmp_path / name
        with TableWriter.create(path, PROFILE, {**DESCRIBE, **header}) as table:
            session = table.start_session({"name": name})
            for role, entry in (("reference", "reference"), ("network", "a net")):
                table.add_entry(role, entry, NETWORK)
                for number in range(25):
                    table.add_visit(session, role, entry, number, 1, [10 * factor])
            for key, latency in latencies.items():
                table.add_entry("operator", key, {})
                for number in range(3):
                    table.add_visit(session, "operator", key, number, 1, [latency * factor] * 2)
            for key in failed:
                table.add_entry("operator", key, {})
                table.add_failure("operator", key, "hung")
        return path

    return make


# -- merging ---------------------------------------------------------------------------------------------------------


def test_a_merge_has_every_visit_at_the_level_of_the_first(made: Made, tmp_path: Path) -> None:
    """The second table was made while the machine was half as fast: its own level is divided out."""
    first = made("a.lut", {CONV.key: 2.0, LINEAR.key: 3.0})
    second = made("b.lut", {LINEAR.key: 3.0, WIDE.key: 5.0}, factor=2.0)
    before = first.read_bytes(), second.read_bytes()
    report = merge_tables(first, second, tmp_path / "c.lut")
    assert (report.entries, report.operators, report.added, report.visits, report.same) == (5, 3, 1, 25 + 25 + 6, 0)
    with LatencyTable.open(tmp_path / "c.lut") as table:
        found = {key: estimate.latency_ms for key, estimate in table.operators().items()}
        assert found == pytest.approx({CONV.key: 2.0, LINEAR.key: 3.0, WIDE.key: 5.0})
        assert table.operators()[LINEAR.key].samples == 12
        assert table.drift() == pytest.approx({1: 1.0, 2: 0.5})
        assert len(table.visits("operator", LINEAR.key)) == 6
        assert [visit[0] for visit in table.visits("operator", WIDE.key)] == [10.0] * 3  # as the clock showed them
        with LatencyTable.open(first) as original:
            assert table.header == original.header
        LatencyModel(table)
    assert (first.read_bytes(), second.read_bytes()) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.lut", "b.lut", "c.lut"]


def test_the_same_measurement_counts_once(made: Made, tmp_path: Path) -> None:
    """The second table is a copy of the first that was added to: what both have is one measurement, not two."""
    first = made("a.lut", {CONV.key: 2.0})
    second = Path(shutil.copy(first, tmp_path / "b.lut"))
    with TableWriter.open(second) as table:
        session = table.start_session({})
        table.add_visit(session, "operator", CONV.key, 0, 1, [2.5])
    report = merge_tables(first, second, tmp_path / "c.lut")
    assert (report.visits, report.same, report.added) == (1, 53, 0)
    with LatencyTable.open(tmp_path / "c.lut") as table:
        assert [len(visit) for visit in table.visits("operator", CONV.key)] == [2, 2, 2, 1]


def test_kernels_stay_with_the_visit_of_the_network_they_were_timed_in(made: Made, tmp_path: Path) -> None:
    """Ids of visits change in a merge; a copy's own visits are found again."""

    def add(path: Path, factor: float, numbers: range) -> Path:
        with TableWriter.open(path) as table:
            table.add_entry("cover", "a net", NETWORK)
            for number in numbers:
                times = {CONV.key: np.array([2.0 * factor]), WIDE.key: np.array([(4.0 + number) * factor])}
                table.add_kernels(1, "a net", number, [7.0 * factor], times, dict.fromkeys(times, 1))
        return path

    first = add(made("a.lut", {LINEAR.key: 3.0}), 1.0, range(2))
    copy = add(Path(shutil.copy(first, tmp_path / "copy.lut")), 1.0, range(2, 3))
    second = add(made("b.lut", {}, factor=2.0), 2.0, range(5))
    for number, (other, visits, same) in enumerate(((copy, 3, 59), (second, 50 + 15, 0))):
        out = tmp_path / f"{number}.lut"
        report = merge_tables(first, other, out)
        assert (report.visits, report.same) == (visits, same)
        with LatencyTable.open(out) as table:
            assert table.inside() == {CONV.key: {"a net"}, WIDE.key: {"a net"}}
            assert table.visits("operator", CONV.key) == []  # none of them was timed alone
            assert table.operators()[CONV.key].latency_ms == pytest.approx(2.0)
        with closing(sqlite3.connect(out)) as connection:
            pairs = connection.execute(
                """SELECT kernel.session, kernel.pass, whole.session, whole.pass, role FROM visits AS kernel
                   LEFT JOIN visits AS whole ON kernel.place = whole.id LEFT JOIN entries ON whole.entry = entries.id
                   WHERE kernel.place IS NOT NULL"""
            ).fetchall()
        assert len(pairs) == {0: 6, 1: 14}[number]
        assert all(pair[:2] == pair[2:4] and pair[4] == "cover" for pair in pairs)


def test_a_failure_stays_where_nothing_was_measured(made: Made, tmp_path: Path) -> None:
    first = made("a.lut", {CONV.key: 2.0}, failed=(LINEAR.key, WIDE.key))
    second = made("b.lut", {LINEAR.key: 3.0}, failed=(CONV.key, WIDE.key))
    for number, order in enumerate(((first, second), (second, first))):
        merge_tables(*order, tmp_path / f"{number}.lut")
        with LatencyTable.open(tmp_path / f"{number}.lut") as table:
            assert set(table.operators()) == {CONV.key, LINEAR.key}
            assert table.failures() == {WIDE.key: "hung"}


@pytest.mark.parametrize(
    ("key", "value"), [("device", "Other CPU"), ("runtime_version", "2.0"), ("threads", 2), ("cores", 64)]
)
def test_tables_of_different_set_ups_are_not_merged(made: Made, tmp_path: Path, key: str, value: Any) -> None:
    paths = made("a.lut", {CONV.key: 2.0}), made("b.lut", {CONV.key: 2.0}, **{key: value})
    with pytest.raises(HwnasError, match=rf"with {key} {DESCRIBE[key]}, .* with {value}.*lut diff"):
        merge_tables(*paths, tmp_path / "c.lut")
    assert not (tmp_path / "c.lut").exists()


def test_tables_with_different_references_are_not_merged(made: Made, tmp_path: Path) -> None:
    paths = made("a.lut", {CONV.key: 2.0}), made("b.lut", {CONV.key: 2.0})
    with closing(sqlite3.connect(paths[1])) as connection:
        connection.execute("UPDATE entries SET content = '{}' WHERE role = 'reference'")
        connection.commit()
    with pytest.raises(HwnasError, match="different reference networks"):
        merge_tables(*paths, tmp_path / "c.lut")


def test_a_merge_writes_over_nothing_and_leaves_nothing_half_done(made: Made, tmp_path: Path) -> None:
    first, second = made("a.lut", {CONV.key: 2.0}), made("b.lut", {CONV.key: 2.0})
    with pytest.raises(UsageError, match="exists: give another --out"):
        merge_tables(first, second, second)
    with pytest.raises(HwnasError, match="give another --out"):
        merge_tables(first, second, tmp_path / "absent" / "c.lut")
    with closing(sqlite3.connect(second)) as connection:
        connection.execute("UPDATE visits SET samples_ms = x'00' WHERE id = 40")
        connection.commit()
    with pytest.raises(HwnasError, match="damaged"):
        merge_tables(first, second, tmp_path / "c.lut")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.lut", "b.lut"]


# -- comparing -------------------------------------------------------------------------------------------------------


def test_a_diff_names_what_one_table_lacks_and_how_long_the_rest_takes(made: Made) -> None:
    first = made("a.lut", {CONV.key: 2.0, LINEAR.key: 3.0, Op.linear(2, 2).key: 1.0})
    second = made("b.lut", {CONV.key: 3.0, LINEAR.key: 2.0, WIDE.key: 1.0}, device="Other CPU", runtime_version="2.0")
    report = diff_tables(first, second)
    assert report.only_first == (Op.linear(2, 2).key,)
    assert report.only_second == (WIDE.key,)
    assert report.differing == {"device": ("A CPU", "Other CPU"), "runtime_version": ("1.0", "2.0")}
    verdicts = {entry.name: (entry.ratio, entry.verdict) for entry in report.common}
    assert verdicts == {CONV.key: (1.5, "slower"), LINEAR.key: (2 / 3, "faster"), "a net": (1.0, "same")}
    assert report.counts() == {"slower": 1, "faster": 1, "same": 0}
    assert report.median_ratio == pytest.approx((1.5 + 2 / 3) / 2)
    json.dumps(report.to_json(), allow_nan=False)


def test_intervals_that_meet_are_the_same(made: Made) -> None:
    paths = made("a.lut", {CONV.key: 2.0}), made("b.lut", {CONV.key: 2.3})
    for path, spread in zip(paths, (1.3, 1.2), strict=True):
        with TableWriter.open(path) as table:
            base = table.visits("operator", CONV.key)[0][0]
            for number in range(3):
                table.add_visit(1, "operator", CONV.key, number, 1, [base * spread ** (1 + number)])
            table.add_visit(1, "operator", CONV.key, 9, 1, [base / spread])
    (entry,) = [entry for entry in diff_tables(*paths).common if entry.role == "operator"]
    assert entry.verdict == "same"
    assert entry.first_low_ms < entry.first_ms < entry.first_high_ms


def test_nothing_in_common(made: Made) -> None:
    first, second = made("a.lut", {CONV.key: 2.0}), made("b.lut", {WIDE.key: 2.0})
    report = diff_tables(first, second)
    assert report.median_ratio is None
    assert report.verdict == "the tables have no operator in common"


# -- exporting -------------------------------------------------------------------------------------------------------

COLUMNS = ["key", "kind", "latency_ms", "low_ms", "high_ms", "macs", "params", "size_bytes", "gmacs_per_s", "samples",
           "failure", "imported"]  # fmt: skip


@pytest.fixture
def table_path(made: Made) -> Path:
    return made("a.lut", {CONV.key: 2.0, LINEAR.key: 3.0}, failed=(WIDE.key,))


def check_frame(frame: pd.DataFrame) -> None:
    assert list(frame.columns) == COLUMNS
    rows = frame.set_index("key")
    conv = rows.loc[CONV.key]
    assert (conv["latency_ms"], conv["low_ms"], conv["high_ms"]) == (2.0, 2.0, 2.0)
    assert (conv["macs"], conv["params"], conv["size_bytes"]) == (8 * 8 * 9 * 16, 8 * 8 * 9 + 8, CONV.traffic_bytes())
    assert conv["gmacs_per_s"] == pytest.approx(8 * 8 * 9 * 16 / 2e-3 / 1e9)
    assert pd.isna(rows.loc[WIDE.key, "latency_ms"])
    assert rows.loc[WIDE.key, "failure"] == "hung"
    assert pd.isna(rows.loc[CONV.key, "failure"])
    assert not rows["imported"].any()


def test_every_format_says_the_same(table_path: Path, tmp_path: Path) -> None:
    with LatencyTable.open(table_path) as table:
        check_frame(to_frame(table))
        for form in ("csv", "json", "parquet"):
            assert export_table(table, form, tmp_path / f"out.{form}") == 3
        assert to_text(table, "csv") == (tmp_path / "out.csv").read_text()
        assert json.loads(to_text(table, "json")) == to_document(table)
    check_frame(pd.read_csv(tmp_path / "out.csv"))
    check_frame(pd.read_parquet(tmp_path / "out.parquet"))
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["device"] == "A CPU"
    assert document["entries"] == len(document["rows"]) == 3
    check_frame(pd.DataFrame(document["rows"]))
    rows = list(csv.reader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert rows[0] == COLUMNS
    assert len(rows) == 4
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".csv", ".json", ".lut", ".parquet"]


def test_parquet_without_its_extra_is_one_line_that_names_it(table_path: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = sys.modules['fastparquet'] = None\n"
        "from pathlib import Path\nfrom hwnas.cli.main import run\n"
        "sys.exit(run(['lut', 'export', sys.argv[1], '--out', sys.argv[2]]))"
    )
    out = tmp_path / "out.parquet"
    done = subprocess.run([sys.executable, "-c", code, table_path, out], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("hwnas: error: Parquet needs pyarrow: pip install 'hwnas[parquet]'")
    assert "Traceback" not in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["a.lut"]


def test_counts_beyond_64_bits_are_no_parquet(table_path: Path, tmp_path: Path) -> None:
    vast = "conv 2000000000x1x1>2000000000x1x1 k2000000000"
    with TableWriter.open(table_path) as table:
        table.add_entry("operator", vast, {})
        table.add_failure("operator", vast, "too large")
        with pytest.raises(HwnasError, match="beyond 64 bits: export it as csv or json"):
            export_table(table, "parquet", tmp_path / "out.parquet")
        assert export_table(table, "csv", tmp_path / "out.csv") == 4


def test_a_place_that_cannot_be_written(table_path: Path, tmp_path: Path) -> None:
    with LatencyTable.open(table_path) as table:
        for place in (tmp_path / "absent" / "out.csv", table_path / "out.csv"):
            with pytest.raises(HwnasError, match="give another --out"):
                export_table(table, "csv", place)
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o755)
        with as_nobody(), pytest.raises(HwnasError, match="give another --out"):
            export_table(table, "csv", closed / "out.csv")


def test_an_empty_table_exports_its_columns(made: Made) -> None:
    with LatencyTable.open(made("a.lut", {})) as table:
        assert to_text(table, "csv") == ",".join(COLUMNS) + "\n"
        assert to_document(table)["rows"] == []
