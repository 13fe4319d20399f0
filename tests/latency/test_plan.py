"""What a profile measures next."""

from __future__ import annotations

from pathlib import Path

from quick import quick_profile, tiny_network

from hwnas.latency.levels import LEAST_QUIET
from hwnas.latency.plan import MOST_COVER_VISITS, Plan, entry_name, unsure_entries
from hwnas.latency.writer import TableWriter
from hwnas.measure.passes import Entry
from hwnas.measure.process import Subject

DESCRIBE = {"runtime": "onnxruntime", "runtime_version": "1.0", "device": "A CPU", "cores": 2, "threads": 1}
PROFILE = quick_profile(min_passes=8, max_passes=40, target_error=0.5)
Entries = dict[tuple[str, str], Entry]
COMPANY = {f"net {channels}": tiny_network(channels) for channels in (8, 16, 24, 32, 40, 48)}
COVER = tiny_network(56)


def measured(path: Path, slow: float, *, busy: int, passes: int = 8) -> tuple[Plan, Entries, Entries]:
    """A profile of a network and its company, slowed down in the first `busy` passes; what is unsure after it."""
    names = {entry_name(name, network): network for name, network in COMPANY.items()}
    plan = Plan((), {"it": COVER}, {}, names)
    cover = ("cover", entry_name("it", COVER))
    entries = {("reference", "reference"): _entry(("reference", "reference"), reference=True), cover: _entry(cover)}
    entries |= {("network", name): _entry(("network", name)) for name in names}
    contents = {key: (COVER if key == cover else names.get(key[1], COVER)).to_json() for key in entries}
    with TableWriter.create(path, PROFILE, DESCRIBE) as table:
        session = table.start_session({})
        for (role, name), content in contents.items():
            table.add_entry(role, name, content)
        for number in range(passes):
            for place, ((role, name), entry) in enumerate(entries.items()):
                samples = [(1.0 + place) * (slow if number < busy else 1.0)] * 5
                if role == "cover":
                    table.add_kernels(session, name, number, samples, {}, {})
                else:
                    table.add_visit(session, role, name, number, 1, samples)
                entry.visits.append(samples)  # type: ignore[arg-type]
        return plan, entries, unsure_entries(table, PROFILE, plan, entries)


def _entry(key: tuple[str, str], *, reference: bool = False) -> Entry:
    return Entry(Subject(" ".join(key), "network", lambda: b"", 0), reference=reference, passes=8)


def test_a_network_that_met_no_quiet_moment_is_visited_again_in_company(tmp_path: Path) -> None:
    plan, entries, unsure = measured(tmp_path / "busy.lut", 1.3, busy=8 - LEAST_QUIET + 1)
    cover = ("cover", entry_name("it", COVER))
    assert set(unsure) == {cover, ("reference", "reference"), *(("network", name) for name in plan.company)}
    assert all(8 < entry.passes <= MOST_COVER_VISITS for key, entry in unsure.items() if key[0] != "reference")
    assert entries[cover].passes == entries["network", next(iter(plan.company))].passes


def test_quiet_moments_enough_are_enough(tmp_path: Path) -> None:
    assert not measured(tmp_path / "quiet.lut", 1.3, busy=8 - LEAST_QUIET)[2]


def test_a_machine_that_is_never_quiet_does_not_keep_a_profile_for_ever(tmp_path: Path) -> None:
    passes = PROFILE.timing.max_passes
    assert not measured(tmp_path / "never.lut", 1.3, busy=passes - 1, passes=passes)[2]
