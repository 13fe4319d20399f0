"""Calibration on synthetic networks whose truth is known."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hwnas.costs import Curve
from hwnas.latency.calibration import (
    LEAST_FACTOR,
    LEAST_MODEL_ERROR,
    MODEL_ERROR,
    UNCALIBRATED_ERROR,
    Calibration,
    _curve,
    model_error,
)
from hwnas.latency.calibration import calibrate as calibrate_each
from hwnas.latency.kriging import OFFSET_ERROR, OPERATOR_ERROR, RUN_ERROR_MS, SIZE_ERROR, SIZE_LENGTH, fit
from hwnas.latency.quality import quality

Vector = NDArray[np.float64]


def calibrate(sums: Any, measured: Any, noise: float | None = None, *more: Any, **named: Any) -> Calibration:
    """On networks that were all measured as well."""
    return calibrate_each(sums, measured, None if noise is None else [noise] * len(sums), *more, **named)


def synthetic(rng: np.random.Generator, count: int, noise: float = 0.02) -> tuple[Vector, Vector]:
    """Sums of operators from 3 to 11 ms, and latencies of 0.93 times that and 0.4 ms, with relative noise."""
    sums = rng.uniform(3, 11, count)
    return sums, (0.93 * sums + 0.4) * (1 + noise * rng.standard_normal(count))


@settings(max_examples=50, deadline=None)
@given(st.floats(0.6, 1.5), st.floats(-0.3, 0.4), st.integers(20, 40))
def test_a_slope_and_an_offset_are_recovered(slope: float, share: float, count: int) -> None:
    """Though they are far from what is believed of them before: so many networks know better."""
    sums = np.linspace(3, 11, count)
    offset = 3 * slope * share
    found = calibrate(sums, slope * sums + offset)
    assert found.relative_error < 0.006
    for new in (3, 5, 7, 11):
        assert found.latency_ms(new) == pytest.approx(new * slope + offset, rel=0.02)
    assert found.latency_ms(20) == pytest.approx(20 * slope + offset, rel=0.05)


def test_networks_that_are_alike_tell_no_offset() -> None:
    """What all of them have is in the factor, and a network of half their sum takes half as long."""
    rng = np.random.default_rng(0)
    sums = 5 * (1 + 0.01 * rng.standard_normal(30))
    found = calibrate(sums, 1.2 * sums * (1 + 0.01 * rng.standard_normal(30)), 0.005)
    assert abs(found.offset_ms) < 0.05 * 5
    assert found.latency_ms(2.5) == pytest.approx(1.2 * 2.5, rel=0.05)


def test_leaving_one_out_really_leaves_it_out() -> None:
    sums, measured = synthetic(np.random.default_rng(0), 12)
    found = calibrate(sums, measured)
    for index in range(12):
        others = [i for i in range(12) if i != index]
        without = calibrate(sums[others], measured[others])
        # (the least and the largest sum say where the curve begins and ends, and the least what is believed of the
        # offset before)
        assert found.left_out_ms[index] == pytest.approx(without.latency_ms(sums[index]), rel=5e-3)
        if index not in (np.argmin(sums), np.argmax(sums)):
            assert found.left_out_ms[index] == pytest.approx(without.latency_ms(sums[index]), rel=5e-4)
        # whatever was measured of a network has no part in its own prediction, but that what its size takes more is
        # a share of what it took
        changed = measured.copy()
        changed[index] *= 1.1
        assert calibrate(sums, changed).left_out_ms[index] == pytest.approx(found.left_out_ms[index], rel=2e-3)


def mixed(rng: np.random.Generator, count: int, wrong: float = 0.1) -> tuple[list[dict[str, float]], Vector]:
    """Networks of 30 operators out of 60, ms of each, and latencies: 1.1 times what they really take, and 0.2.

    An operator takes otherwise than its entry says by `wrong`, relative.
    """
    entries = np.random.default_rng(0).uniform(0.02, 0.3, 60)
    truth = entries * (1 + wrong * np.random.default_rng(1).standard_normal(60))
    # as `calibration_archs` draws: some networks favour cheap operators, some expensive ones
    nets = [
        rng.choice(60, 30, replace=False, p=(weights := entries**tilt) / weights.sum())
        for tilt in np.linspace(-1.5, 1.5, count)
    ]
    measured = np.array([1.1 * truth[net].sum() + 0.2 for net in nets]) * (1 + 0.005 * rng.standard_normal(count))
    return [{f"op {i}": float(entries[i]) for i in net} for net in nets], measured


def predicted(found: Calibration, nets: list[dict[str, float]]) -> Vector:
    return np.array([found.latency_ms(found.corrected_ms(sum(net.values()), net)) for net in nets])


def test_leaving_one_out_leaves_what_it_says_of_operators_out_too() -> None:
    nets, measured = mixed(np.random.default_rng(0), 12)
    sums = [sum(net.values()) for net in nets]
    found = calibrate(sums, measured, 0.005, nets)
    assert len(found.factors) > 30
    for index in range(12):
        others = [i for i in range(12) if i != index]
        without = calibrate([sums[i] for i in others], measured[others], 0.005, [nets[i] for i in others])
        close = 5e-3 if index in (np.argmin(sums), np.argmax(sums)) else 1e-3
        assert found.left_out_ms[index] == pytest.approx(predicted(without, [nets[index]])[0], rel=close)


def test_a_network_is_expected_to_be_off_by_what_a_fit_without_it_says() -> None:
    """The closed form of leaving one out, and the variance that new networks get, are one."""
    nets, measured = mixed(np.random.default_rng(0), 30)
    counts = [dict.fromkeys(net, 1) for net in nets]
    sums = [sum(net.values()) for net in nets]
    found = calibrate(sums, measured, 0.005, nets, counts)
    assert found.noise is not None
    for index in (0, 7, 15, 29):
        own = MODEL_ERROR**2 + found.noise.of(float(measured[index])) ** 2
        others = [i for i in range(30) if i != index]
        without = calibrate(*([of[i] for i in others] for of in (sums, measured)), 0.005,
                            *([of[i] for i in others] for of in (nets, counts)))  # fmt: skip
        assert without.kriging is not None
        assert nets[index].keys() <= without.factors.keys()
        size = float(np.log(found.corrected_ms(sums[index], nets[index])))
        variance = own + without.kriging.variance(sums[index], float(measured[index]), nets[index], 30, size)
        assert found.expected[index] == pytest.approx(variance**0.5, rel=5e-3)  # sizes are a little other ones
        # and the width of its interval is in proportion
        corrected = {name: without.factors[name] * ms for name, ms in nets[index].items()}
        half = without.half_width_ms(float(measured[index]), MODEL_ERROR, sum(corrected.values()), corrected, 30)
        assert half / measured[index] == pytest.approx(
            without.half_width / without.relative_error * without.scale * variance**0.5, rel=5e-3
        )


@pytest.mark.parametrize("sums", [[1, 1, 1, 2], [1, 1.01, 1.02, 2], [1.0] * 9 + [2]])
def test_an_offset_that_one_network_alone_tells_leaves_figures(sums: list[float]) -> None:
    measured = 1.1 * np.array(sums) + 0.1
    found = calibrate(sums, measured, 0.005)
    assert 0 <= found.offset_ms <= 0.1
    assert found.half_width < 0.2
    factor, more = found.upper
    assert factor + more < 1.3


@pytest.mark.parametrize("seed", range(80))
def test_absurd_latencies_are_refused_or_give_figures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(4, 12))
    parts = [{f"op {i}": float(10 ** rng.uniform(-9, 9)) for i in rng.permutation(6)[:3]} for _ in range(count)]
    try:
        found = calibrate([sum(net.values()) for net in parts], 10 ** rng.uniform(-9, 9, count), 0.01, parts,
                          [dict.fromkeys(net, 1) for net in parts])  # fmt: skip
    except np.linalg.LinAlgError:  # a table that says so is called damaged
        return
    assert not math.isnan(found.relative_error)
    assert not any(map(math.isnan, (*found.expected, *found.upper)))
    assert all(rise > 0 for rise in (*found.curve.rises, *np.diff(found.curve.knots), *np.diff(found.curve.values)))


def test_where_corrected_sums_leave_no_latency_there_is_no_curve() -> None:
    """A negative offset is fitted on sums as they were measured; corrected ones may be less."""
    sums = np.array([3, 5, 7, 9.0])
    nothing = np.zeros((4, 0))
    found = fit(sums, sums - 1.2, nothing, np.full(4, 0.01), {}, np.zeros(0), np.log(sums))
    assert found.offset_ms < -0.9
    assert _curve(found, 0.2 * sums) == Curve()
    assert min(_curve(found, sums).rises) > 0


def test_networks_unlike_those_that_were_measured_are_less_certain() -> None:
    nets, measured = mixed(np.random.default_rng(0), 30)
    found = calibrate([sum(net.values()) for net in nets], measured, 0.005, nets)
    names = sorted({name for net in nets for name in net})
    widths = []
    for many in (15, 60, 600):
        net = {name: found.factors[name] for name in names[:10]}
        net = {name: ms * many / 150 for name, ms in net.items()}
        latency = found.latency_ms(sum(net.values()))
        widths.append(found.half_width_ms(latency, 0.005, sum(net.values()), net, many) / latency)
    assert min(widths) > found.half_width
    assert found.half_width_ms(0.0, 0.005, 0.0, {}, 0) == 0  # of no operators, where the offset is negative


def test_networks_correct_their_operators() -> None:
    """Whole networks tell which operators take longer than their entries say: unseen networks are predicted better."""
    plain, corrected, sure = [], [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        nets, measured = mixed(rng, 30)
        new, truth = mixed(rng, 50)
        sums = [sum(net.values()) for net in nets]
        plain.append(np.abs(predicted(calibrate(sums, measured, 0.005), new) / truth - 1).mean())
        found = calibrate(sums, measured, 0.005, nets)
        errors = np.abs(predicted(found, new) / truth - 1)
        corrected.append(errors.mean())
        sure.append((errors <= found.half_width).mean())
        assert all(LEAST_FACTOR < factor < 2 for factor in found.factors.values())
    assert np.mean(corrected) < 0.9 * np.mean(plain)
    assert 0.86 <= np.mean(sure) <= 0.96


def test_operators_that_are_right_are_left_alone() -> None:
    nets, measured = mixed(np.random.default_rng(3), 30, wrong=0.0)
    found = calibrate([sum(net.values()) for net in nets], measured, 0.005, nets)
    assert all(factor == pytest.approx(1, abs=0.06) for factor in found.factors.values())


def test_what_every_run_of_an_operator_costs_beside_it_is_calibrated() -> None:
    """Timing a kernel seems to cost less than it does: sums of many short operators are too high."""
    beside = 0.0005
    plain, counted = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        nets, _ = mixed(rng, 60)
        counts = [
            {name: int(n) for name, n in zip(net, rng.integers(1, 1 + rng.integers(1, 9), len(net)), strict=True)}
            for net in nets
        ]
        parts = [
            {name: 0.05 * n * net[name] for name, n in count.items()} for net, count in zip(nets, counts, strict=True)
        ]
        truth = np.array([sum(p.values()) - beside * sum(c.values()) for p, c in zip(parts, counts, strict=True)])
        sums = [sum(part.values()) for part in parts]
        for errors, more in ((plain, ()), (counted, (counts[:30],))):
            found = calibrate(sums[:30], truth[:30], 0.005, parts[:30], *more)
            errors.append(np.abs(predicted(found, parts[30:]) / truth[30:] - 1).mean())
    assert np.mean(counted) < 0.5 * np.mean(plain)


def test_intervals_are_as_wide_as_a_networks_operators_are_uncertain() -> None:
    """Half of the networks have operators that take another time from one network to the next."""
    held: dict[float, list[float]] = {0.006: [], 0.03: []}
    widths: dict[float, list[float]] = {0.006: [], 0.03: []}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        doubts = rng.permutation([0.006, 0.03] * 40)
        sums, measured = synthetic(rng, 80, noise=0.0)
        measured *= 1 + np.hypot(doubts, 0.005) * rng.standard_normal(80)
        found = calibrate(sums[:30], measured[:30], 0.005, model_errors=doubts[:30].tolist())
        for doubt, new, truth in zip(doubts[30:], sums[30:], measured[30:], strict=True):
            half = found.half_width_ms(found.latency_ms(new), doubt, new, {}, 0)
            held[doubt].append(abs(found.latency_ms(new) - truth) <= half)
            widths[doubt].append(half / found.latency_ms(new))
    assert all(0.86 <= np.mean(shares) <= 0.95 for shares in held.values())
    assert np.mean(widths[0.03]) > 3 * np.mean(widths[0.006])


def test_intervals_are_as_wide_as_networks_of_a_size_are_uncertain() -> None:
    """The shorter a network, the worse it is measured: its interval holds as often as a long one's."""
    held: dict[bool, list[bool]] = {True: [], False: []}
    widths: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sums = np.exp(rng.uniform(np.log(2), np.log(12), 80))
        noise = 0.03 * (2 / sums) * np.exp(0.4 * rng.standard_normal(80))
        measured = 1.1 * sums * (1 + noise * rng.standard_normal(80))
        found = calibrate_each(sums[:30], measured[:30], noise[:30].tolist(), model_errors=[0.002] * 30)
        for new, truth in zip(sums[30:], measured[30:], strict=True):
            latency = found.latency_ms(new)
            half = found.half_width_ms(latency, 0.002, new, {}, 0)
            if new < 3 or new > 8:
                held[new < 3].append(abs(latency - truth) <= half)
                widths[new < 3].append(half / latency)
    assert all(0.82 <= np.mean(shares) <= 0.95 for shares in held.values())
    assert np.mean(widths[True]) > 2 * np.mean(widths[False])


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.01, 5), st.one_of(st.none(), st.floats(0, 0.5))), min_size=1))
def test_model_errors_grow_with_the_spread_and_are_never_nothing(
    operators: list[tuple[int, float, float | None]],
) -> None:
    total = sum(runs * taken for runs, taken, _ in operators)
    found = model_error(total, operators)
    assert found >= LEAST_MODEL_ERROR
    wider = [(runs, taken, 2 * (spread or 0.5)) for runs, taken, spread in operators]
    assert model_error(total, wider) >= found
    # two runs of one operator are as uncertain as one run of each of two such operators
    assert model_error(total, [(1, t, s) for n, t, s in operators for _ in range(n)]) == pytest.approx(found)


