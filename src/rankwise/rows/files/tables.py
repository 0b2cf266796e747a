"""Read CSV and TSV files. Encoding and column separator are detected and printed.

The first line names the columns, so the separator is the character that divides it into two or more columns. If several
characters do, it is the one that divides every row into the same number of columns. If that does not decide either, the
file is refused, and the message shows each possible reading. Python's `csv` reads the rows.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rankwise.config.base import shown
from rankwise.config.data import Reading
from rankwise.errors import DataError
from rankwise.rows.files.columnar import Record, column_names
from rankwise.rows.forms.formats import Row
from rankwise.rows.text.text_encoding import TextEncoding, detect_encoding
from rankwise.runs.row_facts import DELIMITERS, LayoutFacts

LONGEST_CELL = 16_000_000
HEAD, HEAD_ROWS = 1 << 18, 1000
Note = Callable[[LayoutFacts], None]
"""A callback that receives the layout of the file before its first row."""


@dataclass(frozen=True)
class Table:
    """A file with its encoding, separator and quoting."""

    path: Path
    encoding: TextEncoding
    delimiter: str
    quoting: Any = csv.QUOTE_MINIMAL
    skipped_lines: int = 0
    """1 if the first line is Excel's `sep=;`, else 0."""

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """Yield file:line and cells of each row, including the line of column names."""
        csv.field_size_limit(LONGEST_CELL)
        with self.encoding.opened(self.path) as file:
            lines = _without_mark(file)
            for _ in range(self.skipped_lines):
                next(lines)
            rows = csv.reader(lines, delimiter=self.delimiter, quoting=self.quoting, strict=True)
            line = 1 + self.skipped_lines
            try:
                for row in rows:
                    where, line = f"{self.path}:{line}", rows.line_num + 1 + self.skipped_lines
                    yield where, row
            except csv.Error as error:
                last = rows.line_num + self.skipped_lines
                closes = "expected after" in (reason := _reason(error))
                if (first := self._opened(line, last, closes=closes)) < last and closes:
                    reason = f"the quote that opens here ends in line {last}: {reason}"
                place = f"{self.path}:{first}"
                raise DataError(f"{place}: is not {self.path.suffix[1:].upper()}: {reason}.") from None
            except UnicodeDecodeError as error:
                label, reason = self.encoding.label, error.reason
                raise DataError(f"{self.path}:{line}: is not {label} text from here on ({reason}).") from None

    def _opened(self, begin: int, last: int, *, closes: bool) -> int:
        """The line in which the quote opens that is damaged in the last line of a row; there it `closes`, or never."""
        opened = None
        with self.encoding.opened(self.path) as file:
            for number, line in enumerate(islice(file, begin - 1, last - closes), start=begin):
                if quotes := line.replace('""', "").count('"'):
                    opened = number if (opened is None) == bool(quotes % 2) else None
        return opened or (last if closes else begin)


def table_records(path: Path, source: Reading, header: list[str] | None, note: Note) -> Iterator[Record]:
    """The rows of a table. `header` names the columns of a table without a header line."""
    table = detect_table(path, source, header)
    names, width, empty = _columns(table, header)
    note(_layout(table, len(names), width - len(names), empty))
    rows = table.rows()
    if header is None:
        next(rows, None)
    return (
        (where, _row(table, names, width, cells, where)) for where, cells in rows if any(cell.strip() for cell in cells)
    )


def _layout(table: Table, columns: int, dropped: int, empty: list[str]) -> LayoutFacts:
    delimiter = table.delimiter if columns + dropped > 1 else None
    first = int(empty[0].rpartition(":")[2]) if empty else None
    return LayoutFacts(
        encoding=table.encoding.label, delimiter=delimiter, unnamed_columns=dropped, empty_rows=len(empty),
        empty_row=first,
    )  # fmt: skip


def _columns(table: Table, header: list[str] | None) -> tuple[list[str], int, list[str]]:
    """The column names, the number of cells in the first line, and where rows of empty cells are. Reads the whole file,
    to find damage first."""
    names, width, empty = header or [], len(header or []), list[str]()
    for number, (where, cells) in enumerate(table.rows()):
        if header is None and number == 0:
            if any("\0" in cell for cell in cells):
                raise DataError(
                    f"{where}: is not text: it contains NUL bytes. Give a CSV file, or correct the file name's suffix."
                )
            names, width = column_names(named(_without_unnamed(cells)), where), len(cells)
        elif cells and not any(cell.strip() for cell in cells):
            empty.append(where)
        elif len(cells) == width and any(cell.strip() for cell in cells[len(names) :]):
            column = next(n for n in range(len(names), width) if cells[n].strip())
            raise DataError(
                f"{where}: the column {column + 1} contains {shown(cells[column])} but has no name in the first line. "
                "Add a name there, or empty the cell."
            )
    return names, width, empty


def _without_unnamed(cells: list[str]) -> list[str]:
    """Remove empty cells at the end, which spreadsheets write for columns that were used once."""
    named = len(cells)
    while named > 1 and not cells[named - 1].strip():
        named -= 1
    return cells[:named] if any(cell.strip() for cell in cells) else cells


