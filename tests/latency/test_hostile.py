"""Tables made to harm: a child process with little memory reads them, and answers in one line or not at all.

The child does with each file what the commands do with a table: rows, networks, calibration, and the models that would
be given to a device. Its memory is limited, so that a file that asks for a terabyte kills the child and fails the test.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quick import quick_profile, tiny_network

from hwnas.latency.table import BOUND
from hwnas.latency.writer import TableWriter
from hwnas.ops import Op

READER = """
import pathlib, resource, sys, traceback, warnings
import numpy, onnx, pandas, scipy.special, scipy.stats
from hwnas.errors import HwnasError
from hwnas.latency.frames import to_text
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.latency.writer import TableWriter
from hwnas.measure.onnx_models import network_to_onnx, op_to_onnx
from hwnas.ops import Op
warnings.simplefilter("error")
used = 4096 * int(pathlib.Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)

def read(path):
    with LatencyTable.open(path) as table:
        to_text(table, "csv")
        to_text(table, "json")
        table.reference()
        table.drift()
        table.inside()
        table.seconds(lambda name: True)
        assert table.fingerprint
        networks = table.networks()
        model = LatencyModel(table)
        model.quality()
        for role in ("operator", "network", "reference", "cover"):
            for name in table.names(role):
                table.visits(role, name)
                table.content(role, name)
    for found in networks:
        if found.network is not None:
            model.predict(found.network)
            try:
                network_to_onnx(found.network)
            except ValueError as error:  # what the measuring process takes as a failure of this network
                pass
    for key in model.operators:
        try:
            op_to_onnx(Op.parse(key))
        except (HwnasError, ValueError):
            pass

print("ready", flush=True)
for line in sys.stdin:
    try:
        read(line.rstrip("\\n"))
        print("fine", flush=True)
    except HwnasError as error:
        print("refused", " ".join(str(error).split("\\n")) if "\\n" not in str(error) else "IN MANY LINES", flush=True)
    except BaseException as error:
        print("FAILED", type(error).__name__, " ".join(traceback.format_exc().split())[-900:], flush=True)
"""


MODEST = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
"""Libraries otherwise reserve more addresses than the child may have, before they do anything."""


class Reader:
    """The child."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **MODEST},
        )
        assert self.answer() == "ready"

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return line.rstrip("\n") if line else f"DIED {self.process.wait()}"

    def __call__(self, path: Path) -> str:
        """``fine``, ``refused …``, or what went wrong, in capitals."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        return self.answer()


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.process.kill()
    reader.process.communicate()


NETWORK = tiny_network()
DESCRIBE = {"runtime": "onnxruntime", "runtime_version": "1.0", "device": "A CPU", "cores": 2, "threads": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole table: a network, its operators, a reference."""
    path = tmp_path_factory.mktemp("whole") / "whole.lut"
    with TableWriter.create(path, quick_profile(), DESCRIBE) as table:
        session = table.start_session({})
        names = [("reference", "reference"), ("network", "net"), ("overhead", "overhead")]
        names += [("operator", op.key) for op in NETWORK.ops]
        for role, name in names:
            table.add_entry(role, name, {} if role == "operator" else NETWORK.to_json())
            for number in range(25):
                table.add_visit(session, role, name, number, 1, [1.0 + number, 2.0])
        table.add_entry("cover", "cover", NETWORK.to_json())
        for number in range(8):
            inside = {op.key: np.array([1.0, 2.0 + number]) for op in NETWORK.ops}
            table.add_kernels(session, "cover", number, [3.0, 4.0], inside, dict.fromkeys(inside, 1))
    return path


def spoil(whole: Path, target: Path, *statements: tuple[str, tuple[Any, ...]]) -> Path:
    shutil.copy(whole, target)
    with closing(sqlite3.connect(target)) as connection:
        for statement, values in statements:
            connection.execute(statement, values)
        connection.commit()
    return target


def test_the_whole_table_is_fine(whole: Path, reader: Reader) -> None:
    assert reader(whole) == "fine"


# -- programs in a schema --------------------------------------------------------------------------------------------

ENDLESS = """CREATE VIEW entries AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
             SELECT i AS id, 'operator' AS role, 'linear 8>' || i AS name, '{}' AS content, NULL AS failure FROM n"""
SCHEMAS = {
    "rows without end": ["ALTER TABLE entries RENAME TO kept", ENDLESS],
    "values out of nothing": ["ALTER TABLE entries ADD COLUMN more TEXT AS (hex(zeroblob(5))) VIRTUAL"],
    "a trigger": ["CREATE TRIGGER t AFTER INSERT ON visits BEGIN DELETE FROM visits; END"],
    "a virtual table": ["CREATE VIRTUAL TABLE more USING fts5(x)"],
}