def test_beyond_what_was_measured_networks_of_another_kind_have_the_nearest_ones_factor() -> None:
    sums = np.linspace(2, 6, 12)
    found = calibrate(sums, 1.05 * sums - 0.3)
    assert found.foreign_ms(4) == pytest.approx(found.latency_ms(4))
    assert found.foreign_ms(36) / 36 == pytest.approx(found.latency_ms(6) / 6)
    assert found.foreign_ms(0.2) / 0.2 == pytest.approx(found.latency_ms(2) / 2)
    assert calibrate([], []).foreign_ms(5) == 5


def test_operators_of_no_network_are_taken_for_usual_ones() -> None:
    """Where all entries are too high by what timing a run costs, so is one that no calibration network has."""
    rng = np.random.default_rng(0)
    nets, measured = mixed(rng, 30, wrong=0.0)
    nets = [{name: 1.25 * ms if int(name.split()[1]) % 2 else ms for name, ms in net.items()} for net in nets]
    found = calibrate([sum(net.values()) for net in nets], measured, 0.005, nets)
    weighted = sum(found.factors[name] * ms for net in nets for name, ms in net.items())
    assert found.usual_factor == pytest.approx(weighted / sum(sum(net.values()) for net in nets))
    assert found.factor_of(0.1) == found.factor_of(10) == found.usual_factor
    none = calibrate([1.0, 2, 3], [1.0, 2, 3])
    assert (none.usual_factor, none.factor_of(1.0)) == (1, 1)


