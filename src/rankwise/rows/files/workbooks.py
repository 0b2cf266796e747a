"""Read rows of an Excel workbook with openpyxl: one sheet, whose first non-empty row names the columns.

A cell becomes the text that a CSV export would contain. For a formula, the value that Excel stored is used. A formula
without a stored value makes a bad row, because nothing here computes formulas. The unpacked size is limited.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from rankwise.config.data import Reading
from rankwise.errors import DataError, first_line, some
from rankwise.rows.files.columnar import Record, column_names
from rankwise.rows.files.tables import Note, named
from rankwise.rows.forms.formats import Row
from rankwise.runs.row_facts import LayoutFacts
from rankwise.system.contents import content_of

BOOK = "xl/workbook.xml"
MOST_BYTES, FEW_BYTES, MOST_TIMES = 500_000_000, 50_000_000, 100
"""What a workbook may unpack to; beyond the second, at most so many times its own size. Rows take 3 to 20 times."""
WORKBOOKS = (".xlsx", ".xlsm")
OLD = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
Cells = list[tuple[int, list[Any]]]
"""Number and cells of each non-empty row."""


def holds_workbook(path: Path) -> bool:
    try:
        with ZipFile(path) as archive:
            return BOOK in archive.namelist()
    except (BadZipFile, OSError, ValueError):
        return False


def why_no_workbook(path: Path, head: bytes) -> str | None:
    """The reason why an office file cannot be read as a workbook, or None."""
    if head.startswith(OLD):
        if ENCRYPTED in content_of(path):
            return "is a workbook with a password; save it without one, or as CSV"
        if path.suffix.lower() in (".xls", ".xlt", *WORKBOOKS):
            return "is a workbook of Excel 97-2003 (.xls); open it and save it as .xlsx or CSV"
        return "is a document of an old Office program; save the rows as .xlsx or CSV"
    if b"application/vnd.oasis.opendocument.spreadsheet" in head[:200]:
        return "is an OpenDocument spreadsheet; save it as .xlsx or CSV"
    return None


def workbook_records(path: Path, source: Reading, note: Note) -> Iterator[Record]:
    sheet, cells = _sheet(path, source.sheet)
    numbers = [number for number, _ in cells]
    gaps = sorted({*range(numbers[0], numbers[-1])} - {*numbers}) if numbers else []
    note(LayoutFacts(sheet=sheet, empty_rows=len(gaps), empty_row=gaps[0] if gaps else None))
    (first, names), *rows = cells or [(1, [])]
    names = column_names(named([_text(name) for name in names]), f"{path}:{first}")
    for number, values in rows:
        where = f"{path}:{number}"
        yield where, _row(names, values, where)


def _row(names: list[str], values: list[Any], where: str) -> Row | DataError:
    if len(values) > len(names):
        several = "s" if len(names) > 1 else ""
        return DataError(
            f"{where}: has {len(values)} cells, but the first row names {len(names)} column{several}. Name the columns "
            "in the first row, and empty the cells to the right of them."
        )
    for name, value in zip(names, values, strict=False):
        if isinstance(value, DataError):
            return DataError(f"{where}: the column {name!r} {value}.")
    return dict(zip(names, [*map(_text, values), *[""] * (len(names) - len(values))], strict=True))


def _sheet(path: Path, name: str | None) -> tuple[str, Cells]:
    """Name and cells of the named sheet, or of the only sheet with rows."""
    try:
        sheets = _read(path, name)
    except DataError:
        raise
    except Exception as error:  # openpyxl's errors, and those of a damaged archive or XML
        raise DataError(f"{path}: cannot be read as a workbook and may be damaged: {first_line(error)}") from None
    filled = {title: cells for title, cells in sheets.items() if len(cells) > 1} or {
        title: cells for title, cells in sheets.items() if cells
    }
    if len(filled) > 1:
        raise DataError(f"{path}: has rows in the sheets {some(map(repr, filled))}. Name one of them with data.sheet.")
    return next(iter((filled or sheets).items()), ("", []))


def _read(path: Path, name: str | None) -> dict[str, Cells]:
    from openpyxl import load_workbook

    with ZipFile(path) as archive:
        if BOOK not in archive.namelist():
            raise DataError(f"{path}: is a zip archive without an Excel workbook in it.")
        size = sum(member.file_size for member in archive.infolist())  # zipfile reads no more than the archive states
    if size > (most := min(MOST_BYTES, max(FEW_BYTES, MOST_TIMES * path.stat().st_size))):
        raise DataError(
            f"{path}: would unpack to {size:,} bytes, more than {most:,}. Save the rows as CSV, or in several files."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # openpyxl warns about styles and input checks, which are not read
        stored, written = (
            load_workbook(path, read_only=True, data_only=data_only, keep_links=False) for data_only in (True, False)
        )
        try:
            titles = [sheet.title for sheet in stored.worksheets]
            if name is not None and name not in titles:
                raise DataError(f"{path}: has no sheet {name!r}; its sheets are {some(map(repr, titles))}.")
            return {title: _cells(stored[title], written[title]) for title in titles if name in (None, title)}
        finally:
            stored.close()
            written.close()


def _cells(stored: Any, shown: Any) -> Cells:
    for sheet in (stored, shown):
        sheet.reset_dimensions()  # the size that the file states may be wrong
    cells: Cells = []
    for number, (values, formulas) in enumerate(zip(stored.rows, shown.rows, strict=True), start=1):
        row = [_value(value, formula) for value, formula in zip(values, formulas, strict=True)]
        while row and row[-1] in (None, ""):
            row.pop()
        if row:
            cells.append((number, row))
    return cells


def _value(stored: Any, shown: Any) -> Any:
    if stored.data_type == "e":
        return DataError(f"contains the error {stored.value}")
    if stored.value is None and shown.data_type == "f" and stored.data_type == "n":
        return DataError("contains a formula whose value is not stored; open the file in Excel and save it")
    return stored.value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
