"""Read a data file row by row: JSON lines, a JSON list, a table (CSV, TSV, Excel), Parquet, Arrow.

The kind of file follows from its first bytes, or from its name if they do not decide. A row that cannot be read is
returned as a DataError with its `file:line`, so that the other rows can still be used. Damage that makes the rest of a
file unreadable (a list cut in the middle, a quote that is never closed) is an error for the whole file. It is looked
for before the first row is returned, because the number of lost rows would be unknown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rankwise.config.data import Reading
from rankwise.data.columnar import Record, Seen, arrow, find_damage, need, parquet
from rankwise.data.formats import Row
from rankwise.data.tables import Note, table_records
from rankwise.data.text_encoding import encoding_by_mark
from rankwise.data.workbooks import WORKBOOKS, holds_workbook, why_no_workbook, workbook_records
from rankwise.errors import DataError
from rankwise.system.strict_json import GivenTwice, loads, once

LONGEST_LINE = 16_000_000
Kind = Callable[..., Iterator[Record]]
NOT_TEXT = {
    b"\x1f\x8b": "is compressed (gzip)", b"PK\x03\x04": "is a zip archive", b"\x28\xb5\x2f\xfd": "is compressed (zstd)",
    b"\x80\x04": "is a pickle, which is never read", b"SQLite": "is a database", b"BZh": "is compressed (bzip2)",
    b"\xfd7zXZ\0": "is compressed (xz)", b"7z\xbc\xaf": "is a 7-Zip archive", b"%PDF": "is a PDF",
    b"version https://git-lfs": "is a pointer of Git LFS (run git lfs pull)",
}  # fmt: skip
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", *WORKBOOKS, ".parquet", ".arrow")
SETTINGS = {"delimiter": table_records, "encoding": table_records, "sheet": workbook_records}
"""Settings that apply to one kind of file, and this kind."""
AS_DETECTED = Reading()


def records(
    path: Path,
    seen: Seen = lambda share: None,
    header: list[str] | None = None,
    source: Reading = AS_DETECTED,
    note: Note = lambda layout: None,
) -> Iterator[Record]:
    """Every row of the file with its `file:line` (or `file:row`), or a DataError in place of a bad row.

    `header` names the columns of a table without a header line. `note` receives the layout of a table. A missing
    library raises an error at once, and a damaged file during the iteration.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        of_one = ", and header names the columns of one file" if header is not None and path.is_dir() else ""
        raise DataError(f"{path}: cannot be read ({error.strerror}){of_one}.") from None
    kind = kind_of(path, head)
    if kind in (parquet, arrow):
        need("pyarrow", f"{path}: reading {kind.__name__.capitalize()}")
    if kind is workbook_records:
        need("openpyxl", f"{path}: reading a workbook", extra="excel")
    if header is not None and kind is not table_records:
        raise DataError(f"{path}: is not a CSV or TSV file, so its columns already have names; leave out header.")
    _refuse_without_effect(path, kind, source)
    return _records_of(kind, path, head, seen, lambda: _open(kind, path, seen, header, source, note))


def _refuse_without_effect(path: Path, kind: Kind, source: Reading) -> None:
    for setting, only in SETTINGS.items():
        if getattr(source, setting) is not None and kind is not only:
            what = "CSV and TSV files" if only is table_records else "Excel workbooks"
            raise DataError(f"{path}: data.{setting} applies only to {what}. Leave it out.")


def _open(
    kind: Kind, path: Path, seen: Seen, header: list[str] | None, source: Reading, note: Note
) -> Iterator[Record]:
    if kind is table_records:
        return table_records(path, source, header, note)
    return workbook_records(path, source, note) if kind is workbook_records else kind(path, seen)


def _records_of(
    kind: Kind, path: Path, head: bytes, seen: Seen, opened: Callable[[], Iterator[Record]]
) -> Iterator[Record]:
    if (why := why_no_workbook(path, head)) is not None:
        raise DataError(f"{path}: {why}.")
    for mark, what in NOT_TEXT.items():
        if head.startswith(mark) and kind is not workbook_records:
            raise DataError(f"{path}: {what}; give JSON lines, a JSON list, CSV, TSV, Excel (.xlsx), Parquet or Arrow.")
    if kind in (json_lines, json_list) and (marked := encoding_by_mark(head)) and not marked.codec.startswith("utf-8"):
        raise DataError(f"{path}: is {marked.label} text, and JSON must be UTF-8. Save it as UTF-8.")
    try:
        yield from opened()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


