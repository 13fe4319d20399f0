"""`check_table`: whether a table still says what the device does.

A sample of its operators and some of its calibration networks are measured again, interleaved with the reference
network, into a throw-away table, so that both sides are estimated in the same way.

The machine being faster or slower as a whole is no drift. How much it is, is not known exactly: the reference network
says one thing and the clock, which knows of no change, another; beside other work the reference is slowed down where
small networks, which stay in the cache, are not. So the level is taken from between the two, where the networks fit
best, and what no level in between explains has drifted.
"""

from __future__ import annotations

import math
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.devices import DeviceProfile, list_profiles
from hwnas.errors import HwnasError
from hwnas.latency import trust
from hwnas.latency.build import measure_again
from hwnas.latency.commands import bound_options
from hwnas.latency.table import LatencyTable, MeasuredNetwork
from hwnas.measure.process import MeasuringProcess
from hwnas.measure.statistics import CONFIDENCE, Estimate
from hwnas.network import Network
from hwnas.progress import Progress

NETWORK_BOUND = 0.03
"""The median of the networks' ratios may be off by so much: about what a budget's margin forgives."""

OPERATOR_BOUND = 0.05
"""A difference of one operator within it is none, however sure it is: where memory lies changes with every loading."""

CHANCE = 0.99
"""As many operators outside their intervals as chance gives with this probability are forgiven."""

LEAST_S = 8.0
"""A check lasts at least so long, since the regimes of a machine last for seconds."""

WORST = 5
"""Entries that a verdict names."""


