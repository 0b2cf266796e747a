"""Balanced sampling: which row each position of a training shows, if every class is to be seen equally often.

    position p -> block p // C, and the class at place p % C of the block's own order of the C classes
    the k-th time that a class is shown -> cycle k // n of its n rows, and place k % n of the cycle's own order

So a block shows each class once, no row of a class is shown again before all others of it were shown, and everything is
a function of (seed, position) alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankwise.data.row_order import shuffled

BLOCKS, CYCLES = 3, 4
"""Streams of random numbers, apart from those of other uses of the seed."""


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
