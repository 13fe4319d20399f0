"""Verification with the real runtime: verdicts, parity with the module, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from quick import quick_profile, tiny_network
from torch import nn

from hwnas import verify as module
from hwnas.errors import HwnasError
from hwnas.export import export_onnx
from hwnas.latency.build import build_table
from hwnas.latency.plan import reference_network, session_bytes
from hwnas.latency.table import LatencyTable, MeasuredNetwork
from hwnas.measure.onnx_models import network_to_onnx
from hwnas.measure.passes import Entry
from hwnas.measure.process import MeasuringProcess, Subject
from hwnas.measure.statistics import Estimate, estimate
from hwnas.progress import NullProgress
from hwnas.spaces import get_space
from hwnas.trace import ops_of
from hwnas.verify import Candidate, VerifyReport, _clear, _drift, _report, timing_of, verify

pytestmark = pytest.mark.usefixtures("own_lock")

SHAPE = (3, 16, 16)
TINY = get_space("proxyless-tiny")
ARCH = TINY.sample(np.random.default_rng(0))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table that covers one network of the space."""
    path = tmp_path_factory.mktemp("table") / "t.lut"
    models = {"net": TINY.network(ARCH), "small": tiny_network(), "large": tiny_network(32, 32)}
    build_table(quick_profile(min_passes=8, max_passes=8, runs=3), path, models=models, progress=NullProgress())
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, bytes]:
    """A small trained-like module (running statistics that are not the initial ones) and its ONNX file."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    module.train()
    for _ in range(3):
        module(torch.randn(16, *SHAPE) + 1)
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    export_onnx(module.eval(), SHAPE, path)
    return module, path.read_bytes()


def images(batch_size: int = 1) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch_size, *SHAPE)).astype(np.float32)


def judge(*candidates: Candidate, table: Path | None = None, **timing: float) -> list[VerifyReport]:
    profile = quick_profile(**{"min_passes": 8, "max_passes": 8, "runs": 3, **timing})
    if table is None:
        return verify(candidates, profile, table=None, progress=NullProgress())
    with LatencyTable.open(table) as opened:
        return verify(candidates, profile, table=opened, progress=NullProgress())


def candidate(name: str = "net", budget_ms: float | None = None) -> Candidate:
    network = TINY.network(ARCH)
    return Candidate(name, network, network_to_onnx(network), budget_ms)


def test_within_and_over_budget() -> None:
    within, over, free = judge(candidate("a", 1000.0), candidate("b", 1e-4), candidate("c"))
    assert (within.within_budget, over.within_budget, free.within_budget) == (True, False, None)
    assert (within.holds, over.holds, free.holds) == (True, False, True)
    for report in (within, over, free):
        assert 0 < report.measured_low_ms <= report.measured_ms <= report.measured_high_ms
        assert report.measured_ms <= report.median_ms
        assert (report.judged_on, report.drift) == ("as measured", None)
        assert (report.predicted_ms, report.relative_error, report.missing) == (None, None, ())
        assert report.same_outputs is None
        json.dumps(report.to_json(), allow_nan=False)
    assert [report.net for report in (within, over, free)] == ["a", "b", "c"]


def test_the_upper_end_decides() -> None:
    (first,) = judge(candidate(budget_ms=1.0))
    for report in judge(candidate(budget_ms=first.measured_ms), candidate(budget_ms=2 * first.measured_ms)):
        assert report.within_budget == (report.measured_high_ms <= (report.budget_ms or 0))


def test_far_away_a_file_is_sent_once_a_round() -> None:
    """Here nets are loaded anew as often as the profile says."""
    here = quick_profile(min_passes=24, max_passes=80, visits_per_load=6)
    far = here.model_copy(update={"host": "ssh://board"})
    for turn in (1, 4):
        asked = {"min_passes": 24 * turn, "max_passes": max(80, 24 * turn)}
        assert timing_of(here, turn) == here.timing.model_copy(update=asked)
        assert timing_of(far, turn) == timing_of(here, turn).model_copy(update={"visits_per_load": 24})
    assert timing_of(quick_profile().model_copy(update={"host": "ssh://board"}), 1).visits_per_load == 0


def test_a_budget_inside_the_interval_is_neither_kept_nor_clear() -> None:
    """The point is within the budget, the upper end is not: that is over budget, and worth measuring on."""
    noisy = [np.full(5, 1.0 + 0.1 * number) for number in range(12)]
    entry = Entry(Subject("noisy", "network", bytes), visits=noisy)
    measured = estimate(noisy)
    assert measured.high_ms > 1.05 * measured.latency_ms
    inside = (measured.latency_ms + measured.high_ms) / 2
    for budget_ms, within, clear in ((inside, False, False), (1.01 * measured.high_ms, True, True)):
        net = candidate(budget_ms=budget_ms)
        assert _report(None, net, entry, measured, measured, None, None).within_budget is within
        assert _clear(net, measured) is clear


def test_with_a_table_it_is_judged_at_the_level_of_the_table(table: Path) -> None:
    (report,) = judge(candidate(budget_ms=1000.0), table=table)
    assert report.drift is not None
    assert 0.3 < report.drift < 3
    assert report.judged_on == "calibration networks measured again"
    assert report.measured_ms == pytest.approx(report.raw_ms / report.drift)
    assert report.predicted_ms is not None
    assert report.relative_error == pytest.approx(report.predicted_ms / report.measured_ms - 1)
    assert abs(report.relative_error) < 1  # a noisy machine and three networks: the right order, no more
    assert (report.missing, report.within_budget) == ((), True)


def test_sessions_are_kept_within_the_memory(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nets, witnesses and the reference hold while they run counts, not only their files: batch 32 is large."""
    loaded: dict[str, int] = {}
    most = [0, 0]

    class Watched(MeasuringProcess):
        def load(self, subject: Subject) -> int:
            repeats = super().load(subject)
            loaded[subject.name] = subject.memory_bytes
            most[:] = (
                max(most[0], len(self._link.loaded)),
                max(most[1], sum(held for _, held in self._link.loaded.values())),
            )
            return repeats

    limit = 3 * session_bytes(reference_network(), 1)
    monkeypatch.setattr(module, "MeasuringProcess", partial(Watched, memory_limit_bytes=limit))
    nets = [candidate(str(number), 1000.0) for number in range(8)]
    judge(*nets, table=table, min_passes=2, max_passes=2, runs=1)
    assert len(loaded) > 8 + 1
    assert all(loaded[f"network {number}"] == session_bytes(net.network, 1) for number, net in enumerate(nets))
    assert all(loaded.values())
    assert most[0] < len(loaded)
    assert most[1] <= limit


