"""Exact and near duplicates of a stream of texts, from a digest and a MinHash signature of each.

Exact: the digests are equal, which they are where texts differ only in case, white space and the forms of a character
that Unicode calls compatible. Near: at least 0.8 of the shingles of two texts are shared, as estimated by the share of
equal components of their signatures. Pairs of texts are found by cutting the signatures into bands and comparing only
texts that agree in a whole band. There are more bands than components in which near texts may differ, so none is
missed, except in a band that very many texts agree in.

A text takes 528 bytes, of which 512 may lie in a file; a comparison takes about 60 more in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from unicodedata import normalize

import numpy as np
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  a compiled module without type stubs

from rankwise.rows.encoded.growing import Growing, View
from rankwise.system.files import unnamed_file

SEED = 1
COMPONENTS = 128
WORDS = 3
CHARACTERS = 4
DIGEST = 16
"""Bytes."""

# Tibetan, Thai, Lao, Burmese, Khmer, Chinese and Japanese: their words are not parted by spaces.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]+"
)
LEAST_EQUAL = 103
"""Of 128: the share is at least 0.8."""
BANDS = COMPONENTS - LEAST_EQUAL + 1
MOST_COMPARED = 64
"""Texts of one band that each text is compared with: thousands agree in one where all rows begin with the same long
instruction. Two texts that are near for what is their own agree in other bands too."""
PAIRS_AT_ONCE = 2048
MOST_KNOWN = 1000
"""Texts whose signatures are at hand; of more, one that is there again is signed again."""
ROWS_AT_ONCE = 1 << 16
"""Signatures that are read from a file before their pages are given back."""


def normalised(text: str) -> str:
    folded = normalize("NFKC", normalize("NFKC", text).casefold()) if not text.isascii() else text.lower()
    return " ".join(folded.split()).encode("utf-8", "backslashreplace").decode()  # JSON can hold half a character


def digest_of(normal: str) -> bytes:
    return blake2b(normal.encode(), digest_size=DIGEST).digest()


def signature_of(normal: str) -> list[int]:
    sketch = RMinHash(COMPONENTS, SEED)
    sketch.update(_shingles(normal))
    return sketch.digest()


def _shingles(normal: str) -> list[str]:
    """Of mixed text both: the words in threes, and the characters of scripts without spaces in fours."""
    if normal.isascii():
        return _in_words(normal.split())
    unspaced = "".join(_UNSPACED.findall(normal))
    return _in_words(_UNSPACED.sub(" ", normal).split()) + [
        unspaced[start : start + CHARACTERS] for start in range(max(len(unspaced) - CHARACTERS + 1, bool(unspaced)))
    ]


def _in_words(words: list[str]) -> list[str]:
    if len(words) <= WORDS:
        return [" ".join(words)] if words else []
    return [" ".join(shingle) for shingle in zip(*(words[start:] for start in range(WORDS)), strict=False)]


@dataclass(frozen=True)
class Duplicates:
    exact: dict[int, int]
    """Index of a text -> the first index that says the same."""
    near: dict[int, int]
    """Index of a text -> an earlier index that says nearly the same. No index is in both."""


@dataclass(frozen=True)
class Repeats:
    """The same as arrays: the indices of texts, and for each of them the index that it leads to."""

    exact: tuple[np.ndarray, np.ndarray]
    near: tuple[np.ndarray, np.ndarray]

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.exact[0]), len(self.near[0])

    @property
    def as_dicts(self) -> Duplicates:
        exact, near = (dict(zip(*map(np.ndarray.tolist, pairs), strict=True)) for pairs in (self.exact, self.near))
        return Duplicates(exact, near)


class TextIndex:
    """What has been seen of a stream of texts: a digest and a signature each, the signatures in a file without a name
    if a folder is given."""

    def __init__(self, folder: Path | None = None) -> None:
        self._digests = Growing(np.uint64, DIGEST // 8)
        self._signatures = Growing(np.uint32, COMPONENTS, None if folder is None else unnamed_file(folder))
        self._known: dict[bytes, list[int]] = {}
        """The signatures of some texts by their digests, so that a text that is there often is signed once."""

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, texts: Sequence[str]) -> None:
        normal = [normalised(text) for text in texts]
        digests = [digest_of(text) for text in normal]
        signatures = np.empty((len(texts), COMPONENTS), np.uint32)
        for place, digest in enumerate(digests):
            if digest not in self._known:
                if len(self._known) == MOST_KNOWN:
                    self._known.clear()
                self._known[digest] = signature_of(normal[place])
            signatures[place] = self._known[digest]
        self._digests.extend(np.frombuffer(b"".join(digests), np.uint64))
        self._signatures.extend(signatures)

    @property
    def digests(self) -> np.ndarray:
        """(N, 2) uint64"""
        return self._digests.view().array

    @property
    def signatures(self) -> np.ndarray:
        """(N, COMPONENTS) uint32"""
        return self._signatures.view().array

    def firsts(self) -> np.ndarray:
        """(N,): for each text the first index that says the same."""
        return firsts_of(self.digests)

    def duplicates(self) -> Duplicates:
        """Within the stream."""
        return self.repeats().as_dicts

    def repeats(self) -> Repeats:
        firsts = self.firsts()
        numbers = np.arange(len(self))
        distinct = numbers[firsts == numbers]
        copies = numbers[firsts != numbers]
        rows, earlier = near_of(Signatures(self._signatures.view(), distinct), None)
        return Repeats((copies, firsts[copies]), (distinct[rows], distinct[earlier]))

    def overlap(self, other: TextIndex) -> Duplicates:
        """Those of this stream that also stand in the other; the indices they lead to are the other's."""
        return overlap(self, np.arange(len(self)), other, np.arange(len(other))).as_dicts


