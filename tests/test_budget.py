"""Budgets as they are typed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.budget import UNITS, Budget, BudgetSpec, format_cost, parse_budget
from hwnas.costs import Cost, Prices
from hwnas.errors import UsageError

PRICES = Prices(1.0, np.array([[1.0, 3.0], [2.0, np.inf]]))


def _cost(name: str) -> Cost:
    return Cost(name, PRICES, Prices(2.0, PRICES.choices))


def _no_zoo(name: str) -> float:
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("cost", "text", "limit"),
    [
        ("latency", "17ms", 17.0),
        ("latency", "1.2s", 1200.0),
        ("latency", "800us", 0.8),
        ("latency", "800µs", 0.8),
        ("latency", "17 ms", 17.0),
        ("latency", "60%", 3.6),
        ("macs", "330M", 330e6),
        ("macs", "330m", 330e6),
        ("macs", "1.5G", 1.5e9),
        ("macs", "330000000", 330e6),
        ("params", "4.2M", 4.2e6),
        ("params", "50%", 3.0),
        ("bytes", "12MB", 12e6),
        ("bytes", "800 kB", 800e3),
        ("bytes", "512b", 512.0),
        ("bytes", "1.5g", 1.5e9),
        ("bitops", "6G", 6 * 2.0**30),
    ],
)
def test_quantities(cost: str, text: str, limit: float) -> None:
    (spec,) = parse_budget(cost, text)
    budget = spec.resolve(_cost(cost), _no_zoo)
    assert budget == Budget(cost, pytest.approx(limit), text)


def test_as_much_as_a_net_of_the_zoo() -> None:
    (spec,) = parse_budget("latency", "zoo:mobilenet-v2")
    assert spec == BudgetSpec("latency", "zoo:mobilenet-v2", zoo="mobilenet-v2")
    assert spec.resolve(_cost("latency"), {"mobilenet-v2": 12.5}.__getitem__).limit == 12.5


def test_lists() -> None:
    specs = parse_budget("latency", "17ms, 0.02s,60%,zoo:proxyless-gpu")
    assert [spec.text for spec in specs] == ["17ms", "0.02s", "60%", "zoo:proxyless-gpu"]


@pytest.mark.parametrize("text", ["17", "17.5", "0.3"])
def test_a_bare_number_is_no_latency_and_the_forms_are_shown(text: str) -> None:
    with pytest.raises(UsageError, match=r"without a unit: write 17ms, 1\.2s, 800us, 60%.*zoo:NAME"):
        parse_budget("latency", text)


@pytest.mark.parametrize("cost", UNITS)
@pytest.mark.parametrize(
    "text",
    ["", ",", "17ms,", "ms", "-5ms", "-3", "0ms", "0", "0%", "17 parsecs", "1e3ms", "nan", "inf", "zoo:", "zoo: x",
     "1" + "0" * 400, "17ms; rm", "٣ms", "1_000"],
)  # fmt: skip
def test_nonsense_is_a_usage_error_of_one_line(cost: str, text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_budget(cost, text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@given(st.sampled_from(sorted(UNITS)), st.text(max_size=12))
def test_any_text_parses_to_a_positive_limit_or_is_a_usage_error(cost: str, text: str) -> None:
    try:
        specs = parse_budget(cost, text)
    except UsageError:
        return
    assert all(spec.zoo or 0 < spec.value < math.inf for spec in specs)


@given(
    cost=st.sampled_from(sorted(UNITS)),
    number=st.decimals(min_value="0.001", max_value="999999", places=3),
    data=st.data(),
)
def test_a_quantity_means_its_number_times_its_unit(cost: str, number: object, data: st.DataObject) -> None:
    unit = data.draw(st.sampled_from(sorted(UNITS[cost])))
    if cost == "latency" or unit:
        (spec,) = parse_budget(cost, f"{number}{unit}")
        assert spec.value == pytest.approx(float(str(number)) * UNITS[cost][unit])


def test_a_budget_is_resolved_by_its_own_cost_only() -> None:
    with pytest.raises(ValueError, match="latency cannot be resolved by the cost macs"):
        parse_budget("latency", "17ms")[0].resolve(_cost("macs"), _no_zoo)


def test_costs_are_written_in_their_unit() -> None:
    assert format_cost("latency", 0.3123) == "0.312 ms"
    assert format_cost("latency", 1200) == "1.2 s"
    assert format_cost("macs", 330e6) == "330M"
    assert format_cost("macs", 1.5e9) == "1.5G"
    assert format_cost("bitops", 6 * 2**30) == "6G"
    assert str(Budget("macs", 330e6, "330M")) == "macs <= 330M"
