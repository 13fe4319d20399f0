"""Interleaved passes, with the real runtime in a real process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from quick import quick_profile, tiny_network

from hwnas.devices import Timing
from hwnas.measure.onnx_models import network_to_onnx, op_to_onnx
from hwnas.measure.passes import REFERENCE_EVERY, Entry, Visit, is_open, measure_in_passes
from hwnas.measure.process import MeasuringProcess, Subject
from hwnas.ops import Op


@pytest.fixture(scope="module")
def process() -> Iterator[MeasuringProcess]:
    """One child for the tests of this file."""
    with MeasuringProcess(quick_profile()) as process:
        yield process


def entries(count: int) -> list[Entry]:
    ops = [Op.linear(4, 2 + number) for number in range(count)]
    return [Entry(Subject(op.key, "operator", lambda op=op: op_to_onnx(op))) for op in ops]  # type: ignore[misc]


def reference() -> Entry:
    return Entry(Subject("reference", "network", lambda: network_to_onnx(tiny_network())), reference=True)


def measure(process: MeasuringProcess, found: list[Entry], *, seed: int = 0, **timing: float) -> list[Visit]:
    process.profile = quick_profile(**timing)
    return list(measure_in_passes(process, found, seed=seed))


def orders(visits: list[Visit]) -> list[list[str]]:
    passes: dict[int, list[str]] = {}
    for visit in visits:
        if not visit.entry.reference:
            passes.setdefault(visit.number, []).append(visit.entry.subject.name)
    return [passes[number] for number in sorted(passes)]


def test_every_pass_visits_every_entry_in_an_order_of_its_own(process: MeasuringProcess) -> None:
    found = entries(12)
    visits = measure(process, found, min_passes=4, max_passes=4)
    names = sorted(entry.subject.name for entry in found)
    passes = orders(visits)
    assert [sorted(order) for order in passes] == [names] * 4
    assert len({tuple(order) for order in passes}) == 4
    assert all(len(entry.visits) == 4 for entry in found)
    assert orders(measure(process, entries(12), min_passes=4, max_passes=4)) == passes  # a seed repeats it
    assert orders(measure(process, entries(12), min_passes=4, max_passes=4, seed=1)) != passes


def test_the_reference_is_in_each_pass_and_again_within_long_ones(process: MeasuringProcess) -> None:
    together, found = reference(), entries(REFERENCE_EVERY + 5)
    visits = measure(process, [*found, together])
    assert Counter(visit.number for visit in visits if visit.entry is together) == {0: 2, 1: 2}
    assert visits[0].entry is together
    assert len(together.visits) == 4


def test_the_reference_alone_is_not_measured(process: MeasuringProcess) -> None:
    assert measure(process, [reference()]) == []
    assert measure(process, []) == []


def test_a_visit_holds_the_runs_that_were_asked_for(process: MeasuringProcess) -> None:
    (entry,) = entries(1)
    visits = measure(process, [entry], runs=3, min_run_ms=0.02)
    assert [len(visit.samples_ms) for visit in visits] == [3, 3]
    assert entry.repeats > 1
    for visit, stored in zip(visits, entry.visits, strict=True):
        assert stored == pytest.approx(np.asarray(visit.samples_ms) / entry.repeats)


def test_tight_entries_stop_at_min_passes_and_noisy_ones_at_max_passes(process: MeasuringProcess) -> None:
    found = entries(3)
    measure(process, found, min_passes=3, max_passes=7, target_error=0.999)
    assert [len(entry.visits) for entry in found] == [3, 3, 3]
    found = entries(3)
    measure(process, found, min_passes=3, max_passes=7, target_error=1e-12)
    assert [len(entry.visits) for entry in found] == [7, 7, 7]


def test_some_stop_before_others(process: MeasuringProcess) -> None:
    tight, noisy = entries(2)
    tight.visits = [np.array([1.0])] * 3
    noisy.visits = [np.array([1.0]), np.array([2.0]), np.array([8.0])]
    measure(process, [tight, noisy], min_passes=3, max_passes=5, target_error=0.01)
    assert (len(tight.visits), len(noisy.visits)) == (3, 5)


def test_resumed_entries_get_what_is_missing(process: MeasuringProcess) -> None:
    found = entries(4)
    for have, entry in enumerate(found):
        entry.visits = [np.array([1.0])] * have
    measure(process, found, min_passes=3, max_passes=3)
    assert [len(entry.visits) for entry in found] == [3, 3, 3, 3]
    assert measure(process, found, min_passes=3, max_passes=3) == []


def test_what_was_decided_stays_decided() -> None:
    """A second call of a finished profile must measure nothing."""
    timing = Timing(min_passes=2, max_passes=5, target_error=0.05)
    rng = np.random.default_rng(0)
    for _ in range(50):
        entry = Entry(Subject("x", "operator", bytes))
        while is_open(entry, timing):
            entry.visits.append(rng.exponential(size=3) * 0.1 + 1)
        assert not is_open(entry, timing)
        assert 2 <= len(entry.visits) <= 5


def test_a_failure_is_reported_once_and_the_others_go_on(process: MeasuringProcess) -> None:
    good = entries(2)
    bad = Entry(Subject("corrupt", "operator", lambda: b"no model"))
    visits = measure(process, [*good, bad], min_passes=3, max_passes=3)
    assert bad.failure
    assert [visit.samples_ms for visit in visits if visit.entry is bad] == [()]
    assert [len(entry.visits) for entry in good] == [3, 3]


def test_what_cannot_even_be_written_is_a_failure_of_its_own(process: MeasuringProcess) -> None:
    """An operator that no memory holds does not end the profile, and is not even tried."""
    vast = Op.linear(10**7, 10**7)
    found = [
        Entry(Subject("vast", "operator", lambda: op_to_onnx(vast), vast.traffic_bytes())),
        Entry(Subject("groupless", "operator", lambda: op_to_onnx(Op.conv((3, 4, 4), 4, kernel=3, groups=2)))),
        *entries(1),
    ]
    measure(process, found)
    assert [entry.failure is None for entry in found] == [False, False, True]
    assert "memory" in str(found[0].failure)
    assert all(len(str(entry.failure).splitlines()) == 1 for entry in found)


@pytest.mark.parametrize(("visits_per_load", "loads"), [(3, 3), (7, 1), (0, 1)])
def test_networks_are_loaded_anew_now_and_then(process: MeasuringProcess, visits_per_load: int, loads: int) -> None:
    """Where one lies in memory is a part of what it takes, of the reference too. Operators stay where they are."""
    made: Counter[str] = Counter()

    def counted(role: str, model: bytes) -> Subject:
        def write() -> bytes:
            made[role] += 1
            return model

        return Subject(f"{role} {visits_per_load}", "network" if role == "reference" else role, write)

    net = network_to_onnx(tiny_network())
    found = [Entry(counted("network", net)), Entry(counted("operator", op_to_onnx(Op.linear(4, 2))))]
    found.append(Entry(counted("reference", net), reference=True))
    visits = measure(process, found, min_passes=7, max_passes=7, visits_per_load=visits_per_load)
    assert made == {"network": loads, "operator": 1, "reference": loads}
    assert [len(entry.visits) for entry in found] == [7, 7, 7]
    assert not any(visit.entry.failure for visit in visits)
