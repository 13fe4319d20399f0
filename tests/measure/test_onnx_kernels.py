"""What the clock of ONNX Runtime's profiler, of whole microseconds, takes from kernels, and how it is given back.

The times here are what such a clock shows of kernels whose true durations are known.
"""

from __future__ import annotations

import numpy as np
import pytest

from hwnas.measure.runtimes.onnx_kernels import LEAST_KERNELS, _kernel_times, lost_us
from hwnas.measure.statistics import fastest_mean

RUNS = 200
BETWEEN_US = 2.3
"""What the profiler does after each kernel."""


def shown(true_us: np.ndarray, *, jitter_us: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Durations and starts [kernels, runs] as the profiler shows them."""
    rng = np.random.default_rng(seed)
    taken = true_us[:, None] + jitter_us * rng.random((len(true_us), RUNS))
    between = BETWEEN_US + 0.3 * rng.random(taken.shape)
    start = 1e4 * np.arange(RUNS) + 100 * rng.random(RUNS)
    at = start + np.cumsum(taken + between, axis=0) - taken - between
    return np.floor(taken), np.floor(at)


@pytest.mark.parametrize("jitter_us", [0.0, 0.05, 5.0])
def test_kernels_are_as_far_apart_as_they_are(jitter_us: float) -> None:
    """Cut down, kernels of 2.1 and 2.9 us are the same to the clock."""
    true_us = np.random.default_rng(1).uniform(2, 9, 40)
    taken, at = shown(true_us, jitter_us=jitter_us)
    before = fastest_mean(taken)
    after = before + lost_us(taken, at)
    errors = [(found - true_us)[:-1] for found in (before, after)]  # nothing starts after the last
    spread = [float(np.std(error)) for error in errors]
    assert spread[1] < 0.12
    if jitter_us < 1:
        assert spread[0] > 0.25
    assert abs(errors[1].mean() - errors[0].mean()) < 0.06  # it is shared out, not added


def test_no_kernel_takes_less_than_nothing() -> None:
    """On a fast machine small kernels are shown as none at all, the one that measures the overhead first."""
    taken, at = shown(np.random.default_rng(4).uniform(0.2, 1.2, 30), jitter_us=0.1)
    events = [
        {"cat": "Node", "name": f"n{kernel}_kernel_time", "dur": taken[kernel, run], "ts": at[kernel, run],
         "args": {"op_name": "Relu", "input_type_shape": [], "output_type_shape": []}}
        for run in range(RUNS)
        for kernel in range(30)
    ]  # fmt: skip
    found = _kernel_times(events, np.ones(RUNS, bool))
    assert [time.node for time in found] == [f"n{kernel}" for kernel in range(30)]
    assert min(min(time.samples_ms) for time in found) == 0.0


def test_the_order_of_kernels_does_not_matter() -> None:
    true_us = np.random.default_rng(2).uniform(2, 9, 30)
    taken, at = shown(true_us, jitter_us=0.1)
    order = np.random.default_rng(3).permutation(30)
    assert np.array_equal(lost_us(taken[order], at[order]), lost_us(taken, at)[order])


def test_what_a_clock_cannot_have_cut_off_is_not_given_back() -> None:
    """After one kernel the profiler is slow: that is not the kernel's."""
    taken, at = shown(np.full(20, 3.5), jitter_us=0.1)
    at[6:] += 40
    lost = lost_us(taken, at)
    assert lost[5] == 0.5
    assert np.abs(np.delete(lost, 5)).max() < 0.5


def test_few_kernels_and_those_that_run_at_the_same_time_are_left_alone() -> None:
    few = shown(np.linspace(2, 5, LEAST_KERNELS - 1), jitter_us=0.1)
    assert not lost_us(*few).any()
    taken, at = shown(np.linspace(2, 5, 20), jitter_us=0.1)
    at[7] = at[6]
    assert not lost_us(taken, at).any()
