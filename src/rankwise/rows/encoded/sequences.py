"""Many encoded rows in little memory: one array for each column of all rows together, and where each row begins.

    column of row n = column[starts[n] : starts[n + 1]]

As files these are a few bytes a token and are read from the disk as they are needed, so a hundred million tokens are no
burden. They are written once, row after row, by `RowWriter`. `SelectedRows` is a view of some rows, in any order and as
often as needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from rankwise.errors import DataError
from rankwise.rows.encoded.growing import Growing
from rankwise.rows.text.tokenize import Tokens
from rankwise.system.files import unnamed_file

CHANNELS = 3
ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Column:
    """What rows have in a file of its own: one value a token, or with `shape` the same number for each row."""

    dtype: Any
    of: Callable[[Tokens], Any]
    """None where rows have none of it."""
    shape: Callable[[int], tuple[int, ...]] | None = None
    """The shape of so many values."""


def _vector(size: int) -> tuple[int, ...]:
    return (size,) if size > 1 else ()


def _square(size: int) -> tuple[int, ...]:
    side = math.isqrt(size // CHANNELS)
    return side, side, CHANNELS


COLUMNS = {
    "ids": Column(np.int32, lambda row: row.ids),
    "loss_mask": Column(np.bool_, lambda row: row.loss_mask),
    "token_type_ids": Column(np.int8, lambda row: row.token_type_ids),
    "tags": Column(np.int16, lambda row: row.tags),
    "targets": Column(np.float64, lambda row: row.target, _vector),
    "images": Column(np.uint8, lambda row: row.image, _square),
}
BORDERS = {"starts": "ids", "name_starts": "names"}
"""Columns that say where each row begins in another."""
NEEDED = ("starts", "ids", "loss_mask")


@dataclass(frozen=True)
class RowNames:
    """Where each row came from, as one array of bytes for all, so that a million names are no burden.

    name of row n = letters[starts[n] : starts[n + 1]]        in UTF-8
    """

    letters: np.ndarray
    """(B,) uint8"""
    starts: np.ndarray
    """(N + 1,) int64"""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> str:
        return self.letters[self.starts[number] : self.starts[number + 1]].tobytes().decode(errors="replace")


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
    images: np.ndarray | None = None
    """(N, S, S, 3) uint8: the pixels of each row."""
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
        target = _at(self.targets, number)
        return Tokens(
            self.ids[row], self.loss_mask[row], token_type_ids=_at(self.token_type_ids, row),
            target=target if target is None else target.tolist(), image=_at(self.images, number),
            name=_at(self.names, number), reference=_at(self.references, number), tags=_at(self.tags, row),
        )  # fmt: skip

    def lengths_of_sides(self, numbers: np.ndarray) -> np.ndarray:
        """(N, 2) tokens of the chosen and the rejected conversation of such rows of pairs."""
        assert self.token_type_ids is not None, "the rows are pairs"
        rejected = sums_of_rows(self.token_type_ids, self.starts)[numbers]
        return np.stack([self.starts[numbers + 1] - self.starts[numbers] - rejected, rejected], axis=1)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Those that there are, by the names of their files; borders come before what they divide."""
        letters, begins = (None, None) if self.names is None else (self.names.letters, self.names.starts)
        columns = {
            "starts": self.starts, "ids": self.ids, "loss_mask": self.loss_mask, "token_type_ids": self.token_type_ids,
            "tags": self.tags, "targets": self.targets, "images": self.images, "name_starts": begins, "names": letters,
        }  # fmt: skip
        return {name: column for name, column in columns.items() if column is not None}

    @classmethod
    def of_columns(cls, columns: Mapping[str, np.ndarray], folder: Path | None = None) -> EncodedRows:
        """DataError where they are not those of the same rows."""
        damaged = f"{folder} is damaged:"
        if missing := [name for name in NEEDED if name not in columns]:
            raise DataError(f"{damaged} it has no {missing[0]}.bin.")
        starts = columns["starts"]
        if not len(starts) or starts[0] != 0 or (np.diff(starts) < 1).any():
            raise DataError(f"{damaged} its rows do not follow each other.")
        shaped = dict[str, np.ndarray]()
        for name in COLUMNS.keys() & columns.keys():
            size, (rows, tokens) = columns[name].size, (len(starts) - 1, int(starts[-1]))
            form = COLUMNS[name].shape
            count, shape = (tokens, ()) if form is None else (rows, form(size // max(1, rows)))
            if size != math.prod(shape, start=count):
                raise DataError(f"{damaged} {name}.bin does not hold {rows:,} rows of {tokens:,} tokens.")
            shaped[name] = columns[name].reshape(count, *shape)
        return cls(**shaped, starts=starts, names=_names(columns, len(starts) - 1, damaged))

    @classmethod
    def of(cls, tokens: Iterable[Tokens]) -> EncodedRows:
        rows, columns = list(tokens), dict[str, np.ndarray]()
        columns["starts"] = _borders([len(row.ids) for row in rows])
        for name, column in COLUMNS.items():
            values = [value for row in rows if (value := column.of(row)) is not None]
            if column.shape is not None and values:
                assert len(values) == len(rows), f"either every row has {name} or none"
                columns[name] = np.array(values, column.dtype)
            elif values or name in NEEDED:
                columns[name] = np.fromiter(chain.from_iterable(values), column.dtype)
        if names := [row.name.encode(errors="replace") for row in rows if row.name is not None]:
            assert len(names) == len(rows), "either every row has a name or none"
            columns["names"] = np.frombuffer(b"".join(names), np.uint8)
            columns["name_starts"] = _borders([len(name) for name in names])
        return cls.of_columns(columns)

    @classmethod
    def gathered(cls, parts: Sequence[EncodedRows]) -> EncodedRows:
        """Parts that have the same columns, one after another in memory."""
        writer = RowWriter()
        for part in parts:
            writer.add(part)
        return writer.rows()

    @classmethod
    def read(cls, folder: Path) -> EncodedRows:
        """Map the files that a `RowWriter` wrote; their content is read from the disk as it is needed."""
        types = {name: column.dtype for name, column in COLUMNS.items()} | {"names": np.uint8}
        types |= dict.fromkeys(BORDERS, np.int64)
        files = {name: folder / f"{name}.bin" for name in types}
        columns = {name: _mapped(file, types[name]) for name, file in files.items() if file.exists()}
        return cls.of_columns(columns | {name: np.array(columns[name]) for name in BORDERS if name in columns}, folder)


class RowWriter:
    """Writes rows one after another, each once: into files without names in a folder, or into memory."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._columns: dict[str, Growing] = {}

    def __len__(self) -> int:
        return max(0, self._length("starts") - 1)

    def add(self, rows: EncodedRows) -> None:
        for name, values in rows.columns.items():
            if name not in self._columns:
                width = values[0].size if values.ndim > 1 else None
                file = None if self._folder is None else unnamed_file(self._folder)
                self._columns[name] = Growing(values.dtype, width, file)
            elif name in BORDERS:
                values = values[1:]
            self._columns[name].extend(values + self._length(BORDERS[name]) if name in BORDERS else values)

    def _length(self, name: str) -> int:
        return len(self._columns[name]) if name in self._columns else 0

    def rows(self) -> EncodedRows:
        """All that were added. Nothing is added afterwards."""
        if not self._columns:
            self.add(EncodedRows.of([]))
        return EncodedRows.of_columns({name: column.view().array for name, column in self._columns.items()})

    def write(self, folder: Path) -> None:
        """One file for each column."""
        for name, column in self._columns.items():
            column.write(folder / f"{name}.bin")


def _at(column: Any, values: int | slice) -> Any:
    """None where rows have no such column."""
    return None if column is None else column[values]


def _borders(lengths: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _mapped(file: Path, dtype: Any) -> np.ndarray:
    if file.stat().st_size % np.dtype(dtype).itemsize:
        raise DataError(f"{file.parent} is damaged: {file.name} ends within a value.")
    return np.memmap(file, dtype, "r") if file.stat().st_size else np.empty(0, dtype)


def _names(columns: Mapping[str, np.ndarray], rows: int, damaged: str) -> RowNames | None:
    if columns.keys().isdisjoint(("names", "name_starts")):
        return None
    nothing = np.empty(0, np.uint8)
    starts, letters = columns.get("name_starts", nothing), columns.get("names", nothing)
    if len(starts) != rows + 1 or starts[0] != 0 or starts[-1] != len(letters) or (np.diff(starts) < 0).any():
        raise DataError(f"{damaged} its names are not those of {rows:,} rows.")
    return RowNames(letters, starts)


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
        """How many predictions have a loss: one a token of the loss mask, and one a row that has a target, whose mask
        is empty. The first token of a row has nothing to be predicted from, unless it has a tag."""
        counts = sums_of_rows(self.rows.loss_mask, self.rows.starts)[self.numbers]
        first = self.rows.loss_mask[self.rows.starts[self.numbers]]
        every = {"loss_mask": counts - first, "tags": first, "targets": np.ones(len(self), np.int64)}
        return int(sum(values.sum() for name, values in every.items() if name in self.rows.columns))