def test_what_timing_a_run_costs_is_taken_off_operators_of_no_network_whatever_they_take() -> None:
    """0.3 us a run are a third of an operator that takes 1 us and a tenth of one that takes 3."""
    rng = np.random.default_rng(0)
    beside = 3e-4
    true = {f"op {i}": float(ms) for i, ms in enumerate(rng.uniform(4e-4, 3e-3, 40))}
    runs = [Counter(rng.choice(list(true), size=rng.integers(10, 60)).tolist()) for _ in range(30)]
    parts = [{name: n * (true[name] + beside) for name, n in ran.items()} for ran in runs]
    measured = [sum(n * true[name] for name, n in ran.items()) for ran in runs]
    sums = [sum(part.values()) for part in parts]
    found = calibrate(sums, measured, 0.005, parts, runs)
    for taken in (5e-4, 1e-3, 2e-3, 4e-3):
        corrected = found.slope * found.factor_of(taken + beside) * (taken + beside)
        assert corrected == pytest.approx(taken, rel=0.06)
    # most of what was timed of the smallest is what timing costs
    assert found.slope * found.factor_of(5e-5 + beside) * (5e-5 + beside) == pytest.approx(5e-5, abs=3e-5)
    assert found.factor_of(1e-5) == LEAST_FACTOR


