"""Many encoded rows in little memory: one array for each column of all rows together, and where each row begins.

    column of row n = column[starts[n] : starts[n + 1]]

As files these are a few bytes a token and are read from the disk as they are needed, so a hundred million tokens are no
burden. `SelectedRows` is a view of some rows, in any order and as often as needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from rankwise.data.row_names import RowNames
from rankwise.errors import DataError
from rankwise.text.tokenize import Tokens

COLUMNS: dict[str, Any] = {"ids": np.int32, "loss_mask": np.bool_, "token_type_ids": np.int8, "tags": np.int16}
"""One value a token."""
OPTIONAL = ("token_type_ids", "tags", "targets")
IMAGES = "images.bin"
CHANNELS = 3
ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class EncodedRows(Sequence[Tokens]):
    ids: np.ndarray
    """(T,) int32"""
    loss_mask: np.ndarray
    """(T,) bool"""
    starts: np.ndarray
    """(N + 1,) int64: row n is [starts[n], starts[n + 1])."""
    token_type_ids: np.ndarray | None = None
    """(T,) int8"""
    targets: np.ndarray | None = None
    """(N,) float64: the class or the value of each row; (N, C) where a row has several of C classes."""
    images: Sequence[np.ndarray] | np.ndarray | None = None
    """The pixels (S, S, 3) of each row, in uint8: an array (N, S, S, 3), or views that lie in several files."""
    names: RowNames | None = None
    """Where each row came from."""
    tags: np.ndarray | None = None
    """(T,) int16: the class of each token that the loss mask has, where words have tags."""
    references: np.ndarray | None = None
    """(N, 2) float64: of pairs, the log-probabilities of both answers before training. They belong to a run and are not
    written."""

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
        number = index % len(self)
        row = slice(self.starts[number], self.starts[number + 1])
        types = None if self.token_type_ids is None else self.token_type_ids[row]
        target = None if self.targets is None else self.targets[number].tolist()
        image = None if self.images is None else self.images[number]
        name = None if self.names is None else self.names[number]
        reference = None if self.references is None else self.references[number]
        tags = None if self.tags is None else self.tags[row]
        return Tokens(
            self.ids[row], self.loss_mask[row], token_type_ids=types, target=target, image=image, name=name,
            reference=reference, tags=tags,
        )  # fmt: skip

    def lengths_of_sides(self, numbers: np.ndarray) -> np.ndarray:
        """(N, 2) tokens of the chosen and the rejected conversation of such rows of pairs."""
        assert self.token_type_ids is not None, "the rows are pairs"
        rejected = sums_of_rows(self.token_type_ids, self.starts)[numbers]
        return np.stack([self.starts[numbers + 1] - self.starts[numbers] - rejected, rejected], axis=1)

    @classmethod
    def gathered(cls, parts: Sequence[EncodedRows]) -> EncodedRows:
        """Join parts that have the same columns."""
        offsets = np.cumsum([0, *(len(part.ids) for part in parts)])
        starts = [part.starts[:-1] + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
        return cls(
            np.concatenate([np.empty(0, np.int32), *(part.ids for part in parts)]),
            np.concatenate([np.empty(0, np.bool_), *(part.loss_mask for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *starts, offsets[-1:]]),
            _joined([part.token_type_ids for part in parts]),
            _joined([part.targets for part in parts]),
            [image for part in parts if part.images is not None for image in part.images] or None,
            RowNames.gathered(names) if (names := [part.names for part in parts if part.names is not None]) else None,
            _joined([part.tags for part in parts]),
        )

    @classmethod
    def of(cls, tokens: Iterable[Tokens]) -> EncodedRows:
        rows = list(tokens)
        types = [row.token_type_ids for row in rows if row.token_type_ids is not None]
        targets = [row.target for row in rows if row.target is not None]
        images = [row.image for row in rows if row.image is not None]
        names = [row.name for row in rows if row.name is not None]
        tags = [row.tags for row in rows if row.tags is not None]
        assert len(images) in (0, len(rows)), "either every row has an image or none"
        assert len(names) in (0, len(rows)), "either every row has a name or none"
        assert len(targets) in (0, len(rows)), "either every row has a target or none"
        return cls(
            np.fromiter(chain.from_iterable(row.ids for row in rows), np.int32),
            np.fromiter(chain.from_iterable(row.loss_mask for row in rows), np.bool_),
            np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int64),
            np.fromiter(chain.from_iterable(types), np.int8) if types else None,
            np.array(targets, np.float64) if targets else None,
            images or None,
            RowNames.of(names) if names else None,
            np.fromiter(chain.from_iterable(tags), np.int16) if tags else None,
        )

    def write(self, folder: Path) -> None:
        """One file for each array that is there."""
        for name in (*COLUMNS, "starts", "targets"):
            array: np.ndarray | None = getattr(self, name)
            if array is not None:
                np.ascontiguousarray(array).tofile(folder / f"{name}.bin")
        if self.names is not None:
            self.names.write(folder)
        if self.images is not None:
            with (folder / IMAGES).open("wb") as file:
                for image in self.images:
                    file.write(np.ascontiguousarray(image).tobytes())

    @classmethod
    def read(cls, folder: Path) -> EncodedRows:
        """Map the files that `write` made; their content is read from the disk as it is needed."""
        starts = np.fromfile(folder / "starts.bin", np.int64)
        if not len(starts) or starts[0] != 0 or (np.diff(starts) < 1).any():
            raise DataError(f"{folder} is damaged: its rows do not follow each other.")
        size = int(starts[-1])
        tokens = {name: _read(folder / f"{name}.bin", dtype, size, "tokens") for name, dtype in COLUMNS.items()}
        targets = _targets(folder / "targets.bin", len(starts) - 1)
        images, names = _images(folder / IMAGES, len(starts) - 1), RowNames.read(folder, len(starts) - 1)
        return cls(**tokens, starts=starts, targets=targets, images=images, names=names)


def _joined(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    present = [array for array in arrays if array is not None]
    return np.concatenate(present) if present else None


def _read(file: Path, dtype: Any, size: int, unit: str) -> Any:
    """None where a column is not there that need not be."""
    if file.stem in OPTIONAL and not file.exists():
        return None
    if file.stat().st_size != size * np.dtype(dtype).itemsize:
        raise DataError(f"{file.parent} is damaged: {file.name} does not hold {size:,} {unit}.")
    return np.memmap(file, dtype, "r") if size else np.empty(0, dtype)


def _targets(file: Path, rows: int) -> np.ndarray | None:
    """One value a row, or as many as follow from the file's size."""
    columns = file.stat().st_size // (8 * rows) if rows and file.exists() else 1
    values = _read(file, np.float64, max(1, columns) * rows, "rows")
    return values if values is None or columns <= 1 else values.reshape(rows, columns)


