"""What TensorRT says, through one logger for the whole process.

While anything lives that was made with a logger, TensorRT ignores every other one that it is given, and writes to the
first even when that is gone. So there is one for each library, it is never given up, and who wants to know what is said
from now on listens anew.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hwnas.measure.runtimes.tensorrt_library import chosen, trt

MOST_ERRORS = 20


@dataclass(slots=True)
class Said:
    """What was said since it was asked for.

    Attributes:
        errors: the latest complaints.
        layers: lines of the message in which a builder lists the layers of its engine.
    """

    errors: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_ERRORS))
    layers: list[str] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """The complaints as one line."""
        return " ".join(" ".join(self.errors).split())[:300] or "it does not say why"


_loggers: list[tuple[object, Any]] = []
"""Library and its logger; kept for ever."""


def logger() -> Any:
    """The one logger (a `trt.ILogger`) of the library in use."""
    library = chosen()
    for known, log in _loggers:
        if known is library:
            return log
    log = _new_logger()
    _loggers.append((library, log))
    return log


def listen() -> Said:
    """What is said from now on, until somebody else listens."""
    said = Said()
    logger().said = said
    return said


def last_complaint() -> str:
    """The last thing that went wrong, as far as it is known; after a colon, empty where there is none."""
    errors: deque[str] = logger().said.errors
    return f": {' '.join(errors[-1].split())[:300]}" if errors else ""


def _new_logger() -> Any:
    """Made when it is known of which library: its base class is that one's."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.said = Said()

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.said.errors.append(msg)
            elif msg.startswith("Layers:"):
                self.said.layers[:] = msg.splitlines()

    return Log()
