"""A sample of a data set: the number and sizes of all rows, and the content of some of them.

In JSON lines only the line ends are searched, so that a hundred thousand rows take a tenth of a second. Other files are
read completely. The sample depends only on the number of rows. The largest rows are read in addition, because they
decide how much memory a training needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

from rankwise.config.data import DataConfig, Rows
from rankwise.errors import DataError
from rankwise.rows.files.columnar import Record
from rankwise.rows.files.files import checked, json_lines, json_list, kind_of, row_of_line
from rankwise.rows.files.hub import Part
from rankwise.rows.sources import OpenedSource, open_source, raw_records
from rankwise.rows.text.example import Example
from rankwise.system.contents import content_of, opened

DRAWN, LARGEST = 300, 8
HEAD = 64
MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class SeenRows:
    """A row of the sample. `size` is its length in bytes, or in characters of its texts, the same for all rows."""

    size: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class RowSample:
    """What a look at the files found out about all rows."""

    rows: int
    """Number of rows that training would read (data.rows limits it)."""
    rows_in_files: int
    """Number of rows in the files."""
    size: int
    """Total size of the rows that training would read."""
    drawn: tuple[SeenRows, ...]
    largest: tuple[SeenRows, ...]
    problems: tuple[str, ...] = ()
    """Problems of drawn rows that cannot be read."""
    unread: int = 0
    """Number of drawn rows that cannot be read."""


@dataclass
class _Index:
    """The sizes of one file's rows, and a function that reads one of them."""

    part: Part
    row: Callable[[int], Record]
    sizes: list[int] = field(default_factory=list)


def sample_rows(config: DataConfig, source: Rows, *, drawn: int = DRAWN, largest: int = LARGEST) -> RowSample:
    """Index the rows of a source, and read some of them."""
    reading = open_source(config, source)
    with ExitStack() as files:
        return _sample(reading, source, [_index(part, files) for part in reading.parts], drawn, largest)


def _sample(reading: OpenedSource, source: Rows, indices: Sequence[_Index], drawn: int, largest: int) -> RowSample:
    rows_by_index = [(index, number) for index in indices for number in range(len(index.sizes))]
    if not rows_by_index:
        raise DataError(f"{source.path}: has no rows.")
    for index in indices:  # the format is that of the file's first readable row, as in training
        for number in range(min(len(index.sizes), DRAWN)):
            where, row = index.row(number)
            if not isinstance(row, DataError):
                with suppress(DataError):
                    reading.examples(index.part, where, row)
                break
    by_size = sorted(rows_by_index, key=lambda row: -row[0].sizes[row[1]])[:largest]
    chosen = sorted(Random(0).sample(range(len(rows_by_index)), min(drawn, len(rows_by_index))))
    problems: list[str] = []
    read = _read(reading, [rows_by_index[number] for number in chosen], problems)
    if not read:
        raise DataError(problems[0])
    rows = len(rows_by_index) if source.rows is None else min(source.rows, len(rows_by_index))
    size = sum(sum(index.sizes) for index in indices)
    size = round(size * rows / len(rows_by_index))
    every = len(rows_by_index)
    largest_rows = _read(reading, by_size, [])
    return RowSample(rows, every, size, read, largest_rows, problems=tuple(problems), unread=len(problems))


def _read(reading: OpenedSource, rows: Sequence[tuple[_Index, int]], problems: list[str]) -> tuple[SeenRows, ...]:
    """Single rows; what is wrong with those that cannot be read is added to the problems."""
    seen: list[SeenRows] = []
    for index, number in rows:
        try:
            examples = reading.examples(index.part, *index.row(number))
        except DataError as error:
            problems.append(str(error))
        else:
            seen.append(SeenRows(index.sizes[number], tuple(examples)))
    return tuple(seen)


def _index(part: Part, files: ExitStack) -> _Index:
    path = Path(part.name)
    kind = None
    if path.is_file() and not part.of_images:
        file = files.enter_context(opened(path))
        kind = kind_of(path, file.read(4096), file)
        if kind is json_lines:
            return _lines(part, path, file)
    records = _listed(path) if kind is json_list else None
    records = [(where, _light(row)) for where, row in raw_records(part)] if records is None else records
    return _Index(part, records.__getitem__, [_length(row) for _, row in records])


def _lines(part: Part, path: Path, file: BinaryIO) -> _Index:
    begins, numbers, sizes, begin = [], [], [], file.seek(0)
    for number, line in enumerate(file, start=1):
        if not line.isspace():
            begins.append(begin)
            numbers.append(number)
            sizes.append(len(line))
        begin += len(line)

    def row(index: int) -> Record:
        where = f"{path}:{numbers[index]}"
        file.seek(begins[index])
        line = file.read(sizes[index])
        return where, row_of_line(line.removeprefix(MARK), where)

    if sizes:
        next(iter(part.open(part.seen)), None)  # reading the first row raises the problems of the whole file
    return _Index(part, row, sizes)


def _listed(path: Path) -> list[Record] | None:
    """Decode a JSON list at once, which is ten times as fast as row by row. None if that fails; then the slow way
    reports the problem."""
    try:
        rows = json.loads(content_of(path).removeprefix(MARK))
    except (ValueError, RecursionError):
        return None
    named = ((f"{path} (element {number})", row) for number, row in enumerate(rows, start=1))
    return [(where, checked(row, where)) for where, row in named]


def _light(row: Any) -> Any:
    """The row with only the beginning of its images, which are not decoded here."""
    if isinstance(row, dict):
        return {name: _light(value) for name, value in row.items()}
    return row[:HEAD] if isinstance(row, bytes) else row


def _length(value: Any) -> int:
    """Number of characters of the texts in a row."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_length, value.values()))
    return sum(map(_length, value)) if isinstance(value, list) else 0
