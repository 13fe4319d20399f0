"""Regimes and levels: known ones are found again in visits that we make up."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hwnas.latency.levels import OVERHEAD, QUANTILE, Levels, NetworkVisit, level_of, weighted_quantile
from hwnas.measure.regimes import LEAST_ENTRIES, regimes

ENTRIES, PASSES = 12, 20
NETWORK = (3, 8, 8)


def visits(seed: int, entries: int = ENTRIES) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Entry and logarithm of each visit, and the true level of each entry: quiet at most a fifth of the time."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(0, 3, entries)
    index = np.concatenate([rng.permutation(entries) for _ in range(PASSES)])
    regime = np.repeat(rng.choice([0.0, 0.06, 0.12, 0.2], entries * PASSES // 20 + 1), 20)[: len(index)]
    regime[:40] = 0.0
    return index, level[index] + regime + 0.004 * rng.standard_normal(len(index)), level


def test_levels_are_found_several_times_better_than_by_the_fastest_visit() -> None:
    ours, fastest = [], []
    for seed in range(6):
        index, log_ms, level = visits(seed)
        few = np.arange(len(index)) >= 40  # the first passes were quiet for all: the fastest visits would be right
        index, log_ms = index[few], log_ms[few]
        off = log_ms - regimes(index, log_ms)
        found = np.array([np.median(off[index == entry]) for entry in range(ENTRIES)]) - level
        least = np.array([log_ms[index == entry].min() for entry in range(ENTRIES)]) - level
        ours.append(found.std())  # how well entries compare; a common factor harms nobody
        fastest.append(least.std())
    assert np.mean(ours) < np.mean(fastest) / 2


def test_the_same_visits_give_the_same_regimes_and_few_entries_none() -> None:
    index, log_ms, _ = visits(3)
    assert np.array_equal(regimes(index, log_ms), regimes(index, log_ms))
    index, log_ms, _ = visits(3, LEAST_ENTRIES - 1)
    assert not regimes(index, log_ms).any()


def session(number: int, first: int, factor: float, nets: int, slow: float = 1.3) -> list[NetworkVisit]:
    """Passes over networks of 1, 2, … ms, the second half of them in a slow regime; a reference of 5 ms."""
    found = []
    for visit in range(30):
        regime = slow if visit >= 15 else 1.0
        for net in range(nets + 1):
            entry = ("reference", "reference") if net == nets else ("network", str(net))
            samples = np.array([(5.0 if net == nets else 1.0 + net) * factor * regime] * 2)
            found.append(NetworkVisit(first + len(found), entry, number, NETWORK, samples))
    return found


def test_sessions_at_different_speeds_are_brought_together_regimes_taken_off() -> None:
    one = session(1, 0, 1.0, 6)
    levels = Levels([*one, *session(2, len(one), 1.7, 6)])
    assert levels.sessions == pytest.approx({1: 1.0, 2: 1 / 1.7})
    assert {name: found.latency_ms for name, found in levels.networks("network").items()} == pytest.approx(
        {str(net): 1.0 + net for net in range(6)}
    )


def test_too_few_entries_fall_back_to_the_fastest_visits() -> None:
    levels = Levels(session(1, 0, 1.0, 2))
    assert levels.networks("network")["1"].latency_ms == pytest.approx(2.0, rel=0.01)


def test_kernels_are_corrected_as_their_network_is_and_timing_costs_are_taken_off() -> None:
    made, factor, timed = [], {}, []
    for visit in range(12):
        for net in range(7):
            slow = 1.25 if visit >= 9 else 1.04 if visit >= 6 else 1.0
            name = OVERHEAD if net == 6 else str(net)
            number = len(made)
            made.append(NetworkVisit(number, ("cover", name), 1, NETWORK, np.array([(1.0 + net) * slow])))
            factor[number] = slow
            value = 0.01 if net == 6 else 0.01 + 0.5
            timed.append(("nothing" if net == 6 else "kernel", number, 1, np.array([value * slow] * 4)))
            if net < 6:  # what slows others by a quarter makes this one take twice as long
                timed.append(("fickle", number, 1, np.array([0.01 + (0.2 + 0.04 * (net % 2)) * slow] * 4)))
                timed.append(("sensitive", number, 1, np.array([0.01 + 0.3 * (slow if slow < 1.2 else 2)] * 4)))
            if net < 6:  # three kernels, each of which was timed
                timed.append(("shuffle", number, 3, np.array([(0.03 + 0.2) * slow] * 4)))
    found = Levels(made).kernels([*timed, ("lost", 10**6, 1, np.array([1.0]))])
    # what is in no network that is known, and what only tells the cost, is nothing
    assert set(found) == {"kernel", "shuffle", "sensitive", "fickle"}
    assert found["kernel"].latency_ms == pytest.approx(0.5, rel=0.02)
    assert found["shuffle"].latency_ms == pytest.approx(0.2, rel=0.02)
    assert found["sensitive"].latency_ms == pytest.approx(0.3, rel=0.02)
    assert found["kernel"].samples == 9 * 6 * 4  # of the quiet visits
    # 0.2 and 0.24 ms in three networks each: by their standard deviation over their mean
    assert found["fickle"].spread == pytest.approx(0.04 / 2 * (6 / 5) ** 0.5 / 0.22, rel=0.1)
    assert found["kernel"].spread == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize("count", [8, 40])
def test_intervals_of_levels_hold_as_often_as_they_say(count: int) -> None:
    """The truth is the quantile of all visits that there could be."""
    truth, held = float(np.exp(0.02 * NormalDist().inv_cdf(QUANTILE))), []
    for seed in range(400):
        found = level_of(0.02 * np.random.default_rng(seed).standard_normal(count), count)
        held.append(found.low_ms <= truth <= found.high_ms)
    assert 0.84 <= np.mean(held) <= 0.95


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 4)), min_size=2, max_size=8), st.floats(0.01, 0.99))
def test_a_visit_that_counts_twice_is_as_two_that_are_alike(visits: list[tuple[float, int]], part: float) -> None:
    values, weights = (np.array(column, float) for column in zip(*visits, strict=True))
    found = weighted_quantile(values, weights, part)
    assert values.min() - 1e-12 <= found <= values.max() + 1e-12
    assert weighted_quantile(np.array([values, values]), np.array([weights] * 2), part) == pytest.approx(
        [float(found)] * 2
    )
    assert weighted_quantile(values, 3 * weights, part) == pytest.approx(found)
    # what weighs nearly nothing says nearly nothing
    more = weighted_quantile(np.append(values, 99.0), np.append(weights, 1e-9), part)
    assert more == pytest.approx(found, abs=1e-3) or part > 0.5


def test_visits_of_a_busy_machine_count_less() -> None:
    """While it is busy it slows large nets more than small ones; what was seen while it was quiet decides."""
    rng = np.random.default_rng(0)
    made = []
    for one in range(20):
        for name in rng.permutation(ENTRIES).tolist():
            slow = 0.15 + (0.08 if name % 2 else -0.08) if one >= 9 else 0.0
            taken = np.exp(0.1 * name + slow + 0.004 * rng.standard_normal())
            made.append(NetworkVisit(len(made), ("network", f"n{name}"), 1, NETWORK, np.array([taken])))
    found = Levels(made).networks("network")
    errors = [found[f"n{name}"].latency_ms / np.exp(0.1 * name) - 1 for name in range(ENTRIES)]
    assert np.abs(errors).mean() < 0.05  # 0.09 where all visits count alike
