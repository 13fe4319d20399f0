"""What is known of operators: the surest answer, blocks before operators, and never a guess where none is due."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwnas.errors import HwnasError
from hwnas.latency.imported import BLOCK, Imported
from hwnas.latency.known import Knowledge, Known, deviation_ms
from hwnas.latency.model import LatencyModel
from hwnas.latency.shipped import shipped_tables
from hwnas.latency.table import LatencyTable
from hwnas.latency.writer import write_imported
from hwnas.measure.statistics import Estimate
from hwnas.network import Network
from hwnas.ops import Op
from hwnas.spaces import get_space

OPS = [Op.conv((channels, 8, 8), 32, kernel=1, bias=True) for channels in (16, 32, 48, 64, 96)]
BETWEEN = Op.conv((40, 8, 8), 32, kernel=1, bias=True)
POOL = Op.global_avg_pool((32, 8, 8))
TABLE = {op.key: Estimate(ms, 0.9 * ms, 1.1 * ms, 3) for op in OPS for ms in [0.01 + op.macs / 1e7]}


def knowledge(*, foreign: bool, blocks: dict[str, Estimate] | None = None, failures: tuple[str, ...] = ()) -> Knowledge:
    return Knowledge(TABLE, blocks or {}, failures, element_bytes=4, batch_size=1, foreign=foreign)


def test_measured_then_interpolated_then_nothing() -> None:
    here = knowledge(foreign=False)
    assert here.of((OPS[0],)) == Known(TABLE[OPS[0].key].latency_ms, 0.0, "measured")
    between = here.of((BETWEEN,))
    assert between
    assert between.how == "interpolated"
    assert between.deviation_ms > 0
    assert TABLE[OPS[1].key].latency_ms < between.latency_ms < TABLE[OPS[2].key].latency_ms
    assert here.of((POOL,)) is None
    assert here.counts([(op,) for op in (*OPS, BETWEEN, BETWEEN, POOL)]) == {
        "measured": 5, "interpolated": 1, "estimated": 0,
    }  # fmt: skip


def test_a_foreign_table_estimates_and_is_not_sure_of_its_own_values() -> None:
    foreign = knowledge(foreign=True)
    measured, pooled = foreign.of((OPS[0],)), foreign.of((POOL,))
    assert measured
    assert measured.deviation_ms == pytest.approx(0.1 * measured.latency_ms / 1.6449, rel=1e-4)
    assert pooled
    assert pooled.how == "estimated"
    assert pooled.deviation_ms > 0.5 * pooled.latency_ms


def test_what_failed_is_never_guessed() -> None:
    for foreign in (False, True):
        assert knowledge(foreign=foreign, failures=(BETWEEN.key,)).of((BETWEEN,)) is None


def test_sequences_are_cut_into_the_longest_blocks() -> None:
    a, b, c = OPS[:3]
    blocks = {BLOCK.join(op.key for op in ops): Estimate(1, 1, 1, 0) for ops in ([a, b], [a, b, c], [b, c])}
    known = knowledge(foreign=True, blocks=blocks)
    assert known.pieces([a, b, c, a, b, POOL, b, c]) == [(a, b, c), (a, b), (POOL,), (b, c)]
    assert known.pieces([c, a]) == [(c,), (a,)]
    assert known.pieces([]) == []
    assert knowledge(foreign=True).pieces([a, b]) == [(a,), (b,)]


def test_errors_of_estimates_add_up_and_those_of_others_do_not() -> None:
    independent = [(Known(1, 3, "interpolated"), 1.0), (Known(1, 4, "interpolated"), 1.0)]
    assert deviation_ms(independent) == 5
    assert deviation_ms([(known, 2.0) for known, _ in independent]) == 10
    law = [(Known(1, 3, "estimated"), 1.0), (Known(1, 4, "estimated"), 1.0)]
    assert deviation_ms(law) == 7
    assert deviation_ms([]) == 0


# -- a whole table that was imported ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def v100() -> LatencyModel:
    with LatencyTable.open(shipped_tables()["v100-tensorrt-fp16-b32"]) as table:
        return LatencyModel(table)


@pytest.mark.parametrize("name", ["proxyless-tiny", "proxyless"])
def test_prices_of_a_space_from_a_foreign_table(v100: LatencyModel, name: str) -> None:
    space = get_space(name)
    cost, counts = v100.cost(space), v100.priced(space)
    assert counts["interpolated"] > 20
    assert counts["estimated"] == 2  # the pooling and the classifier
    rng = np.random.default_rng(0)
    for _ in range(20):
        arch = space.sample(rng)
        found = v100.predict(space.network(arch))
        assert found.latency_ms is not None
        assert found.high_ms is not None
        assert found.low_ms is not None
        assert cost.prices.total_of(arch.genes) == pytest.approx(found.latency_ms)
        # the one-sided 99% that feasibility is decided on is beyond the two-sided 90%, which is wide
        assert cost.upper.total_of(arch.genes) > found.high_ms > 1.4 * found.latency_ms
        assert 0 < found.low_ms < 0.7 * found.latency_ms
        assert not found.calibrated
        assert found.missing == ()
    finite = np.isfinite(cost.prices.choices)
    assert (np.isfinite(cost.upper.choices) == finite).all()


def test_grouped_convolutions_are_estimated_with_a_wide_interval(v100: LatencyModel) -> None:
    grouped = Op.conv((64, 28, 28), 64, kernel=3, groups=4, bias=True)
    builder = Network((64, 28, 28), (), (-1, 0))
    assert v100.predict(builder).ops == ()
    known = v100.knowledge.of((grouped,))
    assert known
    assert known.how == "estimated"
    assert known.deviation_ms > known.latency_ms / 2


def test_an_operator_that_failed_at_the_source_has_no_price(tmp_path: Path) -> None:
    header = {
        "device": "X", "runtime": "r", "runtime_version": "unknown", "precision": "fp32", "batch_size": 1,
        "profile": {"name": "imported"}, "imported": {"source": "s"}, "cores": None, "threads": None,
    }  # fmt: skip
    space = get_space("proxyless-tiny")
    stem = space.fixed_ops()[0].deployed()
    rows = [Imported("operator", op.key, TABLE[op.key].latency_ms) for op in OPS]
    rows.append(Imported("operator", stem.key, None, failure="out of memory there"))
    write_imported(tmp_path / "t.lut", header, rows)
    with LatencyTable.open(tmp_path / "t.lut") as table:
        model = LatencyModel(table)
    with pytest.raises(HwnasError, match=r"out of memory there.*it was imported"):
        model.cost(space)
    assert model.predict(space.network(space.sample(np.random.default_rng(0)))).missing == (stem.key,)