def test_what_short_operators_cannot_give_is_found_elsewhere() -> None:
    """Timing a run costs 0.5 us; the shortest operators, two dozen in a network, seem to take hardly that."""
    rng = np.random.default_rng(1)
    beside = 5e-4
    true = {f"op {i}": float(ms) for i, ms in enumerate(rng.uniform(3e-4, 4e-3, 40))}
    true |= {f"short {i}": 2e-5 for i in range(4)}
    seen = {name: ms + (beside if name.startswith("op") else 0.9 * beside) for name, ms in true.items()}

    def network() -> Counter[str]:
        ops = rng.choice(40, size=rng.integers(15, 60))
        return Counter([f"op {i}" for i in ops] + [f"short {i}" for i in rng.integers(4, size=rng.integers(16, 32))])

    nets = [network() for _ in range(60)]
    parts = [{name: n * seen[name] for name, n in net.items()} for net in nets]
    truth = np.array([sum(n * true[name] for name, n in net.items()) for net in nets])
    sums = [sum(part.values()) for part in parts]
    found = calibrate(sums[:30], truth[:30], 0.003, parts[:30], nets[:30])
    least = [name for name, factor in found.factors.items() if factor == LEAST_FACTOR]
    assert least
    assert all(name.startswith("short") for name in least)
    assert not any(found.corrects(name) for name in least)
    # unseen ones are predicted as those that were left out are, small ones not too slow
    errors = predicted(found, parts[30:]) / truth[30:] - 1
    assert np.abs(errors).mean() < 0.01
    assert abs(errors[np.argsort(truth[30:])[:10]].mean()) < 0.005
    inside = predicted(found, parts[:30]) / truth[:30] - 1
    left_out = np.array(found.left_out_ms) / truth[:30] - 1
    assert np.abs(inside).mean() <= np.abs(left_out).mean()