@pytest.mark.parametrize("alone", [False, True], ids=["calibration networks", "the reference alone"])
def test_a_table_made_on_a_faster_machine_is_allowed_for(table: Path, tmp_path: Path, alone: bool) -> None:
    """The same table, as if the machine had been three times as fast then: only the drift changes."""
    import shutil
    import sqlite3
    from contextlib import closing

    path = Path(shutil.copy(table, tmp_path / "t.lut"))
    with closing(sqlite3.connect(path)) as connection:
        if alone:
            connection.execute("DELETE FROM visits WHERE entry IN (SELECT id FROM entries WHERE role = 'network')")
        for number, blob in connection.execute("SELECT id, samples_ms FROM visits").fetchall():
            faster = (np.frombuffer(blob) / 3).tobytes()
            connection.execute("UPDATE visits SET samples_ms = ? WHERE id = ?", (faster, number))
        connection.commit()
    (report,) = judge(candidate(), table=path)
    assert report.drift is not None
    assert report.judged_on == ("reference network" if alone else "calibration networks") + " measured again"
    assert 1.5 < report.drift < 6
    assert report.measured_ms < 0.7 * report.raw_ms
    assert report.relative_error is not None
    assert abs(report.relative_error) < 1


def test_a_net_is_judged_by_how_networks_as_fast_as_it_drifted() -> None:
    """Small networks take 6% less than when the table was made, large ones as much as then."""
    network = tiny_network()
    then_ms = np.geomspace(0.05, 0.2, 7)
    drifts = np.linspace(0.94, 1.0, 7)
    witnesses, now = [], {}
    for number, (then, drift) in enumerate(zip(then_ms, drifts, strict=True)):
        level = Estimate(then, then, then, 50)
        entry = Entry(Subject(f"witness {number}", "network", bytes, 0))
        witnesses.append((MeasuredNetwork(f"net {number}", network.input_shape, (), level), entry))
        now[entry.subject.name] = level.scaled(drift)
    mine = Entry(Subject("mine", "network", bytes, 0))
    for then, expected in ((0.05, 0.94), (0.1, 0.97), (0.2, 1.0), (0.9, 1.0)):
        now["mine"] = Estimate(then * expected, then * expected, then * expected, 50)
        found = _drift(Candidate("mine", network, b""), mine, witnesses, None, now, None)
        assert found is not None
        assert found.factor == pytest.approx(expected, abs=0.003)
        assert found.undo(now["mine"]).latency_ms == pytest.approx(then, rel=0.004)