@pytest.mark.parametrize("statements", SCHEMAS.values(), ids=SCHEMAS)
def test_tables_that_are_programs_are_refused(
    whole: Path, reader: Reader, tmp_path: Path, statements: list[str]
) -> None:
    path = spoil(whole, tmp_path / "t.lut", *((statement, ()) for statement in statements))
    assert reader(path).startswith(f"refused {path} is not an hwnas table or is damaged")


def test_one_vast_value_is_refused(whole: Path, reader: Reader, tmp_path: Path) -> None:
    path = spoil(whole, tmp_path / "t.lut", ("UPDATE visits SET samples_ms = zeroblob(100000000) WHERE id = 3", ()))
    assert reader(path).startswith("refused")


# -- absurd operators ------------------------------------------------------------------------------------------------

ABSURD = [
    "conv 1000000000x1x1>1000000000x1x1",
    "conv 1000000000x1x1>8x1x1 k3 p1 bias relu",
    "conv 3x2000000000x2000000000>3x2000000000x2000000000",
    "conv 3x8x8>8x8x8 k2000000000",
    "linear 1000000000>1000000000",
    "affine 2000000000x1x1>2000000000x1x1",
    "concat 2000000000x1x1,2000000000x1x1>4x1x1",
    "shuffle 2000000000x1x1>2000000000x1x1 g1000000000",
    "split 2000000000x1x1>2000000000x1x1 c1000000000x1000000000",
    f"linear 8>{'9' * 400}",
    f"linear 8>{'9' * 5000}",
    "conv 3x8x8>8x8x8 g0",
    "conv 3x8x8>8x8x8 s0",
    "conv 3x8x8>8x8x8 k0",
    "conv 8>8",
    "conv 3x8x8>8x8",
    "conv 3x8x8>8x8x8 add",
    "max_pool 8>8 k3",
    "global_avg_pool 8>8x1x1",
    "split 4x4x4>4x4x4 c0x4",
    "add 3x4x4>3x4x4",
    "mul 3x4x4>3x4x4",
    "concat 3>3",
    "shuffle 4>4 g2",
]


@pytest.mark.parametrize("key", ABSURD, ids=lambda key: key[:50])
def test_absurd_operators_neither_crash_nor_take_the_memory(
    whole: Path, reader: Reader, tmp_path: Path, key: str
) -> None:
    as_operator = ("UPDATE entries SET name = ? WHERE name = ?", (key, NETWORK.ops[1].key))
    content = json.dumps({**NETWORK.to_json(), "ops": [op.key for op in NETWORK.ops[:2]] + [key]})
    as_network = ("UPDATE entries SET content = ? WHERE role = 'network'", (content,))
    for statement in (as_operator, as_network):
        answer = reader(spoil(whole, tmp_path / "t.lut", statement))
        assert answer.split(" ")[0] in ("fine", "refused"), answer


@pytest.mark.parametrize(
    "key", ["conv 3x8x8>8x8x8 g0", "conv 3x8x8>8x8x8 s0", "conv 8>8", "split 4x4x4>4x4x4 c0x4", "conv 3x8x8>8x8 g3"]
)
def test_impossible_keys_are_no_operators(key: str) -> None:
    with pytest.raises(ValueError, match="not an operator key"):
        Op.parse(key)


# -- anything at all -------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 8, 64, 10**9, 2**31 - 1, 2**31, 2**63, 10**30, 10**400])
KINDS_AND_PARTS = """conv linear max_pool avg_pool global_avg_pool add mul concat split shuffle act affine to_plain
                     bias relu k3 s2 p1 g0 g8 d2 c4x4 plain"""
WORDS = st.sampled_from(KINDS_AND_PARTS.split())
SHAPES = st.lists(NUMBERS, min_size=1, max_size=4).map(lambda sizes: "x".join(map(str, sizes)))
KEYS = st.builds(
    lambda kind, before, after, rest: " ".join([kind, ",".join(before) + ">" + after, *rest]),
    WORDS, st.lists(SHAPES, min_size=1, max_size=3), SHAPES, st.lists(WORDS, max_size=3),
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=8) | KEYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
HEADER_KEYS = st.sampled_from([*BOUND, "profile", "created", "estimator", "channel_block", "imported", "anything"])
NETWORKS = st.fixed_dictionaries(
    {"input_shape": st.lists(NUMBERS, max_size=3) | JSON, "ops": st.lists(KEYS, max_size=3) | JSON},
    optional={
        "inputs": st.lists(st.lists(st.lists(NUMBERS | st.just(-1), min_size=2, max_size=2)), max_size=3) | JSON,
        "output": st.lists(NUMBERS, min_size=2, max_size=2) | JSON,
    },
)
SAMPLES = st.lists(st.floats(), max_size=4).map(lambda values: struct.pack(f"{len(values)}d", *values))
REPEATS = st.sampled_from([0, -1, 1, 2, 2**31, 2**62]) | st.text(max_size=3) | st.floats(allow_nan=False) | st.none()
VALUES = st.none() | st.floats() | st.sampled_from([1.0, 1e-300, 1e300]) | st.text(max_size=3)


