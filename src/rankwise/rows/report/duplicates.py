"""Exact and near duplicates of a stream of texts or images, from a digest and a signature of each.

Exact: the digests are equal, which they are where texts differ only in case, white space and the forms of a character
that Unicode calls compatible, and where images have the same pixels. Near: at least 0.8 of the shingles of two texts
are shared, as estimated by the share of equal components of their MinHash signatures, or the perceptual hashes of two
images differ in at most 3 of 64 bits. Pairs are found by cutting the signatures into bands and comparing only those
that agree in a whole band. There are more bands than components in which near ones may differ, so none is missed,
except in a band that very many agree in.

A text takes 528 bytes, of which 512 may lie in a file; a comparison takes about 60 more in memory.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self
from unicodedata import normalize

import numpy as np
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  a compiled module without type stubs

from rankwise.rows.encoded.sequences import Growing
from rankwise.rows.text.example import ImageRecord
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
"""How many of the 128 components must be equal in the signatures of two near duplicates: a share of at least 0.8."""
BANDS = COMPONENTS - LEAST_EQUAL + 1
MOST_COMPARED = 64
"""Texts of one band that each text is compared with: thousands agree in one where all rows begin with the same long
instruction. Two texts that are near for what is their own agree in other bands too."""
PAIRS_AT_ONCE = 2048
MOST_KNOWN = 1000
"""Texts whose signatures are at hand; of more, one that is there again is signed again."""
IMAGE_BANDS, BITS = 4, 16
MOST_DIFFERENT = IMAGE_BANDS - 1
"""In how many of their 64 bits the hashes of two images that are near duplicates may differ."""


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
    """A text's words in threes, and its characters in fours where its script has no spaces; a mixed text has both."""
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


Pairs = tuple[np.ndarray, np.ndarray]
"""Numbers, and for each of them the number that it leads to."""


@dataclass(frozen=True)
class Duplicates:
    exact: Pairs
    """Each leads to the first that says the same."""
    near: Pairs
    """Each leads to an earlier one that says nearly the same. No number is in both."""

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.exact[0]), len(self.near[0])


class Index(ABC):
    """What has been seen of a stream."""

    bands: int

    @property
    @abstractmethod
    def digests(self) -> np.ndarray:
        """(N, 2) uint64"""

    @abstractmethod
    def keys(self, rows: np.ndarray, band: int) -> np.ndarray:
        """One number for the band of each of these. Should two bands share a number, they are compared for nothing."""

    @abstractmethod
    def are_near(self, rows: np.ndarray, other: Any, candidates: np.ndarray) -> np.ndarray:
        """Whether each of these is near to the candidate beside it, in another index of its kind or in this one."""

    def firsts(self) -> np.ndarray:
        """(N,): for each the first that says the same."""
        return firsts_of(self.digests)

    def repeats(self) -> Duplicates:
        """Within the stream."""
        firsts = self.firsts()
        numbers = np.arange(len(firsts))
        distinct, copies = numbers[firsts == numbers], numbers[firsts != numbers]
        rows, earlier = near_of(self, distinct, self, None)
        return Duplicates((copies, firsts[copies]), (distinct[rows], distinct[earlier]))

    def overlap(self, rows: np.ndarray, theirs: Self, other_rows: np.ndarray) -> Duplicates:
        """Find which of `rows` also occur, exactly or nearly, among `other_rows` of another index or of this one."""
        firsts = firsts_of(np.concatenate([theirs.digests[other_rows], self.digests[rows]]))
        first_of_own = firsts[len(other_rows) :]
        there = first_of_own < len(other_rows)
        distinct = np.unique(first_of_own[~there]) - len(other_rows)  # of those that are not the same as another
        distinct_others = np.flatnonzero(firsts[: len(other_rows)] == np.arange(len(other_rows)))
        near, candidates = near_of(self, rows[distinct], theirs, other_rows[distinct_others])
        leads = np.full(len(rows), -1, np.int64)
        leads[distinct[near]] = other_rows[distinct_others[candidates]]
        of_near = np.where(there, -1, leads[np.where(there, 0, first_of_own - len(other_rows))]) if len(rows) else leads
        nearly = of_near >= 0
        return Duplicates((rows[there], other_rows[first_of_own[there]]), (rows[nearly], of_near[nearly]))


class TextIndex(Index):
    """A digest and a signature of each text, the signatures in a file without a name if a folder is given."""

    bands = BANDS

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
        return self._digests.view()

    @property
    def signatures(self) -> np.ndarray:
        """(N, COMPONENTS) uint32"""
        return self._signatures.view()

    def keys(self, rows: np.ndarray, band: int) -> np.ndarray:
        signatures = self.signatures[rows, COMPONENTS * band // BANDS : COMPONENTS * (band + 1) // BANDS]
        keys = np.zeros(len(rows), np.uint64)
        for column in range(signatures.shape[1]):
            keys = (keys + signatures[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        return keys

    def are_near(self, rows: np.ndarray, other: Self, candidates: np.ndarray) -> np.ndarray:
        mine, theirs, near = self.signatures, other.signatures, np.empty(len(rows), np.bool_)
        for start in range(0, len(rows), PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            equal = mine.take(rows[part], 0) == theirs.take(candidates[part], 0)
            near[part] = equal.view(np.uint8).sum(axis=1, dtype=np.uint8) >= LEAST_EQUAL
        return near


class ImageIndex(Index):
    """A hash of the pixels of each image, and a perceptual one."""

    bands = IMAGE_BANDS

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        contents = b"".join(record.content.ljust(DIGEST, b"\0") for record in records)
        self._digests = np.frombuffer(contents, np.uint64).reshape(-1, 2)
        self._hashes = np.array([record.perceptual or 0 for record in records], np.uint64)
        self._flat = np.array([record.perceptual is None for record in records], np.bool_)
        """Whether an image has no structure that could be compared."""

    @property
    def digests(self) -> np.ndarray:
        return self._digests

    def keys(self, rows: np.ndarray, band: int) -> np.ndarray:
        keys = (self._hashes[rows] >> np.uint64(BITS * band)) & np.uint64(2**BITS - 1)
        return np.where(self._flat[rows], 2**BITS + rows.astype(np.uint64), keys)

    def are_near(self, rows: np.ndarray, other: Self, candidates: np.ndarray) -> np.ndarray:
        near = np.bitwise_count(self._hashes[rows] ^ other._hashes[candidates]) <= MOST_DIFFERENT
        return near & ~self._flat[rows] & ~other._flat[candidates]


def firsts_of(digests: np.ndarray) -> np.ndarray:
    """For each digest the first index of the same one."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable, so that the first of the same comes first
    ordered = digests[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(1)
    firsts = np.empty(len(order), np.int64)
    firsts[order] = order[begins][np.cumsum(begins) - 1]
    return firsts


def near_of(mine: Index, rows: np.ndarray, theirs: Index, other_rows: np.ndarray | None) -> Pairs:
    """Places among `rows`, and of each the place of the first of `other_rows` that is near; without others an earlier
    one of `rows`."""
    found, against = np.full(len(rows), -1, np.int64), rows if other_rows is None else other_rows
    for band in range(mine.bands):
        keys = mine.keys(rows, band)
        order, start, end = _agreeing(keys, None if other_rows is None else theirs.keys(other_rows, band))
        left = np.flatnonzero(found < 0)
        for step in range(MOST_COMPARED):
            left = left[start[left] + step < end[left]]
            if not len(left):
                break
            candidates = order[start[left] + step]
            near = mine.are_near(rows[left], theirs, against[candidates])
            found[left[near]] = candidates[near]
            left = left[~near]
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
