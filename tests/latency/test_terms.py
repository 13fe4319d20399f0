"""What belongs to no operator: fitted, stored with the kernels it was timed beside, and part of every price."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwnas.devices import find_profile
from hwnas.latency.lowering import AsWritten
from hwnas.latency.merge import merge_tables
from hwnas.latency.model import LatencyModel
from hwnas.latency.plan import overhead_network
from hwnas.latency.table import LatencyTable
from hwnas.latency.terms import GAPS, LAYERS, Terms, fit_terms
from hwnas.latency.writer import TableWriter
from hwnas.measure.runtimes.base import WHOLE
from hwnas.measure.runtimes.tensorrt_layers import REFORMAT
from hwnas.network import Network
from hwnas.ops import Op
from hwnas.spaces import get_space

DESCRIBE = {"runtime": "tensorrt", "runtime_version": "10.9", "device": "A GPU", "cores": 9, "threads": 1, "kernels": 1}
FIXED_MS, PER_OPERATOR_MS, REFORMAT_MS, PROFILER_MS = 0.05, 0.003, 0.002, 0.004
SPACE = get_space("proxyless-tiny")


def test_both_parts_are_found() -> None:
    networks = [(count, {GAPS: 0.1 + 0.01 * count, REFORMAT: 0.005 * count}) for count in (10, 20, 30, 40)]
    terms = fit_terms(networks)
    assert (terms.fixed_ms, terms.per_operator_ms) == pytest.approx((0.1, 0.015))
    assert terms.ms(50) == pytest.approx(0.85)
    assert terms.shares == pytest.approx({GAPS: 1.4 / 1.9, REFORMAT: 0.5 / 1.9})
    assert sum(terms.parts(1.0).values()) == pytest.approx(1.0)


def test_neither_part_is_negative_and_few_networks_give_one() -> None:
    shrinking = fit_terms([(count, {GAPS: 1.0 - 0.02 * count}) for count in (10, 20, 30, 40)])
    assert min(shrinking.fixed_ms, shrinking.per_operator_ms) >= 0
    assert fit_terms([(10, {GAPS: -0.5})] * 5) == Terms()  # kernels that overlap leave no gaps
    assert fit_terms([]) == Terms()
    assert fit_terms([(10, {GAPS: 0.2}), (30, {GAPS: 0.6})]).ms(20) == pytest.approx(0.4)


def true_ms(op: Op) -> float:
    return 0.01 + op.macs * 1e-9


def run_ms(network: Network) -> float:
    """What a network takes on the device of these tests."""
    ops = AsWritten()(network)
    return sum(map(true_ms, ops)) + FIXED_MS + PER_OPERATOR_MS * len(ops) + 2 * REFORMAT_MS


def timed(table: LatencyTable, name: str, network: Network, number: int) -> None:
    """Stores what a profiler that costs `PROFILER_MS` a kernel shows of a network; it has two reformats."""
    ops = AsWritten()(network)
    shown = {op.key: np.full(3, true_ms(op) + PROFILER_MS) for op in ops}
    reformats = 2 * (REFORMAT_MS + PROFILER_MS)
    terms = {
        WHOLE: np.full(3, run_ms(network)),
        LAYERS: np.full(3, sum(true_ms(op) + PROFILER_MS for op in ops) + reformats),
        REFORMAT: np.full(3, reformats),
    }
    launches = dict.fromkeys(shown, 1) | {WHOLE: 1, LAYERS: len(ops) + 2, REFORMAT: 2}
    table.add_entry("cover", name, network.to_json())
    table.add_kernels(1, name, number, [run_ms(network)] * 3, shown | terms, launches)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the space, as a GPU would fill it."""
    path = tmp_path_factory.mktemp("terms") / "gpu.lut"
    with TableWriter.create(path, find_profile("cuda"), DESCRIBE) as table:
        table.start_session({})
        empty = overhead_network()
        table.add_entry("cover", "overhead", empty.to_json())
        shown = {empty.ops[0].key: np.full(3, PROFILER_MS)}
        rest = {WHOLE: np.full(3, 0.02), LAYERS: np.full(3, PROFILER_MS)}
        launches = dict.fromkeys((*shown, *rest), 1)
        table.add_kernels(1, "overhead", 0, [0.02] * 3, shown | rest, launches)
        rng = np.random.default_rng(0)
        missing = {op.key for slot in range(len(SPACE.slots)) for choice in range(len(SPACE.slots[slot]))
                   for op in SPACE.slot_ops(slot, choice)}  # fmt: skip
        number = 0
        while number < 6 or (missing - set(table.names("operator")) and number < 60):
            number += 1
            timed(table, f"net {number}", SPACE.network(SPACE.sample(rng)), number)
    return path


def test_a_prediction_is_operators_and_terms(path: Path) -> None:
    with LatencyTable.open(path) as table:
        model = LatencyModel(table)
        assert not set(table.names("operator")) & {WHOLE, LAYERS, REFORMAT}
        assert WHOLE not in table.inside()
    # two reformats a network do not grow with it
    assert model.terms.fixed_ms == pytest.approx(FIXED_MS + 2 * REFORMAT_MS, abs=1e-6)
    assert model.terms.per_operator_ms == pytest.approx(PER_OPERATOR_MS, abs=1e-7)
    for seed in range(3):
        network = SPACE.network(SPACE.sample(np.random.default_rng([1, seed])))
        prediction = model.predict(network)
        assert prediction.latency_ms == pytest.approx(run_ms(network), abs=1e-6)
        assert set(prediction.terms) == {GAPS, REFORMAT}
        operators = sum(op.latency_ms or 0 for op in prediction.ops)
        assert operators + sum(prediction.terms.values()) == pytest.approx(prediction.latency_ms)


def test_a_search_pays_for_them_too(path: Path) -> None:
    with LatencyTable.open(path) as table:
        model = LatencyModel(table)
    cost = model.cost(SPACE)
    for seed in range(3):
        arch = SPACE.sample(np.random.default_rng([2, seed]))
        expected = model.predict(SPACE.network(arch)).latency_ms
        assert cost.prices.total_of(arch.genes) == pytest.approx(expected)


def test_they_survive_a_merge(path: Path, tmp_path: Path) -> None:
    with LatencyTable.open(path) as table:
        before = LatencyModel(table).terms
    merged = tmp_path / "merged.lut"
    merge_tables(path, path, merged)
    with LatencyTable.open(merged) as table:
        assert LatencyModel(table).terms == before