def test_the_fit_is_that_of_a_linear_model_with_beliefs() -> None:
    """With operators at the least, and weights: the same as least squares with a row more for each belief."""
    rng = np.random.default_rng(5)
    true = {f"op {i}": float(ms) for i, ms in enumerate(rng.uniform(3e-4, 4e-3, 30))} | {"short": 2e-5}
    seen = {name: ms + (5e-4 if name.startswith("op") else 2e-4) for name, ms in true.items()}
    nets = [Counter(rng.choice(list(true), size=rng.integers(20, 80)).tolist()) for _ in range(30)]
    parts = [{name: n * seen[name] for name, n in net.items()} for net in nets]
    measured = np.array([sum(n * true[name] for name, n in net.items()) for net in nets])
    measured *= 1 + 0.01 * rng.standard_normal(30)
    found = calibrate([sum(part.values()) for part in parts], measured, 0.003, parts, nets)
    assert found.kriging is not None
    columns, weights = found.kriging.columns, found.kriging.weights
    assert len(columns) < len(seen)
    sums = np.array([sum(ms * (1 if k in columns else LEAST_FACTOR) for k, ms in part.items()) for part in parts])
    shares = np.array([[part.get(k, 0) * w for k, w in zip(columns, weights, strict=True)] for part in parts])
    runs = np.array([sum(n for k, n in net.items() if k in columns) for net in nets])
    # what one size is off by, as independent columns: the square root of the covariance
    sizes = found.kriging.sizes
    values, vectors = np.linalg.eigh(SIZE_ERROR**2 * np.exp(-0.5 * ((sizes[:, None] - sizes) / SIZE_LENGTH) ** 2))
    kept = values > 1e-9 * values.max()
    bends = vectors[:, kept] * np.sqrt(values[kept])
    design = np.column_stack([np.column_stack([sums, np.ones(30), shares, runs]) / measured[:, None], bends])
    assert found.noise is not None
    own = np.array([np.hypot(MODEL_ERROR, found.noise.of(taken)) for taken in measured.tolist()])
    believed = np.array([OFFSET_ERROR * sums.min(), *[OPERATOR_ERROR] * len(columns), RUN_ERROR_MS, *[1] * kept.sum()])
    rows = np.vstack([design / own[:, None], np.diag([0, *1 / believed])[1:]])
    slope, offset, *found_rest = np.linalg.lstsq(rows, np.concatenate([1 / own, np.zeros(len(believed))]))[0]
    rest, bend = found_rest[: len(columns) + 1], bends @ found_rest[len(columns) + 1 :]
    assert (found.slope, found.offset_ms) == (pytest.approx(slope, rel=1e-5), pytest.approx(offset, rel=1e-3))
    np.testing.assert_allclose(found.kriging.bend(sizes), bend, atol=1e-6)
    assert found.per_run_ms == pytest.approx(rest[-1] / slope, rel=1e-4)
    for (key, place), error in zip(columns.items(), rest, strict=False):
        assert found.factors[key] == pytest.approx(
            1 + (weights[place] * error + rest[-1] / seen[key]) / slope, rel=1e-5
        )
    # and how sure it is of a new network
    new = Counter(rng.choice(list(true), size=50).tolist())
    known = {key: n * seen[key] * found.factors[key] for key, n in new.items()}
    latency = found.latency_ms(sum(known.values()))
    row = np.zeros(design.shape[1])
    row[:2] = sum(n * seen[k] * (1 if k in columns else LEAST_FACTOR) for k, n in new.items()), 1
    row[[2 + columns[k] for k in new if k in columns]] = [
        n * seen[k] * weights[columns[k]] for k, n in new.items() if k in columns
    ]
    row[2 + len(columns)] = open_ = found.open_runs(new, found.factors)
    assert open_ == sum(n for k, n in new.items() if k in columns) < new.total()
    assert found.open_runs({"another": 3, "short": 2}, found.factors) == 3  # what nobody corrects it would
    row /= latency
    near = SIZE_ERROR**2 * np.exp(-0.5 * ((np.log(sum(known.values())) - sizes) / SIZE_LENGTH) ** 2)
    row[3 + len(columns) :] = near @ vectors[:, kept] / np.sqrt(values[kept])
    rest_of_it = SIZE_ERROR**2 - row[3 + len(columns) :] @ row[3 + len(columns) :]
    noise = found.noise.of(latency)
    variance = row @ np.linalg.inv(rows.T @ rows) @ row + rest_of_it + MODEL_ERROR**2 + noise**2
    half = found.half_width_ms(latency, MODEL_ERROR, sum(known.values()), known, open_)
    assert half / latency == pytest.approx(
        found.half_width / found.relative_error * found.scale * variance**0.5, rel=1e-4
    )


