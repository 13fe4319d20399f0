"""How a net comes onto its budget: lambda rises and falls so that it is near in time; a projection does the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass

GAIN = 80.0
"""How fast lambda answers: an excess that is 10% of the reduction above its course for 10% of the training changes it
by a factor of exp(0.1 * 0.1 * 80) = 2.2."""

GAIN_NOW, MOST_NOW = 8.0, 0.2
"""How lambda answers at once: by a factor of exp(0.1 * 8) = 2.2 while the excess is 10% above its course, and no more
than it does at 20%. What only adds up comes late to a net in which atoms die long after lambda has risen."""

RANGE = math.log(1e4)
"""Lambda stays within this factor of where it began."""

AIM = 0.02
"""Share of the reduction that is left to the projection: what died cannot come back, so that a course which ends on
the budget itself would often end below."""


COURSE_ENDS = 2 / 3
"""The course to the budget ends at this share of the way to where the net is projected."""


@dataclass(slots=True)
class Controller:
    """Dual ascent on the logarithm of lambda, and an answer at once, along a course from the whole net to the budget.

    The excess is what the living net costs above its budget, as a share of what the supernet does: 1 in the beginning,
    0 on the budget. Its course falls linearly from `start` to `end` (shares of the training).

    Attributes:
        penalty: lambda where it began.
        start, end: of the course.
        log_factor: of lambda over `penalty`, as it has added up.
    """

    penalty: float
    start: float
    end: float
    log_factor: float = 0.0

    def gone(self, progress: float) -> float:
        """How much of the course lies behind, 0 to 1."""
        return min(1.0, max(0.0, (progress - self.start) / max(1e-9, self.end - self.start)))

    def course(self, progress: float) -> float:
        """Where the excess should be."""
        return AIM + (1 - AIM) * (1 - self.gone(progress))

    def update(self, progress: float, excess: float, passed: float) -> None:
        """Answers to the excess that is expected a little later, `passed` (a share of the training) after the last."""
        error = excess - self.course(progress)
        changed = self.log_factor + GAIN * error * passed
        self.log_factor = min(RANGE, max(-RANGE, changed))

    def at(self, progress: float, excess: float) -> float:
        """Lambda now."""
        ramp = min(1.0, progress / self.start) if self.start > 0 else 1.0
        now = 0.0 if progress < self.start else GAIN_NOW * min(MOST_NOW, max(-MOST_NOW, excess - self.course(progress)))
        return ramp * self.penalty * math.exp(self.log_factor + now)


@dataclass(slots=True)
class Landing:
    """How a net came onto its budget. Costs are in the unit of the first budget.

    Attributes:
        step: when.
        before: what the supernet cost, `controlled` the net when the controller was done, `after` the net since then.
        logit_change: the largest change of an evaluated output on some images by removing what was dead.
    """

    step: int
    before: float
    controlled: float
    after: float
    logit_change: float | None = None

    def shares(self) -> dict[str, float]:
        """How much of the reduction came from the controller and how much from the projection.

        Below zero the projection took back what the controller had removed too much.
        """
        whole = self.before - self.after
        if whole <= 0:
            return {"controller": 0.0, "projection": 0.0}
        by_projection = (self.controlled - self.after) / whole
        return {"controller": 1 - by_projection, "projection": by_projection}
