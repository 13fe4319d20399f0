"""Errors that a user sees: one line that says what is wrong and what to do about it.

The library raises them; the command line turns each into its exit code (README, "Exit codes":
0 done, 1 failed, 2 usage, 3 a claim does not hold, 130 interrupted).
"""


class HwnasError(Exception):
    """Something failed. The message is one line, names the cause and says what to do."""

    exit_code = 1


class RuntimeMissing(HwnasError):
    """A runtime cannot be used on this machine.

    Attributes:
        reason: why not.
        fix: the command that mends it; empty where none is known.
    """

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(f"{reason}; install it with: {fix}" if fix else reason)
        self.reason = reason
        self.fix = fix


class UsageError(HwnasError):
    """What was asked for cannot be understood: an unknown name, a quantity without a unit, a bad option."""

    exit_code = 2


class ClaimError(HwnasError):
    """It ran, and the claim does not hold: over budget, drifted, or no architecture is feasible."""

    exit_code = 3