def header(key: str, value: Any) -> tuple[str, tuple[Any, ...]]:
    return ("INSERT OR REPLACE INTO header VALUES (?, ?)", (key, json.dumps(value)))


CHANGES = st.one_of(
    st.builds(header, HEADER_KEYS, JSON),
    st.builds(lambda key: ("UPDATE entries SET name = ? WHERE role = 'operator' AND id % 2", (key,)), KEYS),
    st.builds(lambda data: ("UPDATE entries SET content = ? WHERE role = 'network'", (json.dumps(data),)), NETWORKS),
    st.builds(lambda blob: ("UPDATE visits SET samples_ms = ? WHERE id % 3 = 1", (blob,)), SAMPLES | st.binary()),
    st.builds(lambda n: ("UPDATE OR IGNORE visits SET repeats = ? WHERE id % 3 = 1", (n,)), REPEATS),
    st.builds(lambda text: ("UPDATE entries SET failure = ? WHERE id % 3 = 1", (text,)), st.text() | st.binary()),
    st.builds(lambda n: ("UPDATE OR IGNORE visits SET session = ?, pass = ?", (n, n)), REPEATS),
    st.builds(
        lambda *row: ("INSERT OR REPLACE INTO imported VALUES (?, ?, ?, ?, ?, ?)", row),
        st.sampled_from(["operator", "block", "network"]),
        KEYS | st.lists(KEYS, max_size=3).map(" ; ".join),
        VALUES,
        VALUES,
        VALUES,
        st.none() | st.text(max_size=5),
    ),
    st.builds(lambda n: ("UPDATE OR IGNORE visits SET place = ? WHERE id % 3", (n,)), REPEATS | st.just(5)),
    st.builds(lambda data: ("UPDATE entries SET content = ? WHERE role = 'cover'", (json.dumps(data),)), NETWORKS),
    st.builds(
        lambda name: ("UPDATE entries SET name = ? WHERE role IN ('network', 'cover') AND id % 2", (name,)),
        st.binary() | st.text(),
    ),
    st.just(("DELETE FROM visits WHERE id % 2", ())),
    st.just(("DELETE FROM sessions", ())),
    st.builds(lambda role: ("UPDATE OR IGNORE entries SET role = ? WHERE id % 2", (role,)), st.text(max_size=9)),
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changes=st.lists(CHANGES, min_size=1, max_size=3))
def test_whatever_a_table_says_it_is_read_or_refused(
    whole: Path, reader: Reader, tmp_path: Path, changes: list[tuple[str, tuple[Any, ...]]]
) -> None:
    try:
        path = spoil(whole, tmp_path / "t.lut", *changes)
    except (sqlite3.IntegrityError, UnicodeEncodeError, OverflowError):
        return  # a change that even SQLite does not take
    answer = reader(path)
    assert answer.split(" ")[0] in ("fine", "refused"), answer
    assert answer != "refused IN MANY LINES"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 10**400),
        ("threads", 2**31),
        ("created", 10**400),
        ("created", math.inf),
        ("created", math.nan),
        ("device", "two\nlines"),
        ("device", "\x1b[2Jcleared"),
        ("device", "long" * 1000),
        ("profile", {"name": "\x07"}),
        ("channel_block", "eight"),
        ("channel_block", 8.5),
        ("channel_block", -8),
    ],
)
def test_headers_beyond_reason_are_refused(whole: Path, reader: Reader, tmp_path: Path, key: str, value: Any) -> None:
    assert reader(spoil(whole, tmp_path / "t.lut", header(key, value))).startswith("refused")


@pytest.mark.parametrize("sample", [1e-300, 1e-12, 1e12, 1e300])
def test_times_that_no_clock_shows_are_refused(whole: Path, reader: Reader, tmp_path: Path, sample: float) -> None:
    change = ("UPDATE visits SET samples_ms = ? WHERE id = 1", (struct.pack("2d", 1.0, sample),))
    assert reader(spoil(whole, tmp_path / "t.lut", change)).startswith("refused")
