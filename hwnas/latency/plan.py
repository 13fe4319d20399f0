"""What a profile measures: the networks that every table has, what spaces and models need, what of it is missing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hwnas.costs import macs_cost
from hwnas.devices import DeviceProfile
from hwnas.latency.covers import TILT, tilted_arch
from hwnas.latency.levels import LEAST_QUIET
from hwnas.latency.lowering import Lower, blocked_tensors
from hwnas.latency.table import LatencyTable
from hwnas.latency.writer import TableWriter
from hwnas.measure.onnx_models import network_outline, op_outline, weight_bytes
from hwnas.measure.passes import Entry, is_open
from hwnas.measure.process import Subject
from hwnas.network import INPUT, Network, Node
from hwnas.ops import Op, Shape
from hwnas.spaces.base import Arch, Space

CALIBRATION_NETWORKS = 30
"""Architectures of each space that are measured as whole networks."""

COVER_VISITS = 5
"""Visits of each network whose kernels are timed; each kernel is in at least two of them, mostly in many more."""

MORE_COVER_VISITS, MOST_COVER_VISITS = 4, 40
"""Where too few of these were made while the machine was quiet: so many more at a time, so many at most."""

COMPANY = 7
"""Networks that are visited beside what is added to a table later."""


def reference_network() -> Network:
    """The network that is timed in every pass: MobileNetV2 for 128 pixel images, a few ms on a CPU core."""
    from hwnas.zoo import ZOO

    return replace(ZOO["mobilenet-v2"], input_shape=(3, 128, 128)).network()


def overhead_network() -> Network:
    """As good as nothing: what one run costs before any operator."""
    op = Op.activation((1, 1, 1), "relu")
    return Network((1, 1, 1), (Node(op, (INPUT,)),), (0, 0))


def calibration_archs(space: Space, count: int, seed: int = 0) -> list[Arch]:
    """`count` architectures from about the cheapest to about the most expensive of a space.

    Uniform sampling would crowd around the mean. Here architecture i favours expensive or cheap choices with a strength
    that runs over the architectures, by the choices' MACs.
    """
    rng = np.random.default_rng([seed, 20])
    prices = macs_cost(space).prices.choices
    found: dict[Arch, None] = {}
    tilts = np.linspace(-TILT, TILT, count)
    attempt = 0
    while len(found) < min(count, space.size) and attempt < 50 * count:
        found.setdefault(tilted_arch(space, prices, float(tilts[min(len(found), count - 1)]), rng))
        attempt += 1
    return list(found)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be known after a profile.

    Attributes:
        ops: kernels, as the runtime runs them.
        covers: networks inside which kernels are timed, by name.
        networks: measured whole, to calibrate on, by name.
        company: networks of the table that are visited again beside covers, so that the machine's regimes can be told.
    """

    ops: tuple[Op, ...]
    covers: Mapping[str, Network]
    networks: Mapping[str, Network]
    company: Mapping[str, Network] = field(default_factory=dict)


def entries_of(
    table: TableWriter, profile: DeviceProfile, plan: Plan, lower: Lower
) -> tuple[dict[tuple[str, str], Entry], list[tuple[str, str]]]:
    """Entries by (role, name), and those of them that still need measuring.

    The reference keeps them company; networks that have their visits may need more once all is seen (`unsure_entries`).
    """
    batch, block = profile.batch_size, int(table.header.get("channel_block", 0))
    subjects: dict[tuple[str, str], Subject] = {}
    content: dict[tuple[str, str], dict[str, Any]] = {}
    plain = {("reference", "reference"): reference_network()}
    plain |= {("network", entry_name(name, network)): network for name, network in plan.networks.items()}
    failed_covers = table.failed("cover")
    covers = {entry_name(name, network): network for name, network in plan.covers.items()}
    if covers:  # what the profiler itself costs
        covers = {"overhead": overhead_network(), **covers}
    plain |= {("cover", name): network for name, network in covers.items() if name not in failed_covers}
    inside = set(table.inside())
    for name, network in covers.items():
        if name not in failed_covers:
            inside.update(op.key for op in lower(network))
    alone = {op.key: op for op in plan.ops if op.key not in inside}
    if alone:
        plain["overhead", "overhead"] = overhead_network()
    for (role, name), network in plain.items():
        subjects[role, name] = whole_subject(role, name, network, batch)
        content[role, name] = network.to_json()
    for key, op in alone.items():
        subjects["operator", key] = Subject(
            f"operator {key}",
            "operator",
            lambda op=op: op_outline(op, batch_size=batch, blocked=blocked_tensors(op, block)),  # type: ignore[misc]
            4 * op.traffic_bytes(4, batch),
        )
        content["operator", key] = {}
    # more visits than there are passes would leave covers open for ever: each profile would measure them again
    cover_visits = min(COVER_VISITS, profile.timing.max_passes)
    entries = {
        (role, name): Entry(
            subject,
            visits=table.visits(role, name),
            reference=role == "reference",
            passes={"cover": cover_visits, "network": profile.timing.min_passes}.get(role, 0),
        )
        for (role, name), subject in subjects.items()
    }
    for name, network in plan.company.items():
        visits = table.visits("network", name)
        entries["network", name] = Entry(
            whole_subject("network", name, network, batch), visits=visits, passes=len(visits)
        )
    failed = {("operator", key) for key in table.failures()}
    todo = [
        name
        for name, entry in entries.items()
        if not entry.reference and (name in failed or is_open(entry, profile.timing))
    ]
    if todo:
        for (role, name), data in content.items():
            table.add_entry(role, name, data)
    if any(role == "cover" for role, _ in todo):
        for name in plan.company:
            entries["network", name].passes += cover_visits
            todo.append(("network", name))
    kept = {name: entry for name, entry in entries.items() if name in todo or name[0] in ("reference", "network")}
    return kept, todo


