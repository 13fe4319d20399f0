"""Estimates from samples: what holds for any samples, and how often the interval holds the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hwnas.measure.statistics import CONFIDENCE, FASTEST, Estimate, estimate, line_at

times = st.floats(1e-3, 1e4)
visits = st.lists(st.lists(times, min_size=1, max_size=6).map(np.asarray), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(visits)
def test_the_point_is_the_mean_of_the_fastest_visits_and_within_its_interval(found: list[NDArray[np.float64]]) -> None:
    result = estimate(found)
    assert result.low_ms <= result.latency_ms <= result.high_ms
    assert result.latency_ms == pytest.approx(np.mean(sorted(visit.min() for visit in found)[:FASTEST]))
    assert result.high_ms <= 2 * max(visit.max() for visit in found)
    assert result.samples == sum(map(len, found))
    assert result.relative_error >= 0


@settings(max_examples=30, deadline=None)
@given(visits)
def test_the_same_samples_give_the_same_interval(found: list[NDArray[np.float64]]) -> None:
    assert estimate(found) == estimate([visit.copy() for visit in found])


@settings(max_examples=30, deadline=None)
@given(visits, st.floats(1e-3, 1e3))
def test_another_unit_gives_the_same_estimate(found: list[NDArray[np.float64]], factor: float) -> None:
    one, other = estimate(found), estimate([visit * factor for visit in found])
    for name in ("latency_ms", "low_ms", "high_ms"):
        assert getattr(other, name) == pytest.approx(factor * getattr(one, name), rel=1e-9)


def test_few_or_no_samples() -> None:
    one = estimate([np.array([3.0])])
    assert (one.low_ms, one.latency_ms, one.high_ms, one.samples) == (3, 3, 3, 1)
    assert estimate([np.array([3.0]), np.array([])]) == one
    for nothing in ([], [np.array([])]):
        with pytest.raises(ValueError, match="no samples"):
            estimate(nothing)


def test_more_visits_give_a_narrower_interval() -> None:
    few = [estimate(draw(np.random.default_rng(seed), 10)).relative_error for seed in range(20)]
    many = [estimate(draw(np.random.default_rng(seed), 90)).relative_error for seed in range(20)]
    assert np.mean(many) < 0.6 * np.mean(few)


def draw(rng: np.random.Generator, visits: int, runs: int = 5) -> list[NDArray[np.float64]]:
    """Visits with a regime each: never faster than 10 ms, some much slower, their own runs alike."""
    regimes = 10 * (1 + 0.05 * rng.exponential(size=visits))
    return [regime * (1 + 0.01 * rng.exponential(size=runs)) for regime in regimes]


@pytest.mark.parametrize("visits", [12, 40])
def test_the_upper_end_is_not_below_the_floor(visits: int) -> None:
    """Budgets are judged on it."""
    rng = np.random.default_rng(1)
    assert all(estimate(draw(rng, visits)).high_ms >= 10 for _ in range(300))


@pytest.mark.parametrize("visits", [12, 40])
def test_two_measurements_agree_within_their_intervals_as_often_as_they_say(visits: int) -> None:
    rng = np.random.default_rng(2)
    agree = []
    for _ in range(300):
        one, other = estimate(draw(rng, visits)), estimate(draw(rng, visits))
        both = np.hypot(one.high_ms - one.latency_ms, other.high_ms - other.latency_ms)
        agree.append(abs(one.latency_ms - other.latency_ms) <= both)
    assert np.mean(agree) >= CONFIDENCE - 0.05


def test_regimes_of_most_visits_do_not_move_the_estimate() -> None:
    """Two thirds of the visits meet a machine that is a third slower."""
    rng = np.random.default_rng(3)
    quiet = [10 * (1 + 0.01 * rng.exponential(size=5)) for _ in range(12)]
    busy = [13.3 * (1 + 0.01 * rng.exponential(size=5)) for _ in range(24)]
    assert estimate(quiet + busy).latency_ms == pytest.approx(estimate(quiet).latency_ms)


def test_scaling_keeps_latencies_above_zero() -> None:
    result = Estimate(2.0, 1.0, 3.0, 5).scaled(0.5, offset=1.5)
    assert result.latency_ms == 0.25
    assert result.high_ms == 0.75
    assert 0 < result.low_ms < result.latency_ms


def test_a_line_is_not_bent_by_outliers_and_goes_on_level() -> None:
    x = np.arange(7.0)
    y = 0.1 - 0.02 * x
    y[3] += 5
    for place, expected in ((2.5, 0.05), (6.0, -0.02), (99.0, -0.02), (-3.0, 0.1)):
        assert line_at(x, y, place)[0] == pytest.approx(expected)
    assert line_at(x, y, 2.0)[1] < 1e-9


def test_few_points_have_no_slope_but_a_middle() -> None:
    assert line_at(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.1, 0.3]), 3.0)[0] == pytest.approx(0.1)
    assert line_at(np.ones(6), np.arange(6.0), 1.0)[0] == pytest.approx(2.5)
    value, error = line_at(np.array([1.0]), np.array([0.2]), 7.0)
    assert (value, error) == (pytest.approx(0.2), 0.0)
