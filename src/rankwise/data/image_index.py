"""Exact and near duplicates of a stream of images, from the hashes of each.

Exact: the same pixels. Near: perceptual hashes that differ in at most 3 of 64 bits. The hash is cut into four bands of
16 bits, so that near images agree in at least one band, and only images that agree in a band are compared: a hundred
thousand take a second.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from rankwise.data.duplicates import Duplicates, near_by_bands
from rankwise.text.example import ImageRecord

BANDS, BITS = 4, 16
MOST_DIFFERENT = BANDS - 1


class ImageIndex:
    """The hashes of a stream of images."""

    def __init__(self, records: Sequence[ImageRecord] = ()) -> None:
        self._length = 0
        self._rows: dict[bytes, int] = {}  # content of a distinct image -> its row below
        self._firsts = array("q")  # row -> the position at which the image was first seen
        self._hashes = array("Q")
        self._flat: list[bool] = []  # row -> whether it has no structure that could be compared
        self._copies: dict[int, int] = {}  # position of a repeated image -> row
        for record in records:
            self.add(record)

    def __len__(self) -> int:
        return self._length

    def add(self, record: ImageRecord) -> None:
        row = self._rows.setdefault(record.content, len(self._firsts))
        if row < len(self._firsts):
            self._copies[self._length] = row
        else:
            self._firsts.append(self._length)
            self._hashes.append(record.perceptual or 0)
            self._flat.append(record.perceptual is None)
        self._length += 1

    def duplicates(self) -> Duplicates:
        """Duplicates within the stream."""
        near = _near(self, self)
        return Duplicates(
            exact={position: self._firsts[row] for position, row in self._copies.items()},
            near={self._firsts[row]: self._firsts[earlier] for row, earlier in near.items()},
        )

    def overlap(self, other: ImageIndex) -> Duplicates:
        """Images of this stream that are also in the other; the positions they lead to are the other's."""
        near, exact, nearly = _near(self, other), dict[int, int](), dict[int, int]()
        same = {row: other._rows[content] for content, row in self._rows.items() if content in other._rows}
        for position, row in sorted([*((first, row) for row, first in enumerate(self._firsts)), *self._copies.items()]):
            if row in same:
                exact[position] = other._firsts[same[row]]
            elif row in near:
                nearly[position] = other._firsts[near[row]]
        return Duplicates(exact, nearly)

    def compared(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows whose hashes can be compared, and their hashes."""
        rows = np.flatnonzero(~np.array(self._flat, bool))
        return rows, np.frombuffer(self._hashes, np.uint64)[rows] if len(rows) else np.empty(0, np.uint64)


def _near(mine: ImageIndex, theirs: ImageIndex) -> dict[int, int]:
    """Row of `mine` -> a row of `theirs` that is near; an earlier one if both are the same index."""
    rows, hashes = mine.compared()
    their_rows, their_hashes = theirs.compared()

    def keys(band: int) -> tuple[np.ndarray, np.ndarray | None]:
        return _band(hashes, band), None if mine is theirs else _band(their_hashes, band)

    def are_near(of_mine: np.ndarray, of_theirs: np.ndarray) -> np.ndarray:
        return np.bitwise_count(hashes[of_mine] ^ their_hashes[of_theirs]) <= MOST_DIFFERENT

    pairs = near_by_bands(len(hashes), BANDS, keys, are_near)
    return {int(rows[one]): int(their_rows[other]) for one, other in pairs.items()}


def _band(hashes: np.ndarray, band: int) -> np.ndarray:
    return (hashes >> np.uint64(BITS * band)) & np.uint64(2**BITS - 1)