@dataclass(frozen=True, slots=True)
class Rechecked:
    """One entry then and now, in ms; `now` is at the level of the table.

    Attributes:
        ratio: now / then; None where it cannot be measured any more.
        outside: further apart than the joint 90% interval and the bound allow.
        failure: why it could not be measured now.
    """

    role: str
    name: str
    then_ms: float
    then_low_ms: float
    then_high_ms: float
    now_ms: float | None
    now_low_ms: float | None
    now_high_ms: float | None
    ratio: float | None
    outside: bool
    failure: str | None = None

    @property
    def distance(self) -> float:
        """How far the two are apart, in either direction; infinite where there is no second one."""
        return math.inf if self.ratio is None else abs(math.log(self.ratio))


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The verdict of a check.

    Attributes:
        reference: time of the reference network now over then.
        level: between that and 1: the machine's time now over then, which is divided out.
        network_ratio: median of the networks' ratios; None where the table has none to measure.
        outside, allowed: operators outside their intervals, and how many chance allows.
        entries: the furthest apart first.
        reasons: why it counts as drifted; empty where it does not.
        command: what profiles anew.
    """

    lut: str
    device: str
    seed: int
    reference: float
    level: float
    network_ratio: float | None
    outside: int
    allowed: int
    entries: tuple[Rechecked, ...]
    reasons: tuple[str, ...]
    command: str

    @property
    def drifted(self) -> bool:
        """Whether the table should be made anew."""
        return bool(self.reasons)

    def to_json(self) -> dict[str, Any]:
        """The document of ``hwnas lut check --json``."""
        return {**asdict(self), "drifted": self.drifted}


def check_table(
    path: Path, profile: DeviceProfile, *, sample: int = 20, seed: int = 0, progress: Progress
) -> CheckReport:
    """Measures a random sample of the table at `path` again and compares. Nothing is written to it.

    Args:
        path: the table.
        profile: how it was measured.
        sample: entries to measure, about a quarter of them networks.
        seed: of the sample.
        progress: told of the measuring.

    Raises:
        HwnasError: the table belongs to another device or set-up, holds nothing, or the device cannot be measured.
    """
    with LatencyTable.open(path) as then:
        if then.header.get("imported"):
            raise HwnasError(f"{path} was imported, not measured here: there is nothing to measure again")
        with MeasuringProcess(profile, progress=progress) as process:
            then.check_bound_to(profile, process.describe)
        operators, networks = pick(then, sample, seed)
        alone, covers = _places(then, operators, seed)
        again = {f"{index}": net.network for index, net in enumerate(networks) if net.network is not None}
        with tempfile.TemporaryDirectory(prefix="hwnas-check-") as folder:
            copy = Path(folder) / "check.lut"
            ops = [trust.operator(path, key) for key in alone]
            measure_again(_thorough(profile), copy, ops, covers, again, progress, least_s=LEAST_S)
            with LatencyTable.open(copy) as now:
                pairs, reference, error = _pairs(then, now, operators, networks)
        return _report(then, seed, pairs, reference, error)


def pick(table: LatencyTable, sample: int, seed: int) -> tuple[list[str], list[MeasuredNetwork]]:
    """Keys of operators and networks, `sample` of them where there are so many, in random order.

    Raises:
        HwnasError: the table holds none.
    """
    rng = np.random.default_rng(seed)
    operators = list(table.operators())
    networks = [net for net in table.networks() if net.network is not None]
    if not (operators or networks) or table.reference() is None:
        raise HwnasError(
            f"{table.path} holds no measurements to check: fill it with 'hwnas profile --lut {table.path}'"
        )
    wanted = min(len(networks), max(1, math.ceil(sample / 4)))
    wanted = max(wanted, min(len(networks), sample - len(operators)))
    chosen = rng.permutation(len(networks))[:wanted]
    keys = rng.permutation(len(operators))[: max(0, sample - wanted)]
    return [operators[index] for index in keys], [networks[index] for index in chosen]


def _places(table: LatencyTable, operators: Sequence[str], seed: int) -> tuple[list[str], dict[str, Network]]:
    """Where operators were timed, to time them there again: which alone, and networks that have the others."""
    rng = np.random.default_rng([seed, 1])
    inside = table.inside()
    names: dict[str, None] = {}
    for key in operators:
        if key in inside and not inside[key] & names.keys():
            names[str(rng.choice(sorted(inside[key])))] = None
    covers = {name: trust.network(table.path, table.content("cover", name)) for name in names}
    return [key for key in operators if key not in inside], covers


def _thorough(profile: DeviceProfile) -> DeviceProfile:
    """As the table was measured, and no less often than tight entries need for a fair comparison."""
    timing = profile.timing
    return profile.model_copy(
        update={"timing": timing.model_copy(update={"max_passes": max(timing.min_passes, timing.max_passes // 2)})}
    )


@dataclass(frozen=True, slots=True)
class Pair:
    """An entry then and, by the clock, now; None with a failure where it cannot be measured any more."""

    role: str
    name: str
    then: Estimate
    now: Estimate | None
    failure: str | None = None


def _pairs(
    then: LatencyTable, now: LatencyTable, operators: Sequence[str], networks: Sequence[MeasuredNetwork]
) -> tuple[list[Pair], float, float]:
    """Every entry, the reference's time now over then, and the relative error of that."""
    before, after = then.reference(), now.reference()
    if before is None or after is None:
        raise HwnasError("the reference network was not measured: run the check again")
    known, measured, failures = then.operators(), now.operators(), now.failures()
    pairs = [Pair("operator", key, known[key], measured.get(key), failures.get(key)) for key in operators]
    renamed = {net.name.split(" ")[0]: net.measured for net in now.networks()}
    pairs += [Pair("network", net.name, net.measured, renamed.get(str(index))) for index, net in enumerate(networks)]
    reference = after.latency_ms / before.latency_ms
    return pairs, reference, math.hypot(before.relative_error, after.relative_error)


def find_level(pairs: Sequence[Pair], reference: float) -> float:
    """The machine's time now over then: between 1 and `reference`, where the networks (else the operators) fit best."""
    networks = [pair for pair in pairs if pair.role == "network" and pair.now is not None]
    ratios = [pair.now.latency_ms / pair.then.latency_ms for pair in networks or pairs if pair.now is not None]
    if not ratios:
        return reference
    return float(np.clip(np.median(ratios), min(1.0, reference), max(1.0, reference)))


