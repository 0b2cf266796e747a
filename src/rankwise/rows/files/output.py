"""Rows with what was answered, as a file: JSON lines, CSV, TSV or an Excel workbook.

A table goes out as it came in. CSV has the separator, the encoding, the byte order mark and the line ends of the file
that the rows were read from, so that what opened that file opens this one; numbers have a decimal comma where columns
are separated by semicolons, as spreadsheets expect. A workbook is the one that was read, with new columns behind its
own. A text in a workbook stays a text, even one that begins like a formula.
"""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.config.data import Rows
from rankwise.errors import DataError
from rankwise.rows.files.columnar import need
from rankwise.rows.files.hub import Part
from rankwise.rows.files.tables import HEAD, detect_table
from rankwise.rows.files.workbooks import WORKBOOKS
from rankwise.rows.forms.image_rows import is_image
from rankwise.runs.records import Callback, WarningMessage, silent

TABLES = (".csv", ".tsv")
SUFFIXES = (".jsonl", *TABLES, ".xlsx")
LONGEST_CELL = 32_767
"""Characters of a cell in Excel."""
CODECS = {
    BOM_UTF8: "utf-8", BOM_UTF32_LE: "utf-32-le", BOM_UTF32_BE: "utf-32-be", BOM_UTF16_LE: "utf-16-le",
    BOM_UTF16_BE: "utf-16-be",
}  # fmt: skip
"""By byte order mark; UTF-32 comes first, because its mark begins with that of UTF-16."""
_POINT = re.compile(r'(?:^|[;"])-?\d+\.\d+(?:$|[;"])', re.MULTILINE)
Row = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """The file that rows were read from, how it was read, where in it each row stands, and what columns are new."""

    path: Path
    source: Rows
    sheet: str | None
    places: Sequence[str]
    added: Sequence[str]

    @classmethod
    def of(
        cls, parts: Sequence[Part], source: Rows, places: Sequence[str], rows: Sequence[Row], columns: set[str]
    ) -> Origin | None:
        """The file of these rows, if it is one; all their columns but those that it has are new."""
        if len(parts) != 1 or not Path(parts[0].name).is_file():
            return None
        added = dict.fromkeys(name for row in rows for name in row if name not in columns)
        return cls(Path(parts[0].name), source, parts[0].layout and parts[0].layout.sheet, places, list(added))