def test_what_the_table_lacks_is_named_and_the_budget_is_still_judged(table: Path) -> None:
    network = tiny_network(24, 20)
    (report,) = judge(Candidate("other", network, network_to_onnx(network), 1000.0), table=table)
    assert report.predicted_ms is None
    assert report.relative_error is None
    assert set(report.missing) & {op.key for op in network.ops}
    assert report.within_budget is True


@pytest.mark.parametrize(
    ("change", "says"), [({"batch_size": 2}, "batch_size 1, this is 2"), ({"threads": 2}, "threads 1, this is 2")]
)
def test_a_table_of_another_set_up_is_refused(table: Path, change: dict[str, int], says: str) -> None:
    profile = quick_profile().model_copy(update=change)
    network = tiny_network()
    given = Candidate("net", network, network_to_onnx(network, batch_size=profile.batch_size))
    with LatencyTable.open(table) as opened, pytest.raises(HwnasError, match=says):
        verify([given], profile, table=opened, progress=NullProgress())


# -- the outputs -----------------------------------------------------------------------------------------------------


def test_the_deployed_net_computes_what_the_module_does(exported: tuple[nn.Module, bytes]) -> None:
    module, model = exported
    module.train()  # whoever verifies in the middle of training gets its module back as it was
    before = {key: value.clone() for key, value in module.state_dict().items()}
    network = ops_of(module, SHAPE)
    (report,) = judge(Candidate("net", network, model, module=module, images=images()), min_passes=2, max_passes=2)
    assert report.same_outputs is True
    assert report.holds
    assert report.output_max_abs_diff is not None
    assert report.output_max_rel_diff is not None
    assert report.output_max_abs_diff < 1e-4
    assert report.output_max_rel_diff < 1e-3
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def perturbed(model: bytes, factor: float) -> bytes:
    """The model with its largest weight tensor scaled."""
    proto = onnx.load_from_string(model)
    tensor = max(proto.graph.initializer, key=lambda value: int(np.prod(value.dims)))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize("factor", [1.02, -1.0, float("nan")])
def test_another_net_than_the_module_is_found_out(exported: tuple[nn.Module, bytes], factor: float) -> None:
    module, model = exported
    given = Candidate("net", ops_of(module, SHAPE), perturbed(model, factor), 1000.0, module, images())
    (report,) = judge(given, min_passes=2, max_passes=2)
    assert report.same_outputs is False
    assert report.within_budget is True
    assert not report.holds


def test_outputs_of_another_shape_are_an_error(exported: tuple[nn.Module, bytes]) -> None:
    module, _ = exported
    network = tiny_network(8, 16, classes=1)  # one class would broadcast against four
    given = Candidate("net", network, network_to_onnx(network), module=module, images=images())
    with pytest.raises(HwnasError, match=r"shape \(1, 1\).*shape \(1, 4\)"):
        judge(given)


def test_images_that_do_not_fit_are_one_line(exported: tuple[nn.Module, bytes]) -> None:
    module, model = exported
    given = Candidate("net", ops_of(module, SHAPE), model, module=module, images=images(1)[:, :, :-1])
    with pytest.raises(HwnasError, match="net does not run on the device") as caught:
        judge(given)
    assert len(str(caught.value).splitlines()) == 1


def test_a_net_that_cannot_be_measured_is_named() -> None:
    good = candidate("good")
    with pytest.raises(HwnasError, match="broken cannot be measured: ") as caught:
        judge(good, replace(good, name="broken", model=b"no model"))
    assert len(str(caught.value).splitlines()) == 1