def overlap(mine: TextIndex, rows: np.ndarray, theirs: TextIndex, others: np.ndarray) -> Repeats:
    """Those among the rows of an index that also stand among other rows, of another index or of the same."""
    digests = np.concatenate([theirs.digests[others], mine.digests[rows]])
    firsts = firsts_of(digests)
    del digests
    own, first_of_own = rows, firsts[len(others) :]
    there = first_of_own < len(others)
    distinct = np.unique(first_of_own[~there]) - len(others)  # of those that are not the same as another
    distinct_others = np.flatnonzero(firsts[: len(others)] == np.arange(len(others)))
    near, candidates = near_of(
        Signatures(mine._signatures.view(), own[distinct]),
        Signatures(theirs._signatures.view(), others[distinct_others]),
    )
    leads = np.full(len(rows), -1, np.int64)
    leads[distinct[near]] = others[distinct_others[candidates]]
    of_near = np.where(there, -1, leads[np.where(there, 0, first_of_own - len(others))]) if len(rows) else leads
    nearly = of_near >= 0
    return Repeats((rows[there], others[first_of_own[there]]), (rows[nearly], of_near[nearly]))


def firsts_of(digests: np.ndarray) -> np.ndarray:
    """For each digest the first index of the same one."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable, so that the first of the same comes first
    ordered = digests[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(1)
    firsts = np.empty(len(order), np.int64)
    firsts[order] = order[begins][np.cumsum(begins) - 1]
    return firsts


@dataclass(frozen=True)
class Signatures:
    """Some rows of a matrix of signatures."""

    view: View
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        return self.view.array.take(self.rows[numbers], axis=0)

    def band_keys(self, band: int) -> np.ndarray:
        """One number for each row's band. Should two bands share a number, their rows are compared for nothing."""
        columns = range(COMPONENTS * band // BANDS, COMPONENTS * (band + 1) // BANDS)
        keys = np.zeros(len(self), dtype=np.uint64)
        for part in _slices(len(self), ROWS_AT_ONCE):
            signatures = self.view.array[self.rows[part], columns.start : columns.stop]
            for column in range(len(columns)):
                keys[part] = (keys[part] + signatures[:, column]) * np.uint64(0x9E3779B97F4A7C15)
            self.view.release()
        return keys


def near_of(mine: Signatures, theirs: Signatures | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `mine`, and of each the first row found of `theirs` that is near; without `theirs`, an earlier one of
    `mine`."""
    others = mine if theirs is None else theirs

    def keys(band: int) -> tuple[np.ndarray, np.ndarray | None]:
        return mine.band_keys(band), None if theirs is None else theirs.band_keys(band)

    def are_near(rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        near = np.empty(len(rows), dtype=np.bool_)
        for number, part in enumerate(_slices(len(rows), PAIRS_AT_ONCE), start=1):
            equal = mine.take(rows[part]) == others.take(candidates[part])
            near[part] = equal.view(np.uint8).sum(axis=1, dtype=np.uint8) >= LEAST_EQUAL
            if number % (ROWS_AT_ONCE // PAIRS_AT_ONCE) == 0:
                mine.view.release()
                others.view.release()
        return near

    return near_pairs(len(mine), BANDS, keys, are_near)


def near_by_bands(
    size: int, bands: int, keys: Callable[[int], tuple[np.ndarray, np.ndarray | None]],
    are_near: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> dict[int, int]:  # fmt: skip
    """As `near_pairs`, with the pairs as a dictionary."""
    return dict(zip(*map(np.ndarray.tolist, near_pairs(size, bands, keys, are_near)), strict=True))


def near_pairs(
    size: int, bands: int, keys: Callable[[int], tuple[np.ndarray, np.ndarray | None]],
    are_near: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Rows of a stream of `size`, and of each the first row found of another stream that is near, or of its own earlier
    rows.

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
    near = np.flatnonzero(found >= 0)
    return near, found[near]


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


def _slices(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))
