"""What a table says of the operators of a network: measured, interpolated between measured ones, or estimated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hwnas.latency.imported import BLOCK
from hwnas.latency.interpolation import Guess, Interpolator
from hwnas.latency.widths import NORMAL_90
from hwnas.measure.statistics import Estimate
from hwnas.ops import Op

HOW = ("measured", "interpolated", "estimated")
"""How a latency can be known, the surest first."""

Piece = tuple[Op, ...]
"""Operators that the table times as one: nearly always a single one, else a block."""


@dataclass(frozen=True, slots=True)
class Known:
    """The latency of a piece.

    Attributes:
        latency_ms: of one execution, not yet calibrated.
        deviation_ms: standard deviation of what is not known of it beyond the calibration's own error: 0 for what was
            measured here.
        how: one of `HOW`.
    """

    latency_ms: float
    deviation_ms: float
    how: str

    @property
    def variance_ms2(self) -> float:
        """Square of the standard deviation."""
        return self.deviation_ms**2


class Knowledge:
    """Answers for one table, remembered. Nothing is prepared for interpolation before an operator needs it.

    Args:
        operators: measured ones by key.
        blocks: by their operators' keys joined by `BLOCK`.
        failures: operators that were tried and do not run: of them nothing is guessed.
        element_bytes, batch_size: of the table.
        foreign: the table was imported: its own values are uncertain, operators are read off near relatives, and what
            it has nothing of is estimated from bytes and MACs. In a table of a device that can be measured such an
            operator stays missing.
    """

    def __init__(
        self,
        operators: Mapping[str, Estimate],
        blocks: Mapping[str, Estimate],
        failures: Collection[str] = (),
        *,
        element_bytes: int,
        batch_size: int,
        foreign: bool,
    ) -> None:
        self._operators, self._blocks, self._failures, self._foreign = operators, blocks, failures, foreign
        self._make: Callable[[], Interpolator] = lambda: Interpolator(
            operators, blocks, element_bytes=element_bytes, batch_size=batch_size
        )
        self._interpolator: Interpolator | None = None
        self._answers: dict[Piece, Known | None] = {}
        self._longest = max((name.count(BLOCK) + 1 for name in blocks), default=1)

    def pieces(self, ops: Sequence[Op]) -> list[Piece]:
        """`ops`, which follow each other, cut into the longest blocks that the table knows and single operators."""
        ops = [op.deployed() for op in ops]
        found: list[Piece] = []
        while len(ops) > sum(map(len, found)):
            start = sum(map(len, found))
            for length in range(min(self._longest, len(ops) - start), 1, -1):
                piece = tuple(ops[start : start + length])
                if _name(piece) in self._blocks:
                    found.append(piece)
                    break
            else:
                found.append((ops[start],))
        return found

    def of(self, piece: Piece) -> Known | None:
        """What is known of a piece; None where the table says nothing of it."""
        if piece not in self._answers:
            self.learn([piece])
        return self._answers[piece]

    def learn(self, pieces: Iterable[Piece]) -> None:
        """Finds the answers for many pieces at once, which is a hundred times as fast as one by one."""
        new = [piece for piece in dict.fromkeys(pieces) if piece not in self._answers]
        for piece in new:
            self._answers[piece] = self._measured(piece)
        unknown = [piece[0] for piece in new if self._answers[piece] is None]
        open_ops = [op for op in unknown if op.key not in self._failures]
        if not open_ops:
            return
        if self._interpolator is None:
            self._interpolator = self._make()
        guesses = self._interpolator.interpolate(open_ops, borrow=self._foreign)
        if self._foreign:
            unsure = [op for op, guess in zip(open_ops, guesses, strict=True) if guess is None]
            estimates = dict(zip(unsure, self._interpolator.estimate(unsure), strict=True))
            guesses = [guess or estimates[op] for op, guess in zip(open_ops, guesses, strict=True)]
        for op, guess in zip(open_ops, guesses, strict=True):
            self._answers[(op,)] = _known(guess)

    def _measured(self, piece: Piece) -> Known | None:
        found = self._blocks.get(_name(piece)) if len(piece) > 1 else self._operators.get(piece[0].key)
        if found is None:
            return None
        half = (found.high_ms - found.low_ms) / 2 if self._foreign else 0.0
        return Known(found.latency_ms, half / NORMAL_90, "measured")

    def counts(self, pieces: Iterable[Piece]) -> dict[str, int]:
        """How many different operators are known in which way; pieces that nothing is known of are left out."""
        pieces = list(dict.fromkeys(pieces))
        self.learn(pieces)
        counter = Counter(known.how for piece in pieces if (known := self.of(piece)) is not None)
        return {how: counter[how] for how in HOW}


def _name(piece: Piece) -> str:
    return BLOCK.join(op.key for op in piece)


def _known(guess: Guess | None) -> Known | None:
    return None if guess is None else Known(guess.latency_ms, guess.deviation_ms, guess.how)


def deviation_ms(parts: Iterable[tuple[Known, float]]) -> float:
    """Standard deviation of a sum of `parts`, each with its factor (occurrences and calibration).

    Errors of different interpolated operators are taken to be independent of each other. Those of estimates are not:
    they come from one law.
    """
    squares = together = 0.0
    for known, factor in parts:
        if known.how == "estimated":
            together += factor * known.deviation_ms
        else:
            squares += factor**2 * known.variance_ms2
    return float((squares + together**2) ** 0.5)
