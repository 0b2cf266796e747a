"""The columns of rows before anything is decided: an example of each, the format that they match, and a proposal.

The proposal is the one that an error message would give (data/proposals.py): which columns to write into the prompt,
and which is the answer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from rankwise.config.data import DataConfig
from rankwise.data.formats import form_of
from rankwise.data.proposals import can_be_typed, guessed
from rankwise.data.sources import open_source, raw_records
from rankwise.errors import DataError

LONGEST_EXAMPLE = 160
COUNTING_SECONDS = 2.0
"""For which rows are counted at most."""


@dataclass(frozen=True)
class Column:
    name: str
    example: str
    typed: bool
    """Whether its name can stand in braces."""


@dataclass(frozen=True)
class Columns:
    """`rows` are those of all files, or None where they are too many to be counted in a moment."""

    columns: tuple[Column, ...]
    format: str | None
    """The known format of the first row; None where its columns match none."""
    prompt: str | None
    """A proposal for `data.prompt` where the format is not known."""
    completion: str | None
    images: bool
    files: tuple[str, ...]
    rows: int | None


def columns_of(data: DataConfig) -> Columns:
    """DataError where there is no row that can be read."""
    reading = open_source(data, data.all_sources[0])
    part = reading.parts[0]
    _, row = next(raw_records(part), ("", None))
    if isinstance(row, DataError):
        raise row
    if row is None:
        raise DataError(f"{data.all_sources[0].path}: has no rows.")
    images = part.of_images
    known = "image" if images else form_of(row)
    guess = guessed(row) if known is None else None
    prompt, completion = (None, None) if guess is None else (" ".join(f"{{{one}}}" for one in guess[0]), guess[1])
    shown = tuple(Column(name, _example(value), can_be_typed(name)) for name, value in row.items())
    names = tuple(one.name for one in reading.parts)
    return Columns(
        shown, known, prompt, None if completion is None else f"{{{completion}}}", images, names, _count(reading.parts)
    )


def _example(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= LONGEST_EXAMPLE else f"{text[:LONGEST_EXAMPLE]}…"


def _count(parts: list[Any]) -> int | None:
    until, rows = time.monotonic() + COUNTING_SECONDS, 0
    for part in parts:
        for _ in raw_records(part):
            rows += 1
            if rows % 1000 == 0 and time.monotonic() > until:
                return None
    return rows