def test_networks_of_one_size_err_alike() -> None:
    """Small ones stay in the cache, large ones leave it: a law that bends by 3% is followed, and no ghost of one."""
    errors: dict[float, list[float]] = {0.0: [], 0.03: []}
    curved: dict[float, list[float]] = {0.0: [], 0.03: []}
    for bend, found_errors in errors.items():
        for seed in range(20):
            rng = np.random.default_rng(seed)
            sums = np.exp(rng.uniform(np.log(2), np.log(12), 130))
            truth = 1.1 * sums * (1 + bend * np.tanh(4 * np.log(sums / 5)))
            measured = truth * (1 + 0.005 * rng.standard_normal(130))
            found = calibrate(sums[:30], measured[:30], 0.005, model_errors=[0.002] * 30)
            found_errors += [abs(found.latency_ms(x) / y - 1) for x, y in zip(sums[30:], truth[30:], strict=True)]
            straight = found.slope * sums[30:] + found.offset_ms
            curved[bend] += np.abs(found.curve.at(straight) / straight - 1).tolist()
            rising = found.curve.at(np.linspace(0.1, 30, 500))
            assert (np.diff(rising) > 0).all()
    assert np.mean(errors[0.03]) < 0.006
    assert np.mean(errors[0.0]) < 0.003
    assert np.mean(curved[0.0]) < 0.35 * np.mean(curved[0.03])


