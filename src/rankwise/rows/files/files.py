"""Read a data file row by row: JSON lines, a JSON list, one JSON object with the rows in it, a table (CSV, TSV, Excel),
Parquet, Arrow.

The kind of file follows from its first bytes, or from its name if they do not decide. A row that cannot be read is
returned as a DataError with its `file:line`, so that the other rows can still be used. Damage that makes the rest of a
file unreadable (a list cut in the middle, a quote that is never closed) is an error for the whole file. It is looked
for before the first row is returned, because the number of lost rows would be unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rankwise.config.base import shown
from rankwise.config.data import Reading, column_text
from rankwise.errors import DataError, did_you_mean, some
from rankwise.rows.files.columnar import Record, Seen, arrow, find_damage, need, parquet
from rankwise.rows.files.tables import Note, table_records
from rankwise.rows.files.workbooks import WORKBOOKS, holds_workbook, why_no_workbook, workbook_records
from rankwise.rows.forms.formats import Row, form_of
from rankwise.rows.text.text_encoding import encoding_by_mark
from rankwise.runs.row_facts import LayoutFacts
from rankwise.system.contents import content_of, opened
from rankwise.system.foreign_json import GivenTwice, loads, once

BOM = b"\xef\xbb\xbf"
LONGEST_LINE = 16_000_000
MOST_KEYS = 4
"""Keys of a path at which rows are looked for in an object."""
Kind = Callable[..., Iterator[Record]]
NOT_TEXT = {
    b"\x1f\x8b": "is compressed (gzip)", b"PK\x03\x04": "is a zip archive", b"\x28\xb5\x2f\xfd": "is compressed (zstd)",
    b"\x80\x04": "is a pickle, which is never read", b"SQLite": "is a database", b"BZh": "is compressed (bzip2)",
    b"\xfd7zXZ\0": "is compressed (xz)", b"7z\xbc\xaf": "is a 7-Zip archive", b"%PDF": "is a PDF",
    b"version https://git-lfs": "is a pointer of Git LFS (run git lfs pull)",
}  # fmt: skip
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", *WORKBOOKS, ".parquet", ".arrow")
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
        with opened(path) as file:
            head = file.read(4096)
            kind = kind_of(path, head, file)
    except OSError as error:
        of_one = ", and header names the columns of one file" if header is not None and path.is_dir() else ""
        raise DataError(f"{path}: cannot be read ({error.strerror}){of_one}.") from None
    if kind in (parquet, arrow):
        need("pyarrow", f"{path}: reading {kind.__name__.capitalize()}")
    if kind is workbook_records:
        need("openpyxl", f"{path}: reading a workbook", extra="excel")
    if header is not None and kind is not table_records:
        raise DataError(f"{path}: is not a CSV or TSV file, so its columns already have names; leave out header.")
    for setting, only in SETTINGS.items():
        if getattr(source, setting) is not None and kind is not only:
            raise DataError(f"{path}: data.{setting} applies only to {OF_KIND[only]}. Leave it out.")
    return _records_of(kind, path, head, seen, lambda: _open(kind, path, seen, header, source, note))


def _open(
    kind: Kind, path: Path, seen: Seen, header: list[str] | None, source: Reading, note: Note
) -> Iterator[Record]:
    if kind is table_records:
        return table_records(path, source, header, note)
    if kind is json_object:
        return json_object(path, seen, source, note)
    return workbook_records(path, source, note) if kind is workbook_records else kind(path, seen)


def _records_of(
    kind: Kind, path: Path, head: bytes, seen: Seen, read: Callable[[], Iterator[Record]]
) -> Iterator[Record]:
    if (why := why_no_workbook(path, head)) is not None:
        raise DataError(f"{path}: {why}.")
    for mark, what in NOT_TEXT.items():
        if head.startswith(mark) and kind is not workbook_records:
            raise DataError(f"{path}: {what}; give JSON lines, a JSON list, CSV, TSV, Excel (.xlsx), Parquet or Arrow.")
    of_json = kind in (json_lines, json_list, json_object)
    if of_json and (marked := encoding_by_mark(head)) and not marked.codec.startswith("utf-8"):
        raise DataError(f"{path}:1: is {marked.label} text, and JSON must be UTF-8. Save it as UTF-8.")
    try:
        yield from read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


def kind_of(path: Path, head: bytes, file: BinaryIO) -> Kind:
    """By the name and the first bytes; `file` is read on where they do not decide."""
    suffix = path.suffix.lower()
    if head.startswith(b"PAR1") or suffix == ".parquet":
        return parquet
    if head.startswith(b"ARROW1") or suffix == ".arrow":
        return arrow
    if suffix in WORKBOOKS or (head.startswith(b"PK\x03\x04") and holds_workbook(path)):
        return workbook_records
    text = head.removeprefix(BOM).lstrip()
    if suffix in (".csv", ".tsv") and not re.match(rb'\{\s*"|\[\s*\{', text):
        return table_records
    if text[:1] != b"{":
        return json_list if text[:1] == b"[" else json_lines
    return json_object if _is_one_object(path, file) else json_lines


def _is_one_object(path: Path, file: BinaryIO) -> bool:
    """Whether the first line is all there is, or in a .json file begins an object that goes over several lines."""
    file.seek(0)
    first = b"\n"
    while first.isspace():
        first = file.readline(LONGEST_LINE + 1)
    rest = file.read(4096).strip()
    begins = len(first) > LONGEST_LINE or first.strip()[-1:] in b"{[,:"
    return not rest or (begins and path.suffix.lower() == ".json")


def json_lines(path: Path, seen: Seen) -> Iterator[Record]:
    """Read JSON lines as bytes, so that a line which is not UTF-8 is one bad row and not the end of the file."""
    size = max(1, path.stat().st_size)
    with opened(path) as file:
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
                line = line.removeprefix(BOM)
            if line.strip():
                yield where, row_of_line(line, where)


def row_of_line(line: bytes, where: str) -> Row | DataError:
    try:
        return checked(loads(line.decode("utf-8")), where)
    except UnicodeDecodeError as error:
        return DataError(f"{where}: is not UTF-8 text (byte {error.start} of the line). Save the file as UTF-8.")
    except (RecursionError, ValueError) as error:
        return DataError(f"{where}: {_why(error)}")


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON: {error.msg} at column {error.colno}."
    if isinstance(error, GivenTwice):
        return f"the key {error} is given twice in one object."
    return "is JSON nested too deeply, or with a number too long, to be a row."


def checked(row: Any, where: str) -> Row | DataError:
    if isinstance(row, dict):
        return row
    return DataError(f"{where}: holds a {type(row).__name__}; a row is one JSON object.")


def json_list(path: Path, seen: Seen) -> Iterator[Record]:
    text = _text_of(path)
    find_damage(_elements(path, text, lambda share: None))
    yield from _elements(path, text, seen)


def _text_of(path: Path) -> str:
    content = content_of(path).removeprefix(BOM)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: is not UTF-8 text (byte {error.start} of the file). Save it as UTF-8."
        ) from None


def json_object(path: Path, seen: Seen, source: Reading, note: Note) -> Iterator[Record]:
    """Rows inside one object: a list of them, or the columns that pandas' `to_json` writes; or the object is a row."""
    text = _text_of(path)
    begin, value = _SKIP(text, 0).end(), _parsed_file(path, text)
    line = f"{path}:{text.count(chr(10), 0, begin) + 1}"
    for name in source.field.split(".") if source.field is not None else ():
        if not isinstance(value, dict) or name not in value:
            keys = list(map(shown, value)) if isinstance(value, dict) else []
            raise DataError(
                f"{line}: data.field is {source.field!r}, but there is no {name!r}"
                f"{f'; the keys are {some(keys, 8)}.{did_you_mean(name, value)}' if keys else '.'}"
            )
        begin, value = _place_of(text, begin, name), value[name]
    if isinstance(value, dict) and _is_of_columns(value):
        note(LayoutFacts(nested="columns as pandas writes them"))
        for number, index in enumerate(next(iter(value.values())), start=1):
            yield f"{line} (row {number})", {name: column[index] for name, column in value.items()}
        return
    if source.field is None and isinstance(value, dict):
        lists = _lists_in(value)
        if (is_row := _is_row(value, source)) or "data" not in lists:
            is_line = "\n" not in text.strip() and (is_row or path.suffix == ".jsonl" or not lists)
            yield line, value if is_line else DataError(_no_rows(line, value, lists))
            return
        note(LayoutFacts(nested="rows in the list 'data'"))
        begin, value = _place_of(text, begin, "data"), value["data"]
    if not isinstance(value, list):
        raise DataError(f"{line}: data.field is {source.field!r}, which holds {shown(value)}; a list is expected.")
    yield from _elements(path, text, seen, begin)


