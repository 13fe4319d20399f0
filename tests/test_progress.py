"""Progress as it is written where stderr is not a terminal, and on one."""

from __future__ import annotations

import io

from hwnas.progress import NullProgress, Progress, RichProgress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_about_every_ten_seconds_with_the_time_left() -> None:
    now = [0.0]
    out = io.StringIO()
    progress = RichProgress(out, clock=lambda: now[0])
    progress.stage("Training")
    with progress.start(100, "steps") as task:
        for _ in range(100):
            now[0] += 0.5
            task.advance()
    assert out.getvalue().splitlines() == [
        "Training",
        "  steps: 20/100, 40 s left",
        "  steps: 40/100, 30 s left",
        "  steps: 60/100, 20 s left",
        "  steps: 80/100, 10 s left",
        "  steps: 100/100 in 50 s",
    ]


def test_time_left_of_resumed_work_counts_only_what_was_done_now() -> None:
    now = [0.0]
    out = io.StringIO()
    with RichProgress(out, clock=lambda: now[0]).start(100, "steps", done=80) as task:
        now[0] = 10.0
        task.advance(10)
    assert out.getvalue().splitlines()[0] == "  steps: 90/100, 10 s left"


def test_quiet_writes_only_notes() -> None:
    out = io.StringIO()
    progress = RichProgress(out, quiet=True)
    progress.stage("Training")
    with progress.start(3, "steps") as task:
        task.advance(3)
    progress.note("the budget does not bind")
    assert out.getvalue() == "  the budget does not bind\n"


def test_bars_on_a_terminal_nest_and_keep_brackets_as_text() -> None:
    out = Terminal()
    progress = RichProgress(out)
    with progress.start(2, "outer") as outer:
        with progress.start(3, "inner") as inner:
            inner.advance(3)
            progress.note("[red]17ms[/red]")
        outer.advance(2)
    assert "outer" in out.getvalue()
    assert "inner" in out.getvalue()
    assert "[red]17ms[/red]" in out.getvalue()


def test_null_progress_says_nothing() -> None:
    progress: Progress = NullProgress()
    with progress.start(1, "steps") as task:
        task.advance()


def test_durations_are_readable() -> None:
    assert [duration(s) for s in (0.2, 59.4, 60, 61, 3600, 7500)] == [
        "0 s", "59 s", "1 min", "1 min 1 s", "1 h 0 min", "2 h 5 min",
    ]  # fmt: skip