def unsure_entries(
    table: LatencyTable, profile: DeviceProfile, plan: Plan, entries: Mapping[tuple[str, str], Entry]
) -> dict[tuple[str, str], Entry]:
    """Networks that are not certain enough yet, with more visits granted to each, and what has to be visited with them.

    Those that are measured whole have too wide an interval, regimes of the machine taken off; those whose kernels are
    timed met too few quiet moments. Empty when all are certain, or have as many visits as the profile allows.
    """
    timing = profile.timing
    widths = {net.name: net.measured.relative_error for net in table.networks()}
    step = max(1, timing.min_passes // 3)
    unsure = {}
    for name, network in plan.networks.items():
        key = ("network", entry_name(name, network))
        entry = entries.get(key)
        if entry is not None and entry.failure is None and widths.get(key[1], 0.0) > timing.target_error:
            entry.passes = min(timing.max_passes, len(entry.visits) + step)
            if is_open(entry, timing):
                unsure[key] = entry
    company: dict[tuple[str, str], Entry] = {}
    for name, network in plan.covers.items():
        key = ("cover", entry_name(name, network))
        entry = entries.get(key)
        if entry is not None and entry.failure is None and table.quiet_visits(*key) < LEAST_QUIET:
            entry.passes = min(timing.max_passes, MOST_COVER_VISITS, len(entry.visits) + MORE_COVER_VISITS)
            if is_open(entry, timing):
                unsure[key] = entry
                company = _company_in(plan, entries)
    for entry in company.values():
        entry.passes = max(entry.passes, len(entry.visits) + MORE_COVER_VISITS)
    unsure |= company
    reference = {key: entry for key, entry in entries.items() if entry.reference}
    return {**unsure, **reference} if unsure else {}


def _company_in(plan: Plan, entries: Mapping[tuple[str, str], Entry]) -> dict[tuple[str, str], Entry]:
    """Entries of networks that are visited beside covers: the plan's company, else some that it measures whole."""
    names = list(plan.company) or [entry_name(name, network) for name, network in plan.networks.items()]
    known = {("network", name): entries.get(("network", name)) for name in names}
    usable = {key: entry for key, entry in known.items() if entry is not None and entry.failure is None}
    return dict(list(usable.items())[:COMPANY])


def operators_of(todo: Sequence[tuple[str, str]], plan: Plan, lower: Lower) -> set[str]:
    """Operators that are measured with the entries of `todo`."""
    covers = {entry_name(name, network): network for name, network in plan.covers.items()}
    covers["overhead"] = overhead_network()
    found = {name for role, name in todo if role == "operator"}
    for role, name in todo:
        if role == "cover":
            found.update(op.key for op in lower(covers[name]))
    return found


def entry_name(name: str, network: Network) -> str:
    # named by content too: a network that was defined otherwise before is another one
    return f"{name} {digest_of(network)}"


def whole_subject(role: str, name: str, network: Network, batch: int) -> Subject:
    """A network as something to measure, whole or kernel by kernel."""
    return Subject(
        f"{role} {name}",
        "kernels" if role == "cover" else "network",
        lambda: network_outline(network, batch_size=batch),
        weight_bytes(network.ops) * 5 // 4 + (0 if role == "cover" else session_bytes(network, batch)),
    )


def session_bytes(network: Network, batch: int) -> int:
    """About what a loaded session of `network` holds beside its weights: tensors, of which few are alive at once."""
    return 2 * max((op.traffic_bytes(4, batch) for op in network.ops), default=0)


def digest_of(network: Network) -> str:
    text = "\n".join([str(network.input_shape), *(op.key for op in network.ops)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def company_of(table: LatencyTable, input_shape: Shape) -> dict[str, Network]:
    """Some calibration networks, of that input shape where there are enough."""
    known = [net for net in table.networks() if net.network is not None]
    alike = [net for net in known if net.input_shape == input_shape]
    chosen = sorted(alike if len(alike) >= COMPANY else known, key=lambda net: net.measured.latency_ms)
    places = sorted({round(place) for place in np.linspace(0, len(chosen) - 1, COMPANY)}) if chosen else []
    return {chosen[place].name: network for place in places if (network := chosen[place].network) is not None}
