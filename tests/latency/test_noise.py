"""How uncertain measurements are, by how long networks take."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.latency.noise import LEAST_ERROR, POWER, STEEPEST, fit_noise


@pytest.mark.parametrize("power", [-1.0, -0.5, 0.0])
def test_a_power_law_is_found(power: float) -> None:
    """Of thirty networks of 2 to 12 ms whose errors are told to within a half."""
    rng = np.random.default_rng(0)
    powers, errors = [], []
    for _ in range(50):
        taken = np.exp(rng.uniform(np.log(2), np.log(12), 30))
        law = fit_noise(taken.tolist(), (0.01 * (taken / 5) ** power * np.exp(0.4 * rng.standard_normal(30))).tolist())
        powers.append(law.power)
        errors.append(law.of(5.0))
    assert np.mean(powers) == pytest.approx(power, abs=0.15)  # drawn towards what is believed
    assert np.mean(errors) == pytest.approx(0.01, rel=0.05)


def test_networks_that_take_alike_tell_nothing_of_the_power() -> None:
    assert fit_noise([5.0] * 30, [0.01] * 30).power == pytest.approx(POWER)


@given(
    st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(0, 1)), min_size=1, max_size=40),
    st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=2),
)
def test_it_is_never_nothing_and_beyond_the_networks_that_of_the_nearest(
    networks: list[tuple[float, float]], asked: list[float]
) -> None:
    taken, errors = zip(*networks, strict=True)
    law = fit_noise(taken, errors)
    short, long = sorted(asked)
    assert law.of(short) > 0
    assert law.of(min(taken) / 2) == law.of(min(taken))
    assert law.of(max(taken) * 2) == law.of(max(taken))
    assert law.of(short) >= law.of(long)
    assert STEEPEST <= law.power <= 0


@pytest.mark.parametrize("shortest", [True, False])
def test_networks_that_were_visited_once_say_nothing(shortest: bool) -> None:
    """Nobody knows how uncertain they are: an interval of no width is not one of a perfect measurement."""
    taken = np.sort(np.exp(np.random.default_rng(0).uniform(np.log(2), np.log(12), 30)))
    errors = 0.01 * (taken / 5) ** -0.5
    law = fit_noise(taken.tolist(), errors.tolist())
    errors[slice(6) if shortest else slice(-6, None)] = 0.0
    found = fit_noise(taken.tolist(), errors.tolist())
    assert [found.of(2.0), found.of(12.0)] == pytest.approx([law.of(2.0), law.of(12.0)], rel=0.02)
    assert fit_noise([3.0, 5.0], [0.0, 0.0]).of(4.0) == LEAST_ERROR
