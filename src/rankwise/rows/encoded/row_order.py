"""Which row each position of a training shows, where it is no plain shuffle: functions of (seed, position) alone.

Balanced, if every class is to be seen equally often:

    position p -> block p // C, and the class at place p % C of the block's own order of the C classes
    the k-th time that a class is shown -> cycle k // n of its n rows, and place k % n of the cycle's own order

So a block shows each class once, and no row of a class is shown again before all others of it were shown.

Replay, if a share of the rows are other rows:

    replay rows among the first p positions = floor(share * p)

So the rows of a step hold the share up to one row. Own rows come in the order in which they would come without replay,
replay rows in an order of their own; of both, none comes again before all others of its kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

BLOCKS, CYCLES = 3, 4
"""Streams of random numbers, apart from those of other uses of the seed."""
STREAM = 0x4E91A
"""Sets the order of replay rows apart from that of own rows, which the same seed decides."""


@lru_cache(maxsize=4)
def shuffled(rows: int, *seeds: int) -> np.ndarray:
    """The numbers 0, 1, 2, … of so many rows in random order, (rows,) int64. An array that is shared: do not change
    it."""
    return np.random.default_rng(seeds).permutation(rows)


class BalancedOrder:
    """`targets` are the class numbers of all training rows; classes without a row are left out."""

    def __init__(self, targets: np.ndarray, seed: int) -> None:
        self.seed = seed
        self.members = [np.flatnonzero(targets == number) for number in np.unique(targets)]
        self._cycles: dict[int, tuple[int, np.ndarray]] = {}
        """The last cycle that was drawn of each class, and its order."""

    def __call__(self, position: int) -> int:
        block, place = divmod(position, len(self.members))
        number = int(shuffled(len(self.members), self.seed, BLOCKS, block)[place])
        cycle, place = divmod(block, len(self.members[number]))
        return int(self._cycle(number, cycle)[place])

    def _cycle(self, number: int, cycle: int) -> np.ndarray:
        known = self._cycles.get(number)
        if known is None or known[0] != cycle:
            rows = self.members[number]
            known = cycle, rows[shuffled(len(rows), self.seed, CYCLES, number, cycle)]
            self._cycles[number] = known
        return known[1]


def repeats_of(targets: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return how often a pass shows each row of a class, on average, for the classes that have rows."""
    numbers, counts = np.unique(targets, return_counts=True)
    return {
        names[int(number)]: len(targets) / len(numbers) / int(count)
        for number, count in zip(numbers, counts, strict=True)
    }


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
    """The number of the row at a position: an own row 0 … `rows` - 1, or behind these one of `replayed` replay rows."""

    rows: int
    replayed: int
    share: float
    seed: int

    def __call__(self, position: int) -> int:
        replayed = self._replayed(position)
        if self._replayed(position + 1) == replayed:
            turn, place = divmod(position - replayed, self.rows)
            return int(shuffled(self.rows, self.seed, turn)[place])
        turn, place = divmod(replayed, self.replayed)
        return self.rows + int(shuffled(self.replayed, STREAM, self.seed, turn)[place])

    def _replayed(self, positions: int) -> int:
        """Exact, since a product of floats may fall below a whole number."""
        share = Fraction(self.share).limit_denominator(1_000_000)
        return positions * share.numerator // share.denominator
