"""Budgets as they are typed: ``17ms``, ``330M``, ``60%``, ``zoo:mobilenet-v2``, and lists of them by comma."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from hwnas.costs import Cost
from hwnas.errors import UsageError

LATENCY_UNITS_MS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
"""What each unit of a latency is in milliseconds."""

_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_BIT_COUNTS = {"": 1.0, "k": 2.0**10, "m": 2.0**20, "g": 2.0**30}
_BYTES = {prefix + unit: value for prefix, value in _COUNTS.items() for unit in ("", "b") if prefix or unit}
UNITS = {
    "latency": LATENCY_UNITS_MS,
    "macs": _COUNTS,
    "params": _COUNTS,
    "bytes": {"": 1.0, **_BYTES},
    "bitops": _BIT_COUNTS,
}
"""The costs that a budget can limit and their units. The prefixes of BitOps are binary, as in the papers' tables."""

FORMS = {
    "latency": "17ms, 1.2s, 800us, 60% (of the most expensive architecture) or zoo:NAME (as much as that net)",
    "macs": "330M, 1.5G, 330000000, 60% (of the most expensive architecture) or zoo:NAME (as much as that net)",
    "params": "4.2M, 4200000, 60% (of the most expensive architecture) or zoo:NAME (as much as that net)",
    "bytes": "12MB, 800kB, 60% (of the most expensive architecture) or zoo:NAME (as much as that net)",
    "bitops": "6.3G (G is 2^30), 60% (of the most expensive architecture) or zoo:NAME (as much as that net)",
}
"""What can be typed, for messages and help."""

_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Zµ%]*)", re.ASCII)
_ZOO = re.compile(r"zoo:(\S+)")


@dataclass(frozen=True, slots=True)
class Budget:
    """An upper limit on one cost.

    Attributes:
        cost: ``latency``, ``macs``, ``params``, ``bytes`` (of traffic) or ``bitops``.
        limit: in ms for latency, else a plain count. What costs exactly this much meets the budget.
        text: as it was typed.
    """

    cost: str
    limit: float
    text: str

    def __str__(self) -> str:
        return f"{self.cost} <= {format_cost(self.cost, self.limit)}"


@dataclass(frozen=True, slots=True)
class BudgetSpec:
    """A budget as typed, before it is known what it is a share of.

    Attributes:
        cost: which cost it limits.
        text: as it was typed.
        value: the limit; with `share` a fraction of what the most expensive architecture costs.
        share: whether `value` is a fraction.
        zoo: the net of the zoo whose cost is the limit; empty where `value` says it.
    """

    cost: str
    text: str
    value: float = 0.0
    share: bool = False
    zoo: str = ""

    def resolve(self, cost: Cost, zoo_cost: Callable[[str], float]) -> Budget:
        """The limit as a number.

        Args:
            cost: of the space that is searched, of the same name.
            zoo_cost: what a net of the zoo costs, in the same unit; asked only where the budget names one.

        Raises:
            ValueError: `cost` is another cost than the one that the budget limits.
        """
        if cost.name != self.cost:
            raise ValueError(f"a budget for {self.cost} cannot be resolved by the cost {cost.name}")
        return self.resolve_to(lambda: cost.prices.total_of(cost.prices.dearest()), zoo_cost)

    def resolve_to(self, dearest: Callable[[], float], zoo_cost: Callable[[str], float]) -> Budget:
        """As `resolve`, from what the most expensive architecture costs; asked only where the budget is a share."""
        if self.zoo:
            return Budget(self.cost, zoo_cost(self.zoo), self.text)
        return Budget(self.cost, self.value * dearest() if self.share else self.value, self.text)


def parse_budget(cost: str, text: str) -> list[BudgetSpec]:
    """The budgets in `text`, one or several by comma.

    Raises:
        UsageError: it is no quantity of that cost; the message shows the forms.
    """
    return [_parse_one(cost, part.strip()) for part in text.split(",")]


def _parse_one(cost: str, text: str) -> BudgetSpec:
    units = UNITS[cost]
    if match := _ZOO.fullmatch(text):
        return BudgetSpec(cost, text, zoo=match[1])
    match = _QUANTITY.fullmatch(text)
    if not match:
        raise UsageError(f"{text[:60]!r} is no budget for {cost}: write {FORMS[cost]}")
    number, unit = float(match[1]), match[2] if cost == "latency" else match[2].lower()
    if cost == "latency" and not unit:
        raise UsageError(f"{text[:60]!r} is no latency without a unit: write {FORMS[cost]}")
    if unit != "%" and unit not in units:
        raise UsageError(f"{match[2][:20]!r} is no unit of {cost}: write {FORMS[cost]}")
    value = number / 100 if unit == "%" else number * units[unit]
    if not 0 < value < math.inf:
        raise UsageError(f"{text[:60]!r}: a budget for {cost} must be above zero")
    return BudgetSpec(cost, text, value, share=unit == "%")


def format_cost(cost: str, value: float) -> str:
    """`value` of a cost for people, in its unit: ``0.31 ms``, ``330M``."""
    if cost == "latency":
        return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.4g} s"
    prefixes, unit = _BIT_COUNTS if cost == "bitops" else _COUNTS, "B" if cost == "bytes" else ""
    for prefix in ("g", "m", "k"):
        if abs(value) >= prefixes[prefix]:
            return f"{value / prefixes[prefix]:.4g}{prefix.upper() if prefix != 'k' else 'k'}{unit}"
    return f"{value:.4g}{unit}"


def at_least(cost: str, value: float) -> str:
    """`value` for people, rounded up so far that what is read can be typed as a budget."""
    for step in range(8):
        text = format_cost(cost, value * (1 + 0.0015 * step))
        try:
            if parse_budget(cost, text)[0].value >= value:
                return text
        except UsageError:  # too small or too large for the usual form
            break
    return format_cost(cost, value)