@dataclass(frozen=True)
class TableDialect:
    """How a table is written."""

    delimiter: str = ","
    codec: str = "utf-8"
    mark: bytes = b""
    line_end: str = "\n"
    before: str = ""
    """Excel's line `sep=;`."""
    point: str = "."

    @classmethod
    def of(cls, path: Path, source: Rows, suffix: str) -> TableDialect:
        """That of the table at `path`, for a file with this suffix."""
        table = detect_table(path, source)
        with path.open("rb") as file:
            head = file.read(4)
        with table.encoding.opened(path) as file:
            text = file.read(HEAD)
        mark = next((mark for mark in CODECS if head.startswith(mark)), b"")
        delimiter = table.delimiter if path.suffix.lower() == suffix else USUAL[suffix].delimiter
        return cls(
            delimiter, CODECS.get(mark, table.encoding.codec), mark,
            "\r\n" if "\r\n" in text.partition("\n")[0] + "\n" else "\n",
            f"sep={delimiter}" if table.skipped_lines else "",
            "," if delimiter == ";" and _POINT.search(text) is None else ".",
        )  # fmt: skip

    def file_of(self, rows: Sequence[Row], out: Path, callback: Callback) -> bytes:
        """All columns that occur in any row. A value that is not a text or a number is written as JSON."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO(newline="")
        text.write(self.before + self.line_end if self.before else "")
        table = csv.DictWriter(text, names, restval="", delimiter=self.delimiter, lineterminator=self.line_end)
        table.writeheader()
        table.writerows({name: self._cell(value) for name, value in row.items()} for row in rows)
        try:
            return self.mark + text.getvalue().encode(self.codec)
        except UnicodeEncodeError as error:
            if self.codec.startswith("utf"):  # half of a surrogate pair
                return self.mark + text.getvalue().encode(self.codec, errors="replace")
            character = error.object[error.start]
            callback(WarningMessage(
                f"{out} is written in UTF-8 with a byte order mark, because {self.codec} has no character {character!r}"
            ))  # fmt: skip
            return BOM_UTF8 + text.getvalue().encode(errors="replace")

    def _cell(self, value: Any) -> Any:
        value = _flat(value)
        return str(value).replace(".", self.point) if isinstance(value, float) else value


USUAL = {".csv": TableDialect(), ".tsv": TableDialect("\t")}
"""Where the rows came from no table."""


def check_name(out: Path) -> None:
    if out.suffix.lower() not in SUFFIXES:
        raise DataError(f"{out}: the name of --out must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
    if out.suffix.lower() == ".xlsx":
        need("openpyxl", f"{out}: writing a workbook", extra="excel")


def file_of(rows: Sequence[Row], out: Path, origin: Origin | None = None, callback: Callback = silent) -> bytes:
    """The file's content. Of an image only the path is written, or if it has none, where its row stands."""
    places = [None] * len(rows) if origin is None else origin.places
    rows = [{name: _path(value) or place if is_image(value) else value for name, value in row.items()}
            for row, place in zip(rows, places, strict=True)]  # fmt: skip
    suffix, before = out.suffix.lower(), "" if origin is None else origin.path.suffix.lower()
    if suffix == ".xlsx":
        return _workbook(rows, out, origin if before in WORKBOOKS else None)
    if suffix not in TABLES:
        return b"".join(map(line_of, rows))
    dialect = (
        USUAL[suffix] if origin is None or before not in TABLES else TableDialect.of(origin.path, origin.source, suffix)
    )
    return dialect.file_of(rows, out, callback)


def _path(image: Any) -> Any:
    return image["path"] if isinstance(image, dict) else None


def line_of(row: Row) -> bytes:
    """The row as a line of JSON."""
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(row, default=str).encode() + b"\n"


def _flat(value: Any) -> Any:
    if isinstance(value, dict | list | bool):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else value


def _workbook(rows: Sequence[Row], out: Path, origin: Origin | None) -> bytes:
    from openpyxl import Workbook, load_workbook

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # openpyxl warns about what it does not keep, as it does where it only reads
        book = Workbook() if origin is None else load_workbook(origin.path)
    sheet: Any = book.active if origin is None or origin.sheet is None else book[origin.sheet]
    filled = (cells for cells in sheet.iter_rows() if any(cell.value not in (None, "") for cell in cells))
    header = next(filled, ())
    width = max((cell.column for cell in header if cell.value not in (None, "")), default=0)
    names = list(dict.fromkeys(name for row in rows for name in row)) if origin is None else origin.added
    numbers = range(2, len(rows) + 2) if origin is None else [int(one.rpartition(":")[2]) for one in origin.places]
    titles = (header[0].row if header else 1, dict(zip(names, names, strict=True)))
    for number, row in (titles, *zip(numbers, rows, strict=True)):
        for column, name in enumerate(names, start=width + 1):
            _put(sheet.cell(number, column), row.get(name), f"{out}, row {number}, column {name!r}")
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


def _put(cell: Any, value: Any, where: str) -> None:
    """A text is marked as one, since openpyxl takes what begins with = for a formula."""
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    value = _flat(value)
    if not isinstance(value, str):
        cell.value = value
        return
    if len(value) > LONGEST_CELL:
        raise DataError(
            f"{where}: the text has {len(value):,} characters, and a cell of a workbook holds {LONGEST_CELL:,}. Give "
            "--out a name that ends in .jsonl or .csv."
        )
    cell.value = ILLEGAL_CHARACTERS_RE.sub("\ufffd", value.encode(errors="replace").decode())
    cell.data_type = "s"
