"""How a file of rows is written, in the words of the data report."""

from __future__ import annotations

from rankwise.config.base import Config

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