def named(cells: list[str]) -> list[str]:
    """Give columns without a name the names that pandas gives them, such as the index column that pandas writes."""
    if not any(cell.strip() for cell in cells):
        return cells
    names, taken = list(cells), set(cells)
    for number, cell in enumerate(cells):
        if not cell.strip():
            tries = (f"Unnamed: {number}{again}" for again in ("", *(f".{more}" for more in range(1, len(cells) + 1))))
            names[number] = next(name for name in tries if name not in taken)
    return names


def _row(table: Table, names: list[str], width: int, cells: list[str], where: str) -> Row | DataError:
    if len(cells) not in (len(names), width):
        return DataError(f"{where}: has {len(cells)} cells, but the first line names {len(names)} columns.")
    cells = cells[: len(names)]
    if any("\udc80" <= character <= "\udcff" for cell in cells if not cell.isascii() for character in cell):
        return DataError(f"{where}: is not {table.encoding.label} text.")
    return dict(zip(names, cells, strict=True))


def detect_table(path: Path, source: Reading, header: list[str] | None = None) -> Table:
    encoding = detect_encoding(path, source.encoding)
    head, whole = _head(path, encoding)
    marked = re.match(r"sep=(.)\r?[\n\r]", head)
    if marked is not None and source.delimiter in (None, marked[1]):
        return _quoted(Table(path, encoding, marked[1], skipped_lines=1))
    default = "\t" if path.suffix.lower() == ".tsv" else ","
    splits = {delimiter: _split(head, whole, delimiter) for delimiter in DELIMITERS}
    delimiter = source.delimiter or _delimiter(path, splits, len(header or []), default)
    return _quoted(Table(path, encoding, delimiter))


def _quoted(table: Table) -> Table:
    """Read tab-separated text without quoting if that leaves fewer bad rows."""
    if table.delimiter != "\t":
        return table
    bare = Table(table.path, table.encoding, "\t", csv.QUOTE_NONE, table.skipped_lines)
    return table if _bad_rows(table) <= _bad_rows(bare) else bare


def _bad_rows(table: Table) -> float:
    try:
        widths = [len(cells) for _, cells in table.rows() if cells]
    except DataError:
        return float("inf")
    return sum(width != widths[0] for width in widths)


Splits = dict[str, list[list[str]]]
"""The first rows of a file, separated by each delimiter."""


def _split(head: str, is_complete: bool, delimiter: str) -> list[list[str]]:
    """Where a quote is not closed properly, the last row has no cells."""
    csv.field_size_limit(LONGEST_CELL)
    rows: list[list[str]] = []
    try:
        lines = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter, strict=True)
        rows += islice(filter(None, lines), HEAD_ROWS)
    except csv.Error:
        rows += [[]] if is_complete else []
    return rows if is_complete or len(rows) < 2 else rows[:-1]


def _widths(rows: list[list[str]]) -> set[int]:
    return set(map(len, rows))


def _delimiter(path: Path, splits: Splits, columns: int, default: str) -> str:
    """`columns` is the number of those that are named elsewhere, or 0."""
    filled = {one: rows for one, rows in splits.items() if rows and rows[0]}
    wide = [one for one, rows in filled.items() if (len(rows[0]) == columns if columns else len(rows[0]) > 1)]
    only_in_names = wide != [default] and all(_widths(splits[one][1:]) == {1} for one in wide)
    if only_in_names:
        return _of_one_column(path, filled, default)
    if len(wide) == 1 or default == "\t" in wide:
        return wide[0] if len(wide) == 1 else default
    even = [one for one in wide if len(_widths(splits[one])) == 1]
    if len(even) == 1:
        return even[0]
    readings = ", or ".join(
        f"separated by {DELIMITERS[one]}, with the columns {' and '.join(map(shown, splits[one][0][:4]))}"
        for one in even or wide
    )
    raise DataError(f"{path}: can be read in more than one way: {readings}. Set data.delimiter to the right one.")


def _of_one_column(path: Path, splits: Splits, default: str) -> str:
    """The separator of a table with one column name. Refuses rows with more columns, because names are missing."""
    for delimiter, rows in splits.items():
        width = max(_widths(rows[1:]), default=0)
        if width > 1 and _widths(rows[1:]) == {width}:
            other = "tab" if delimiter != "\t" else "comma"
            raise DataError(
                f"{path}: can be read in more than one way: the first line names one column ({shown(rows[0][0])}), and "
                f"{DELIMITERS[delimiter]} separate every row into {width}. Name all columns in the first line, or set "
                f"data.delimiter to {other} if each line is one cell."
            )
    unsplit = [one for one, rows in splits.items() if _widths(rows) == {1}]
    return default if default in unsplit or not unsplit else unsplit[0]


def _head(path: Path, encoding: TextEncoding) -> tuple[str, bool]:
    """The beginning of the file, and whether it is the whole file."""
    try:
        with encoding.opened(path) as file:
            text = file.read(HEAD)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not {encoding.label} text ({error.reason}).") from None
    return text.removeprefix("\ufeff"), len(text) < HEAD


def _without_mark(lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield line.removeprefix("\ufeff") if number == 0 else line


def _reason(error: csv.Error) -> str:
    text = str(error)
    if "field larger" in text:
        return f"a cell has more than {LONGEST_CELL:,} characters, as if a quote were never closed"
    return "a quote is never closed" if "unexpected end" in text else text