def test_operators_err_by_a_share_of_what_they_take_not_of_what_timing_them_costs() -> None:
    """Networks of operators that are timed as twice what they take are predicted as well as intervals say."""
    held, widths, errors = [], [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        true = {f"op {i}": float(ms) for i, ms in enumerate(rng.uniform(2e-4, 2e-3, 60))}
        err = {name: 1 + 0.03 * rng.standard_normal() for name in true}
        nets = [Counter(rng.choice(list(true), size=rng.integers(30, 90)).tolist()) for _ in range(80)]
        parts = [{name: n * (true[name] + 6e-4) for name, n in net.items()} for net in nets]
        truth = np.array([sum(n * true[name] * err[name] for name, n in net.items()) for net in nets])
        truth *= 1 + 0.006 * rng.standard_normal(80)
        sums = [sum(part.values()) for part in parts]
        found = calibrate(sums[:30], truth[:30], 0.003, parts[:30], nets[:30], [0.005] * 30)
        for part, net, taken in zip(parts[30:], nets[30:], truth[30:], strict=True):
            known = {name: found.factors[name] * ms for name, ms in part.items() if name in found.factors}
            if len(known) == len(part):
                latency = found.latency_ms(sum(known.values()))
                half = found.half_width_ms(latency, 0.005, sum(known.values()), known, net.total())
                held.append(abs(latency - taken) <= half)
                widths.append(half / latency)
                errors.append(abs(latency / taken - 1))
    assert 0.88 <= np.mean(held) <= 0.97, np.mean(held)
    assert np.mean(widths) < 2.5 * np.mean(errors)


def test_the_error_is_out_of_sample() -> None:
    """With five networks the fit follows them: only left out they show how far the next one is off."""
    inside, outside = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        sums, measured = synthetic(rng, 5)
        found = calibrate(sums, measured)
        inside.append(np.sqrt(np.mean((found.slope * sums + found.offset_ms) / measured - 1) ** 2))
        outside.append(found.relative_error)
    assert np.mean(outside) > 0.02 > np.mean(inside)


@pytest.mark.parametrize("count", [6, 20])
def test_intervals_hold_new_networks_as_often_as_they_say(count: int) -> None:
    two_sided, one_sided = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        found = calibrate(*synthetic(rng, count))
        (new,), (truth,) = synthetic(rng, 1)
        predicted = found.latency_ms(new)
        two_sided.append(abs(truth - predicted) <= found.half_width * predicted)
        one_sided.append(truth <= predicted * (1 + found.upper_margin))
    assert 0.86 <= np.mean(two_sided) <= 0.97
    assert np.mean(one_sided) >= 0.98


def test_what_cannot_be_a_cost_is_not_fitted() -> None:
    """A negative offset or slope would price an architecture below nothing."""
    for measured in ([2, 4, 8, 16.0], [9, 7, 5, 3.0]):
        found = calibrate([3, 5, 7, 9], measured)
        assert found.slope * 3 + found.offset_ms > 0.5 * found.slope * 3 > 0
        rising = [found.latency_ms(new) for new in np.linspace(0.1, 30, 100)]
        assert rising[0] > 0
        assert (np.diff(rising) > 0).all()
    assert calibrate([3, 5, 7, 9], [9, 7, 5, 3.0]).offset_ms == 0
    equal = calibrate([5, 5, 5, 5, 5], [6, 6, 6.1, 5.9, 6])
    assert (equal.offset_ms, equal.latency_ms(5)) == (pytest.approx(0, abs=1e-9), pytest.approx(6, rel=1e-3))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_networks_give_a_factor_and_a_wide_interval_that_is_still_of_use(count: int) -> None:
    sums = np.array([4.0, 6, 8])[:count]
    found = calibrate(sums, 1.2 * sums)
    assert (found.slope, found.offset_ms) == (pytest.approx(1.2), 0)
    assert found.networks == count
    assert 0.1 < found.half_width < 1
    assert found.half_width < found.upper_margin < 1


def test_no_network_is_said_to_be_none() -> None:
    found = calibrate([], [])
    assert (found.slope, found.offset_ms, found.networks) == (1, 0, 0)
    assert found.relative_error == UNCALIBRATED_ERROR
    assert 0.2 < found.half_width < 0.6 < found.upper_margin + 0.1 < 1
    assert quality([found]).networks == 0
    assert quality([]).mape is None


def test_more_networks_never_make_the_assumed_interval_wider() -> None:
    widths = []
    for count in (0, 1, 2, 3, 8, 30):
        sums = np.linspace(4, 9, count)
        widths.append(calibrate(sums, 1.1 * sums).half_width)
    assert (np.diff(widths) <= 1e-12).all()


def test_quality_figures() -> None:
    sums, measured = synthetic(np.random.default_rng(0), 20, noise=0.01)
    found = quality([calibrate(sums, measured)])
    assert found.networks == 20
    assert found.mape is not None
    assert 0.002 < found.mape < 0.02
    assert found.within_5 == found.within_10 == 1
    assert found.kendall_tau is not None
    assert found.kendall_tau > 0.9
    assert found.interval_coverage is not None
    assert found.interval_coverage > 0.8
    two = quality([calibrate(sums, measured), calibrate(sums[:8], 3 * measured[:8])])
    assert two.networks == 28


@pytest.mark.parametrize("measured", [[1.0] * 5, [1.0], [1.0, 2.0]])
def test_quality_is_a_number_or_none_and_never_nan(measured: list[float]) -> None:
    found = asdict(quality([calibrate([2.0] * len(measured), measured)]))
    assert all(value is None or math.isfinite(value) for value in found.values())
    json.dumps(found, allow_nan=False)
