"""Many encoded rows in little memory: one array for each column of all rows together, and where each row begins.

    column of row n = column[starts[n] : starts[n + 1]]

As files these are a few bytes a token and are read from the disk as they are needed, so a hundred million tokens are no
burden. They are written once, row after row, by `RowWriter`. `SelectedRows` is a view of some rows, in any order and as
often as needed. `Growing` is an array that grows at its end: in memory it takes a few bytes a value, where a list of
Python objects takes ten times as many, and in a file it takes none, since what is read of it is mapped.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, overload

import numpy as np

from rankwise.rows.text.tokenize import Tokens
from rankwise.system.files import unnamed_file


class Growing:
    """Values of one type; rows of `width` values where that is given. A file has no name, so that nothing is left of
    it."""

    def __init__(self, dtype: Any, width: int | None = None, file: BinaryIO | None = None) -> None:
        self._dtype, self._shape = np.dtype(dtype), (-1,) if width is None else (-1, width)
        self._file = file
        self._memory = bytearray()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def extend(self, values: Sequence[Any] | np.ndarray) -> None:
        array = np.ascontiguousarray(values, self._dtype).reshape(self._shape)
        self._length += len(array)
        content = array.data.cast("B") if array.size else b""
        if self._file is None:
            self._memory += content
        else:
            self._file.write(content)

    def view(self) -> np.ndarray:
        """The values so far, to be read only. In memory, nothing may be added while they are used."""
        if self._file is None:
            return np.frombuffer(self._memory, self._dtype).reshape(self._shape)
        self._file.flush()
        values = np.memmap(self._file, self._dtype, "r") if self._length else np.empty(0, self._dtype)
        return np.asarray(values).reshape(self._shape)

    def write(self, path: Path) -> None:
        """The values as a file of this name. Nothing is added afterwards."""
        with path.open("wb") as out:
            if self._file is None:
                out.write(self._memory)
            else:
                self._file.seek(0)
                shutil.copyfileobj(self._file, out)


CHANNELS = 3
ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class StoredColumn:
    """What rows have in a file of its own: one value a token, or with `shape` the same number for each row."""

    dtype: Any
    part: str
    """The name of the field of Tokens that holds these values."""
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
    "ids": StoredColumn(np.int32, "ids", lambda row: row.ids),
    "loss_mask": StoredColumn(np.bool_, "loss_mask", lambda row: row.loss_mask),
    "token_type_ids": StoredColumn(np.int8, "token_type_ids", lambda row: row.token_type_ids),
    "tags": StoredColumn(np.int16, "tags", lambda row: row.tags),
    "targets": StoredColumn(np.float64, "target", lambda row: row.target, _vector),
    "images": StoredColumn(np.uint8, "image", lambda row: row.image, _square),
}
BORDERS = {"starts": "ids", "name_starts": "names"}
"""Columns that say where each row begins in another, before which they stand."""
NEEDED = ("ids", "loss_mask")


@dataclass(frozen=True)
class EncodedRows(Sequence[Tokens]):
    """Rows by their columns, of which those that no row has are left out. Where rows have names, such as file:line, the
    letters of all are one column in UTF-8, so that a million names are no burden."""

    columns: Mapping[str, np.ndarray]
    references: np.ndarray | None = None
    """(N, 2) float64: of pairs, the log-probabilities of both answers before training. They belong to a run and are not
    written."""

    @property
    def ids(self) -> np.ndarray:
        """(T,)"""
        return self.columns["ids"]

    @property
    def loss_mask(self) -> np.ndarray:
        """(T,)"""
        return self.columns["loss_mask"]

    @property
    def starts(self) -> np.ndarray:
        """(N + 1,): row n is [starts[n], starts[n + 1])."""
        return self.columns["starts"]

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
        parts: dict[str, Any] = {column.part: self.columns[name][row if column.shape is None else number]
                 for name, column in COLUMNS.items() if name in self.columns}  # fmt: skip
        if "target" in parts:
            parts["target"] = parts["target"].tolist()
        if "names" in self.columns:
            begin, end = self.columns["name_starts"][number : number + 2]
            parts["name"] = self.columns["names"][begin:end].tobytes().decode()
        if self.references is not None:
            parts["reference"] = self.references[number]
        return Tokens(**parts)

    def lengths_of_sides(self, numbers: np.ndarray) -> np.ndarray:
        """(N, 2) tokens of the chosen and the rejected conversation of such rows of pairs."""
        rejected = sums_of_rows(self.columns["token_type_ids"], self.starts)[numbers]
        return np.stack([self.starts[numbers + 1] - self.starts[numbers] - rejected, rejected], axis=1)

    @classmethod
    def of_columns(cls, columns: Mapping[str, np.ndarray]) -> EncodedRows:
        """Columns as they lie in files, where those of whole rows have lost their shape."""
        shaped, rows = dict(columns), len(columns["starts"]) - 1
        for name, column in COLUMNS.items():
            if name in columns and column.shape is not None:
                shaped[name] = columns[name].reshape(rows, *column.shape(columns[name].size // max(1, rows)))
        return cls(shaped)

    @classmethod
    def of(cls, tokens: Iterable[Tokens]) -> EncodedRows:
        rows = list(tokens)
        columns = {"starts": _borders([len(row.ids) for row in rows])}
        for name, column in COLUMNS.items():
            values = [value for row in rows if (value := column.of(row)) is not None]
            if column.shape is not None and values:
                assert len(values) == len(rows), f"either every row has {name} or none"
                columns[name] = np.array(values, column.dtype)
            elif values or name in NEEDED:
                columns[name] = np.fromiter(chain.from_iterable(values), column.dtype)
        if names := [row.name.encode(errors="replace") for row in rows if row.name is not None]:
            assert len(names) == len(rows), "either every row has a name or none"
            columns["name_starts"] = _borders([len(name) for name in names])
            columns["names"] = np.frombuffer(b"".join(names), np.uint8)
        return cls(columns)

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
        types = dict.fromkeys(BORDERS, np.int64) | {name: column.dtype for name, column in COLUMNS.items()}
        types |= {"names": np.uint8}
        files = {name: folder / f"{name}.bin" for name in types}
        columns = {name: _mapped(file, types[name]) for name, file in files.items() if file.exists()}
        return cls.of_columns(columns | {name: np.array(columns[name]) for name in BORDERS if name in columns})


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
        return EncodedRows.of_columns({name: column.view() for name, column in self._columns.items()})

    def write(self, folder: Path) -> None:
        """One file for each column."""
        for name, column in self._columns.items():
            column.write(folder / f"{name}.bin")


def _borders(lengths: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _mapped(file: Path, dtype: Any) -> np.ndarray:
    return np.memmap(file, dtype, "r") if file.stat().st_size else np.empty(0, dtype)


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
