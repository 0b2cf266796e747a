"""A glance at files of rows: how many there are, how large each is, and some of them read.

Of JSON lines only the ends of lines are looked for, so that a hundred thousand rows take a tenth of a second; other
kinds are read whole. Which rows are drawn depends on nothing but how many there are. The largest are read besides,
since they decide how much memory a training needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from rankwise.config.data import DataConfig, Rows
from rankwise.data.columnar import Record
from rankwise.data.files import (
    checked,
    json_lines,
    json_list,
    kind_of,
    row_of_line,
)
from rankwise.data.hub import Part
from rankwise.data.sources import Reading, open_source, raw_records
from rankwise.errors import DataError
from rankwise.text.example import Example

DRAWN, LARGEST = 300, 8
MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Seen:
    """A row that was read. `size` is its length in the file, in bytes or in characters of its texts: all rows of one
    glance in the same."""

    size: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Glance:
    rows: int
    """That are asked for."""
    found: int
    """In the files."""
    size: int
    """Of all that are asked for, together."""
    drawn: tuple[Seen, ...]
    largest: tuple[Seen, ...]
    problems: tuple[str, ...] = ()
    """Why rows that were drawn cannot be read."""
    unread: int = 0
    """How many of the drawn."""


@dataclass
class _Index:
    """Where the rows of one file are."""

    part: Part
    row: Callable[[int], Record]
    sizes: list[int] = field(default_factory=list)


def glance(spec: DataConfig, source: Rows, *, drawn: int = DRAWN, largest: int = LARGEST) -> Glance:
    reading = open_source(spec, source)
    indices = [_index(part) for part in reading.parts]
    places = [(index, number) for index in indices for number in range(len(index.sizes))]
    if not places:
        raise DataError(f"{source.path}: has no rows.")
    seen = _Look(reading)
    for index in indices:
        seen.settle_form(index)
    by_size = sorted(places, key=lambda place: -place[0].sizes[place[1]])[:largest]
    chosen = sorted(Random(0).sample(range(len(places)), min(drawn, len(places))))
    read = seen.read([places[number] for number in chosen])
    problems = tuple(seen.problems)
    if not read:
        raise DataError(problems[0])
    rows = len(places) if source.rows is None else min(source.rows, len(places))
    size = sum(sum(index.sizes) for index in indices)
    size = round(size * rows / len(places))
    return Glance(rows, len(places), size, read, seen.read(by_size), problems, len(problems))


@dataclass
class _Look:
    reading: Reading
    problems: list[str] = field(default_factory=list)

    def settle_form(self, index: _Index) -> None:
        """By the first row of the file that can be read, as in a training."""
        for number in range(min(len(index.sizes), DRAWN)):
            where, row = index.row(number)
            if not isinstance(row, DataError):
                self._examples(index, where, row)
                break
        self.problems.clear()

    def read(self, places: list[tuple[_Index, int]]) -> tuple[Seen, ...]:
        found = [(index.sizes[number], self._examples(index, *index.row(number))) for index, number in places]
        return tuple(Seen(size, tuple(examples)) for size, examples in found if examples)

    def _examples(self, index: _Index, where: str, row: Any) -> list[Example]:
        try:
            return self.reading.examples(index.part, where, row)
        except DataError as error:
            self.problems.append(str(error))
            return []


def _index(part: Part) -> _Index:
    path = Path(part.name)
    kind = None
    if path.is_file():
        with path.open("rb") as file:
            kind = kind_of(path, file.read(4096))
    if kind is json_lines:
        return _lines(part, path)
    found = _listed(path) if kind is json_list else None
    found = list(raw_records(part)) if found is None else found
    return _Index(part, found.__getitem__, [_length(row) for _, row in found])


def _lines(part: Part, path: Path) -> _Index:
    begins, numbers, sizes, begin = [], [], [], 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                begins.append(begin)
                numbers.append(number)
                sizes.append(len(line))
            begin += len(line)

    def row(index: int) -> Record:
        where = f"{path}:{numbers[index]}"
        with path.open("rb") as file:
            file.seek(begins[index])
            line = file.read(sizes[index])
        return where, row_of_line(line.removeprefix(MARK), where)

    if sizes:
        next(iter(part.open(part.seen)), None)  # what is wrong with the file is told by its first row
    return _Index(part, row, sizes)


def _listed(path: Path) -> list[Record] | None:
    """In one go, which is ten times as fast as row by row; None for a list that is damaged or odd, which the slow way
    tells of."""
    try:
        rows = json.loads(path.read_bytes().removeprefix(MARK))
    except (ValueError, RecursionError):
        return None
    named = ((f"{path} (element {number})", row) for number, row in enumerate(rows, start=1))
    return [(where, checked(row, where)) for where, row in named]


def _length(value: Any) -> int:
    """Of the texts in a row."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_length, value.values()))
    return sum(map(_length, value)) if isinstance(value, list) else 0