def _parsed_file(path: Path, text: str) -> Any:
    try:
        return loads(text)
    except (RecursionError, ValueError) as error:
        line = getattr(error, "lineno", 1)
        several = " The file begins with an object over several lines." if line > 1 else ""
        raise DataError(f"{path}:{line}: {_why(error)}{several}") from None


def _is_row(value: Row, source: Reading) -> bool:
    texts = (source.prompt, source.completion)
    named = {*source.columns.values(), *(name for text in texts for name in column_text(text or "").columns)}
    return bool(named & value.keys()) or form_of(value) is not None


def _is_of_columns(value: Row) -> bool:
    """Whether this is what `DataFrame.to_json()` writes: each column as an object of row number and value."""
    columns = [one.keys() if isinstance(one, dict) else set[str]() for one in value.values()]
    return bool(columns) and bool(columns[0]) and all(map(str.isdecimal, columns[0])) and columns[1:] == columns[:-1]


def _lists_in(value: Any, path: str = "") -> list[str]:
    """The paths of all lists of objects in an object."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [path]
    inside = value.items() if isinstance(value, dict) and path.count(".") < MOST_KEYS else ()
    return [found for name, one in inside for found in _lists_in(one, f"{path}.{name}".lstrip("."))]


def _no_rows(line: str, value: Row, lists: list[str]) -> str:
    named = " or ".join(f"--set data.field={name}" for name in lists[:4])
    hint = f"If a list in it has the rows, name it: {named}. Else write" if lists else "Write"
    return (
        f"{line}: begins one object, with the keys {some(map(shown, value), 8) or '(none)'}, where rows are expected. "
        f"{hint} rows as one JSON object per line, or as one list."
    )


def _place_of(text: str, position: int, name: str) -> int:
    """Where the value of a key begins in the object at a position of a text that is JSON."""
    decoder, key = json.JSONDecoder(), None
    while True:
        position = _SKIP(text, position + 1).end()
        key, position = decoder.raw_decode(text, position)
        position = _SKIP(text, _SKIP(text, position).end() + 1).end()
        if key == name:
            return position
        position = _SKIP(text, decoder.raw_decode(text, position)[1]).end()


def _elements(path: Path, text: str, seen: Seen, begin: int | None = None) -> Iterator[Record]:
    """Decode element by element, to know the line and the number of each. A list may stand on one line. `begin` is that
    of a list inside an object."""
    decoder, skip = json.JSONDecoder(object_pairs_hook=once), _SKIP
    position, line, counted, number = skip(text, begin or 0).end(), 1, 0, 0
    position = skip(text, position + 1).end()
    while text[position : position + 1] != "]":
        if number:
            if text[position : position + 1] != ",":
                _cut_off(path, text, position)
            position = skip(text, position + 1).end()
        line, counted, number = line + text.count("\n", counted, position), position, number + 1
        where = f"{path}:{line} (element {number})"
        try:
            row, position = decoder.raw_decode(text, position)
        except GivenTwice as error:
            _, position = json.JSONDecoder().raw_decode(text, position)
            row = DataError(f"{where}: {_why(error)}")
        except (RecursionError, ValueError) as error:
            place = f"{path}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else where
            raise DataError(f"{place}: {_why(error)}") from None
        seen(position / len(text))
        yield where, row if isinstance(row, DataError) else checked(row, where)
        position = skip(text, position).end()
    if begin is None and (rest := skip(text, position + 1).end()) != len(text):
        _cut_off(path, text, rest)


def _cut_off(path: Path, text: str, position: int) -> None:
    line = text.count("\n", 0, position) + 1
    if not text[position:].strip():
        raise DataError(f"{path}:{line}: the JSON list ends in the middle: its closing ] is missing.")
    raise DataError(
        f"{path}:{line}: is not JSON: {text[position:].lstrip()[:20]!r} where a comma or the end is expected."
    )


_SKIP = json.decoder.WHITESPACE.match  # pyright: ignore[reportAttributeAccessIssue]
SETTINGS = {"delimiter": table_records, "encoding": table_records, "sheet": workbook_records, "field": json_object}
"""Settings that apply to one kind of file, and this kind."""
OF_KIND: dict[Kind, str] = {
    table_records: "CSV and TSV files", workbook_records: "Excel workbooks", json_object: "a JSON file of one object",
}  # fmt: skip
