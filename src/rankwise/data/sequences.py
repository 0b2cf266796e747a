"""Many documents in little memory: all ids in one array, all masks in another, and where each begins.

As a file that is a few bytes a token and read from the disk as it is needed, so a hundred million tokens are no
burden. `Chosen` is a view of some of them, in an order and as often as wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import overload

import numpy as np

from rankwise.errors import DataError
from rankwise.text.tokenize import Tokens


@dataclass(frozen=True)
class Documents(Sequence[Tokens]):
    ids: np.ndarray
    """(T,) int32"""
    learned: np.ndarray
    """(T,) bool"""
    starts: np.ndarray
    """(N + 1,) int64: document n is [starts[n], starts[n + 1])."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> Tokens: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tokens]: ...
    def __getitem__(self, index: int | slice) -> Tokens | list[Tokens]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start, stop = self.starts[index % len(self)], self.starts[index % len(self) + 1]
        return Tokens(self.ids[start:stop], self.learned[start:stop])

    @classmethod
    def gathered(cls, parts: Sequence[Documents]) -> Documents:
        offsets = np.cumsum([0, *(len(part.ids) for part in parts)])
        starts = [part.starts[:-1] + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
        return cls(
            np.concatenate([np.empty(0, np.int32), *(part.ids for part in parts)]),
            np.concatenate([np.empty(0, np.bool_), *(part.learned for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *starts, offsets[-1:]]),
        )

    @classmethod
    def of(cls, tokens: Iterable[Tokens]) -> Documents:
        rows = list(tokens)
        return cls(
            np.fromiter(chain.from_iterable(row.ids for row in rows), np.int32),
            np.fromiter(chain.from_iterable(row.learned for row in rows), np.bool_),
            np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int64),
        )

    def write(self, folder: Path) -> None:
        for name, array in (("ids", self.ids), ("learned", self.learned), ("starts", self.starts)):
            np.ascontiguousarray(array).tofile(folder / f"{name}.bin")

    @classmethod
    def read(cls, folder: Path) -> Documents:
        """From the files that `write` made, as they are needed."""
        starts = np.fromfile(folder / "starts.bin", np.int64)
        if not len(starts) or starts[0] != 0 or (np.diff(starts) < 1).any():
            raise DataError(f"{folder} is damaged: its documents do not follow each other.")
        size = int(starts[-1])
        for name, width in (("ids", 4), ("learned", 1)):
            if (folder / f"{name}.bin").stat().st_size != size * width:
                raise DataError(f"{folder} is damaged: {name}.bin is not of {size:,} tokens.")
        if not size:
            return cls(np.empty(0, np.int32), np.empty(0, np.bool_), starts)
        return cls(
            np.memmap(folder / "ids.bin", np.int32, "r"), np.memmap(folder / "learned.bin", np.bool_, "r"), starts
        )


@dataclass(frozen=True)
class Chosen(Sequence[Tokens]):
    """Some of the documents, by number."""

    documents: Documents
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Tokens: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tokens]: ...
    def __getitem__(self, index: int | slice) -> Tokens | list[Tokens]:
        if isinstance(index, slice):
            return [self.documents[int(number)] for number in self.numbers[index]]
        return self.documents[int(self.numbers[index])]

    @property
    def lengths(self) -> np.ndarray:
        return self.documents.starts[self.numbers + 1] - self.documents.starts[self.numbers]

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def supervised(self) -> int:
        """The first token of a document has nothing to be predicted from."""
        running = np.concatenate([[0], np.cumsum(self.documents.learned, dtype=np.int64)])
        starts, stops = self.documents.starts[self.numbers], self.documents.starts[self.numbers + 1]
        return int((running[stops] - running[starts] - self.documents.learned[starts]).sum())
