"""How a file of rows is written, in the words of the data report."""

from __future__ import annotations

from typing import Literal

from rankwise.config.base import Config
from rankwise.errors import one_line, some

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


class LayoutFacts(Config):
    """How a table is written, as detected or as set; or how the pixels of arrays are read."""

    encoding: str | None = None
    """None for a workbook."""
    delimiter: str | None = None
    """None for a workbook, and for a table of one column."""
    sheet: str | None = None
    unnamed_columns: int = 0
    """Trailing columns without name and content, which are dropped."""
    empty_rows: int = 0
    """Rows without any content between others, which are dropped."""
    empty_row: int | None = None
    """The line of the first of them."""
    pixels: str | None = None
    """Only for arrays of images: their size and the range of their values."""
    nested: str | None = None
    """Only for one JSON object: where its rows are."""

    @property
    def blank(self) -> str:
        if not self.empty_rows:
            return ""
        return f"rows of empty cells, which are left out: {self.empty_rows:,}, the first in line {self.empty_row}"

    def describe(self) -> str:
        if self.nested is not None:
            return self.nested
        if self.pixels is not None:
            return self.pixels
        if self.sheet is not None:
            return f'sheet "{self.sheet}"'
        delimiter = DELIMITERS.get(self.delimiter or "", repr(self.delimiter))
        columns = f"separated by {delimiter}" if self.delimiter is not None else "one column"
        several = "s" if self.unnamed_columns > 1 else ""
        dropped = (
            f", {self.unnamed_columns} empty column{several} without a name left out" if self.unnamed_columns else ""
        )
        return f"{columns}, encoded as {self.encoding}{dropped}"


class Doubt(Config):
    """Rows that probably do not mean what their author thinks, by one of the checks of data/meaning.py."""

    check: str
    rows: int
    of: int
    example: str
    """`file:line` of one or more of them."""
    text: str
    stops: bool
    """Training is refused until data.accept names the check."""

    @property
    def refusal(self) -> str:
        return f"{self.text}. To train on them all the same, add --set data.accept={self.check}."


class HoldOutFacts(Config):
    """How rows were held out for validation."""

    order: Literal["seed", "last"]
    seed: int | None
    """None if the last rows are held out."""
    requested: int
    rows: int
    of: int
    """Usable rows, from which these are held out."""
    labels: dict[str, int] | None
    """Held-out rows per label, for the hundred most frequent labels; None if rows have no labels."""
    group: str | None
    """The column by which rows are grouped; a group is never split."""
    groups: int | None
    groups_in_all: int | None
    by_default: bool = False
    """Nobody asked for them."""

    def describe(self) -> str:
        """Describe the hold-out in one sentence."""
        return f"Held out {self.counts()}."

    def counts(self) -> str:
        """Describe the hold-out as a phrase that follows "held out"."""
        text = f"{self.rows:,} of {self.of:,} rows"
        text += f" by seed {self.seed}" if self.order == "seed" else ", the last of each source"
        if self.group is not None:
            text += (
                f", {self.groups:,} of {self.groups_in_all:,} groups by {self.group} (requested: {self.requested:,})"
            )
        if self.labels:
            listed = some((f"{one_line(label)} {count:,}" for label, count in self.labels.items()), 8)
            text += f"{', stratified' if self.order == 'seed' else ''} by label: {listed}"
        return f"{text} (by default; --held-out 0 trains on all rows)" if self.by_default else text