def kind_of(path: Path, head: bytes) -> Kind:
    suffix = path.suffix.lower()
    if head.startswith(b"PAR1") or suffix == ".parquet":
        return parquet
    if head.startswith(b"ARROW1") or suffix == ".arrow":
        return arrow
    if suffix in WORKBOOKS or (head.startswith(b"PK\x03\x04") and holds_workbook(path)):
        return workbook_records
    if suffix in (".csv", ".tsv"):
        return table_records
    return json_list if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[" else json_lines


def json_lines(path: Path, seen: Seen) -> Iterator[Record]:
    """Read JSON lines as bytes, so that a line which is not UTF-8 is one bad row and not the end of the file."""
    size = max(1, path.stat().st_size)
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if number % 1000 == 0:
                seen(file.tell() / size)
            where = f"{path}:{number}"
            if len(line) > LONGEST_LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_LINE)
                yield where, DataError(f"{where}: the line is longer than {LONGEST_LINE:,} bytes.")
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip() == b"{" and path.suffix.lower() == ".json":
                    raise DataError(
                        f"{where}: begins an object that goes over several lines. Write rows as one JSON object per "
                        "line, or as one list. This file looks like settings."
                    )
            if line.strip():
                yield where, row_of_line(line, where)


def row_of_line(line: bytes, where: str) -> Row | DataError:
    try:
        return checked(loads(line.decode("utf-8")), where)
    except UnicodeDecodeError as error:
        return DataError(f"{where}: is not UTF-8 text (byte {error.start} of the line). Save the file as UTF-8.")
    except json.JSONDecodeError as error:
        return DataError(f"{where}: is not JSON: {error.msg} at column {error.colno}.")
    except GivenTwice as error:
        return DataError(f"{where}: the key {error} is given twice in one object.")
    except (RecursionError, ValueError):
        return DataError(f"{where}: is JSON nested too deeply, or with a number too long, to be a row.")


def checked(row: Any, where: str) -> Row | DataError:
    if isinstance(row, dict):
        return row
    return DataError(f"{where}: holds a {type(row).__name__}; a row is one JSON object.")


def json_list(path: Path, seen: Seen) -> Iterator[Record]:
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: is not UTF-8 text (byte {error.start} of the file). Save it as UTF-8."
        ) from None
    del content
    find_damage(_elements(path, text, lambda share: None))
    yield from _elements(path, text, seen)


def _elements(path: Path, text: str, seen: Seen) -> Iterator[Record]:
    """Decode element by element, to know the line and the number of each. A list may stand on one line."""
    decoder = json.JSONDecoder(object_pairs_hook=once)
    skip = json.decoder.WHITESPACE.match  # pyright: ignore[reportAttributeAccessIssue]
    position, line, counted, number = skip(text, skip(text, 0).end() + 1).end(), 1, 0, 0
    while text[position : position + 1] != "]":
        if number:
            if text[position : position + 1] != ",":
                _cut_off(path, text, position)
            position = skip(text, position + 1).end()
        line, counted, number = line + text.count("\n", counted, position), position, number + 1
        where = f"{path}:{line} (element {number})"
        try:
            row, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: is not JSON: {error.msg} at column {error.colno}.") from None
        except GivenTwice as error:
            _, position = json.JSONDecoder().raw_decode(text, position)
            row = DataError(f"{where}: the key {error} is given twice in one object.")
        except (RecursionError, ValueError):
            raise DataError(f"{where}: is JSON nested too deeply, or with a number too long, to be a row.") from None
        seen(position / len(text))
        yield where, row if isinstance(row, DataError) else checked(row, where)
        position = skip(text, position).end()
    if (rest := skip(text, position + 1).end()) != len(text):
        _cut_off(path, text, rest)


def _cut_off(path: Path, text: str, position: int) -> None:
    line = text.count("\n", 0, position) + 1
    if not text[position:].strip():
        raise DataError(f"{path}:{line}: the JSON list ends in the middle: its closing ] is missing.")
    raise DataError(
        f"{path}:{line}: is not JSON: {text[position:].lstrip()[:20]!r} where a comma or the end is expected."
    )
