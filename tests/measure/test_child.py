"""A child's pipe: what it says last is heard, however it ends."""

from __future__ import annotations

import sys
import time

import pytest

from hwnas.measure.child import Child


def test_last_lines_are_read_where_the_request_no_longer_arrives() -> None:
    child = Child([sys.executable, "-c", "print('\\ngone\\nfor good')"])
    try:
        assert child.wait(30) == 0
        deadline = time.monotonic() + 30
        assert child.line((b"request\n", b"x" * (4 << 20)), deadline) == b"gone"
        assert child.line((), deadline) == b"for good"
        with pytest.raises(EOFError):
            child.line((b"request\n",), deadline)
    finally:
        child.close()


def test_an_answer_before_the_whole_request_is_the_error() -> None:
    child = Child([sys.executable, "-c", "import time; print('early', flush=True); time.sleep(30)"])
    try:
        with pytest.raises(ValueError, match="early"):
            child.line((b"x" * (4 << 20),), time.monotonic() + 30)
    finally:
        child.close(kill=True)
