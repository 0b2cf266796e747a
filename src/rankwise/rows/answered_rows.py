"""Rows with an added column, written as JSON lines or, for a file name ending in .csv, as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.errors import DataError
from rankwise.rows.forms.image_rows import is_image

SUFFIXES = (".jsonl", ".csv")


def check_name(out: Path) -> None:
    if out.suffix.lower() not in SUFFIXES:
        raise DataError(f"{out}: the name of --out must end in {' or '.join(SUFFIXES)}.")


def file_of(rows: Sequence[dict[str, Any]], out: Path) -> bytes:
    """The file's content. Of an image only the path is written, if it has one."""
    rows = [{name: _path(value) if is_image(value) else value for name, value in row.items()} for row in rows]
    return _csv(rows) if out.suffix.lower() == ".csv" else b"".join(map(_line, rows))


def _path(image: Any) -> Any:
    return image["path"] if isinstance(image, dict) else None


def _line(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(row, default=str).encode() + b"\n"


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """Write all columns that occur in any row. A value that is not a text or a number is written as JSON."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, names, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode(errors="replace")


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list | bool):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else value