def _rechecked(pair: Pair, level: float, level_error: float) -> Rechecked:
    then = pair.then
    ends = (then.latency_ms, then.low_ms, then.high_ms)
    if pair.now is None:
        why = pair.failure or "it cannot be measured any more"
        return Rechecked(pair.role, pair.name, *ends, None, None, None, None, True, why)
    now = pair.now.scaled(1 / level)
    joint = math.sqrt(then.relative_error**2 + now.relative_error**2 + level_error**2)
    bound = max(joint, OPERATOR_BOUND if pair.role == "operator" else NETWORK_BOUND)
    ratio = now.latency_ms / then.latency_ms
    outside = abs(math.log(ratio)) > math.log1p(bound)
    return Rechecked(pair.role, pair.name, *ends, now.latency_ms, now.low_ms, now.high_ms, ratio, outside)


def _report(table: LatencyTable, seed: int, pairs: Sequence[Pair], reference: float, error: float) -> CheckReport:
    level = find_level(pairs, reference)
    entries = [_rechecked(pair, level, error) for pair in pairs]
    ratio, outside, allowed, reasons = judge(entries)
    return CheckReport(
        lut=str(table.path),
        device=str(table.header["device"]),
        seed=seed,
        reference=reference,
        level=level,
        network_ratio=ratio,
        outside=outside,
        allowed=allowed,
        entries=tuple(sorted(entries, key=lambda entry: -entry.distance)),
        reasons=tuple(reasons),
        command=profile_anew(table),
    )


def judge(entries: Sequence[Rechecked]) -> tuple[float | None, int, int, list[str]]:
    """The networks' median ratio, operators outside, how many are allowed, and why the table counts as drifted."""
    from scipy.stats import binom

    ratios = [entry.ratio for entry in entries if entry.role == "network" and entry.ratio is not None]
    operators = [entry for entry in entries if entry.role == "operator"]
    ratio = float(np.median(ratios)) if ratios else None
    outside = sum(entry.outside for entry in operators)
    allowed = int(binom.ppf(CHANCE, len(operators), 1 - CONFIDENCE)) if operators else 0
    reasons = []
    if ratio is not None and abs(ratio - 1) > NETWORK_BOUND:
        reasons.append(f"networks take {ratio:.3f} times what the table says (bound: {NETWORK_BOUND:.0%})")
    if outside > allowed:
        reasons.append(f"{outside} of {len(operators)} operators are outside their intervals (chance allows {allowed})")
    failed = [entry.name for entry in entries if entry.failure is not None]
    if failed:
        reasons.append(f"{len(failed)} of {len(entries)} entries cannot be measured any more")
    return ratio, outside, allowed, reasons


def profile_anew(table: LatencyTable) -> str:
    """The command that makes a table of the same device, spaces and models, beside this one."""
    header = table.header
    shipped = {profile.name for profile in list_profiles()}
    name = str(header["profile"]["name"])
    parts = ["hwnas", "profile", "--device", name if name in shipped else str(header["profile"].get("device", "cpu"))]
    sources: dict[tuple[str, str], None] = {}
    nets: dict[str, MeasuredNetwork] = {}
    for net in table.networks():
        if match := re.fullmatch(r"(\S+) #\d+(?: [0-9a-f]{12})?", net.name):
            sources["--space", match[1]] = None
            nets[match[1]] = net
        else:
            sources["--model", re.sub(r" [0-9a-f]{12}$", "", net.name)] = None
    for flag, value in sources:
        parts += [flag, value]
    parts += _unusual(nets)
    target = table.path.with_name(f"{table.path.stem}-new{table.path.suffix}")
    return f"{shlex.join(parts)} {bound_options(header)} --lut {shlex.quote(str(target))}"


def _unusual(nets: Mapping[str, MeasuredNetwork]) -> list[str]:
    """The options that say the images' size and the number of classes, where they are not the spaces' own.

    Args:
        nets: one of each space, by its name.
    """
    from hwnas.spaces import find_space

    found: dict[str, str] = {}
    for name, net in nets.items():
        try:
            space = find_space(name)
        except HwnasError:  # a space of another hwnas
            continue
        if net.input_shape != space.input_shape and len(net.input_shape) == 3:
            found.setdefault("--image-size", str(net.input_shape[1]))
        if net.network is not None and net.network.nodes:
            node, port = net.network.output
            classes = net.network.nodes[node].op.outputs[port][0]
            if classes != space.num_classes:
                found.setdefault("--num-classes", str(classes))
    return [word for option in found.items() for word in option]