def _images(file: Path, rows: int) -> np.ndarray | None:
    """Squares of one size, which follows from the file's."""
    if not file.exists() or not rows:
        return None
    side = math.isqrt(file.stat().st_size // (CHANNELS * rows))
    if file.stat().st_size != rows * side * side * CHANNELS:
        raise DataError(f"{file.parent} is damaged: {file.name} does not hold {rows:,} square images.")
    return np.memmap(file, np.uint8, "r", shape=(rows, side, side, CHANNELS))


def sums_of_rows(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(N,): the sum of a column over each row, with a few rows in memory at a time."""
    sums = np.empty(len(starts) - 1, np.int64)
    for begin in range(0, len(sums), ROWS_AT_ONCE):
        borders = starts[begin : begin + ROWS_AT_ONCE + 1]
        running = np.concatenate([[0], np.cumsum(values[borders[0] : borders[-1]], dtype=np.int64)])
        sums[begin : begin + ROWS_AT_ONCE] = np.diff(running[borders - borders[0]])
    return sums


_Row = TypeVar("_Row")


def evenly(rows: Sequence[_Row], most: int) -> Sequence[_Row]:
    """At most so many rows, at equal distances, so that each source has its share of them."""
    return [rows[number * len(rows) // most] for number in range(most)] if len(rows) > most else rows


@dataclass(frozen=True)
class SelectedRows(Sequence[Tokens]):
    """Rows of `rows` by their numbers."""

    rows: EncodedRows
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Tokens: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tokens]: ...
    def __getitem__(self, index: int | slice) -> Tokens | list[Tokens]:
        if isinstance(index, slice):
            return [self.rows[int(number)] for number in self.numbers[index]]
        return self.rows[int(self.numbers[index])]

    @property
    def lengths(self) -> np.ndarray:
        return self.rows.starts[self.numbers + 1] - self.rows.starts[self.numbers]

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def loss_count(self) -> int:
        """How many predictions have a loss: one a row that has a target, else one a token of the loss mask. The first
        token of a row has nothing to be predicted from, unless it has a tag."""
        if self.rows.targets is not None:
            return len(self)
        counts = sums_of_rows(self.rows.loss_mask, self.rows.starts)
        first = self.rows.loss_mask[self.rows.starts[self.numbers]] if self.rows.tags is None else 0
        return int((counts[self.numbers] - first).sum())
