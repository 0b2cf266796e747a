"""Exact and near duplicates of a stream of texts, from a digest and a MinHash signature of each.

Exact: the same text but for case, white space and the forms of a character that Unicode calls compatible. Near: at
least 0.8 of the shingles of two texts are shared, as estimated from their signatures. Pairs of texts are found by
cutting the signatures into bands and comparing only texts that agree in a whole band. There are more bands than
components in which near texts may differ, so none is missed, except in a band that very many texts agree in.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from unicodedata import normalize

import numpy as np
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  a compiled module without type stubs

SEED = 1
COMPONENTS = 128
LEAST_EQUAL = 103
"""Of 128: the share is at least 0.8."""
BANDS = COMPONENTS - LEAST_EQUAL + 1
WORDS = 3
CHARACTERS = 4
MOST_COMPARED = 64
"""Texts of one band that each text is compared with: thousands agree in one where all rows begin with the same long
instruction. Two texts that are near for what is their own agree in other bands too."""
PAIRS_AT_ONCE = 2048

# Tibetan, Thai, Lao, Burmese, Khmer, Chinese and Japanese: their words are not parted by spaces.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]+"
)


@dataclass(frozen=True)
class Duplicates:
    exact: dict[int, int]
    """Index of a text -> the first index that says the same."""
    near: dict[int, int]
    """Index of a text -> an earlier index that says nearly the same. No index is in both."""


class TextIndex:
    """What has been seen of a stream of texts: a digest and a MinHash signature each."""

    def __init__(self) -> None:
        self._length = 0
        self._rows: dict[bytes, int] = {}  # digest of a distinct text -> its row below
        self._firsts = array("q")  # row -> the index at which the text was first seen
        self._signatures = array("I")  # row after row
        self._copies: dict[int, int] = {}  # index of a repeated text -> row

    def __len__(self) -> int:
        return self._length

    def add(self, texts: Sequence[str]) -> None:
        for text in texts:
            normalised = _normalised(text)
            digest = _digest(normalised)
            row = self._rows.setdefault(digest, len(self._firsts))
            if row < len(self._firsts):
                self._copies[self._length] = row
            else:
                self._firsts.append(self._length)
                self._signatures.extend(_signature(normalised))
            self._length += 1

    def duplicates(self) -> Duplicates:
        """Within the stream."""
        near = _near_rows(self._matrix(), None)
        return Duplicates(
            exact={index: self._firsts[row] for index, row in self._copies.items()},
            near={self._firsts[row]: self._firsts[earlier] for row, earlier in near.items()},
        )

    def overlap(self, other: TextIndex) -> Duplicates:
        """Those of this stream that also stand in the other; the indices they lead to are the other's."""
        same = {row: other._rows[digest] for digest, row in self._rows.items() if digest in other._rows}
        near = _near_rows(self._matrix(), other._matrix())
        exact: dict[int, int] = {}
        nearly: dict[int, int] = {}
        for index, row in sorted([*((first, row) for row, first in enumerate(self._firsts)), *self._copies.items()]):
            if row in same:
                exact[index] = other._firsts[same[row]]
            elif row in near:
                nearly[index] = other._firsts[near[row]]
        return Duplicates(exact, nearly)

    def _matrix(self) -> np.ndarray:
        return np.frombuffer(self._signatures, dtype=np.uint32).reshape(-1, COMPONENTS)


def digest_of(text: str) -> bytes:
    """The same for texts that are the same but for case, white space and compatible characters."""
    return _digest(_normalised(text))


def _digest(normalised: str) -> bytes:
    return blake2b(normalised.encode(), digest_size=16).digest()


def _normalised(text: str) -> str:
    folded = normalize("NFKC", normalize("NFKC", text).casefold())
    return " ".join(folded.split()).encode("utf-8", "backslashreplace").decode()  # JSON can hold half a character


def _signature(normalised: str) -> list[int]:
    sketch = RMinHash(COMPONENTS, SEED)
    sketch.update(_shingles(normalised))
    return sketch.digest()


def _shingles(normalised: str) -> list[str]:
    """Of mixed text both: the words in threes, and the characters of scripts without spaces in fours."""
    if normalised.isascii():
        return _in_words(normalised.split())
    unspaced = "".join(_UNSPACED.findall(normalised))
    return _in_words(_UNSPACED.sub(" ", normalised).split()) + [
        unspaced[start : start + CHARACTERS] for start in range(max(len(unspaced) - CHARACTERS + 1, bool(unspaced)))
    ]


def _in_words(words: list[str]) -> list[str]:
    if len(words) <= WORDS:
        return [" ".join(words)] if words else []
    return [" ".join(shingle) for shingle in zip(*(words[start:] for start in range(WORDS)), strict=False)]


def _near_rows(mine: np.ndarray, theirs: np.ndarray | None) -> dict[int, int]:
    """Row of `mine` -> the first row found of `theirs` that is near; without `theirs`, an earlier one of `mine`."""

    def keys(band: int) -> tuple[np.ndarray, np.ndarray | None]:
        return _band_keys(mine, band), None if theirs is None else _band_keys(theirs, band)

    def are_near(rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return _are_near(mine, rows, mine if theirs is None else theirs, candidates)

    return near_by_bands(len(mine), BANDS, keys, are_near)


def near_by_bands(
    size: int, bands: int, keys: Callable[[int], tuple[np.ndarray, np.ndarray | None]],
    are_near: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> dict[int, int]:  # fmt: skip
    """Row of a stream of `size` -> the first row found of another stream that is near, or of its own earlier rows.

    `keys` gives the keys of a band for all rows, and those of the other stream, or None. Rows with the same key are
    compared by `are_near`.
    """
    found = np.full(size, -1, dtype=np.int64)
    for band in range(bands):
        order, start, end = _agreeing(*keys(band))
        rows = np.flatnonzero(found < 0)
        for step in range(MOST_COMPARED):
            rows = rows[start[rows] + step < end[rows]]
            if not len(rows):
                break
            candidates = order[start[rows] + step]
            near = are_near(rows, candidates)
            found[rows[near]] = candidates[near]
            rows = rows[~near]
    return {int(row): int(found[row]) for row in np.flatnonzero(found >= 0)}


def _agreeing(keys: np.ndarray, their_keys: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the other stream in an order in which order[start[row]:end[row]] are those with the key of `row`."""
    others = keys if their_keys is None else their_keys
    order = np.argsort(others, kind="stable")  # so that rows of one key stay in the order of the stream
    ordered = others[order]
    start = np.searchsorted(ordered, keys, side="left")
    if their_keys is not None:
        return order, start, np.searchsorted(ordered, keys, side="right")
    end = np.empty_like(start)
    end[order] = np.arange(len(order))  # up to the row itself
    return order, start, end


def _band_keys(signatures: np.ndarray, band: int) -> np.ndarray:
    """One number for each row's band. Should two bands share a number, their rows are compared for nothing."""
    keys = np.zeros(len(signatures), dtype=np.uint64)
    for component in range(COMPONENTS * band // BANDS, COMPONENTS * (band + 1) // BANDS):
        keys = (keys + signatures[:, component]) * np.uint64(0x9E3779B97F4A7C15)
    return keys


def _are_near(mine: np.ndarray, rows: np.ndarray, theirs: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    near = np.empty(len(rows), dtype=np.bool_)
    for start in range(0, len(rows), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        equal = mine.take(rows[part], axis=0) == theirs.take(candidates[part], axis=0)
        near[part] = equal.view(np.uint8).sum(axis=1, dtype=np.uint8) >= LEAST_EQUAL
    return near
