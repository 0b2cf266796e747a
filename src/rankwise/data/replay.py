"""Replay: which row each position of a training shows, if a share of them are other rows.

    replay rows among the first p positions = floor(share * p)

So the rows of a step hold the share up to one row. Own rows come in the order in which they would come without replay,
replay rows in an order of their own; of both, none comes again before all others of its kind. Everything is a function
of (seed, position) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from rankwise.data.row_order import shuffled

STREAM = 0x4E91A
"""Sets the order of replay rows apart from that of own rows, which the same seed decides."""


@dataclass(frozen=True)
class Replay:
    """Replay rows beside prepared rows."""

    numbers: np.ndarray
    """(M,) numbers of their sequences."""
    share: float
    in_pass: int
    """That are shown in the course of one pass over the own rows."""


@dataclass(frozen=True)
class ReplayOrder:
    """The number of the row at a position: an own row 0 … `own` - 1, or behind these one of `others` replay rows."""

    own: int
    others: int
    share: float
    seed: int

    def __call__(self, position: int) -> int:
        replayed = self._replayed(position)
        if self._replayed(position + 1) == replayed:
            turn, place = divmod(position - replayed, self.own)
            return int(shuffled(self.own, self.seed, turn)[place])
        turn, place = divmod(replayed, self.others)
        return self.own + int(shuffled(self.others, STREAM, self.seed, turn)[place])

    def _replayed(self, positions: int) -> int:
        """Exact, since a product of floats may fall below a whole number."""
        share = Fraction(self.share).limit_denominator(1_000_000)
        return positions * share.numerator // share.denominator
