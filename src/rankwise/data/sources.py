"""JSON lines from a file into Examples. Every bad row is told with its line; none is skipped in silence."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from rankwise.data.example import Example
from rankwise.data.formats import Row, find_format, parse_row
from rankwise.errors import DataError, did_you_mean, together
from rankwise.spec.data import DataSpec

LONGEST_LINE = 16_000_000


def read_examples(spec: DataSpec) -> tuple[list[Example], str]:
    """All rows of the file, and the form they have."""
    examples: list[Example] = []
    problems: list[str] = []
    form = None if spec.format == "auto" else spec.format
    for where, line in _lines(Path(spec.path)):
        try:
            row = _row(line, where)
            form = form or find_format(row, where)
            examples.append(parse_row(row, form, where, spec.system))
        except DataError as error:
            problems.append(str(error))
            if form is None:
                break
    if problems:
        raise DataError(together(problems))
    if not examples or form is None:
        raise DataError(f"{spec.path}: has no rows.")
    return examples, form


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Lines that hold something, with `file:line`. Read in bytes, so that one bad line costs only itself."""
    if not os.path.exists(path):  # noqa: PTH110  Path.exists raises where a name is too long
        near = did_you_mean(
            path.name, [other.name for other in path.parent.glob("*.json*")] if path.parent.is_dir() else []
        )
        raise DataError(f"{path}: there is no such file.{near}")
    if not path.is_file():
        raise DataError(f"{path}: is not a file of JSON lines.")
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise DataError(f"{path}:{number}: the line is longer than {LONGEST_LINE:,} bytes.")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield f"{path}:{number}", line
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None


def _row(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8 text (byte {error.start} of the line).") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: is not JSON: {error.msg} at column {error.colno}.{_list_hint(line)}") from None
    except (RecursionError, ValueError):
        raise DataError(f"{where}: is JSON nested too deeply, or with a number too long, to be a row.") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: holds a {type(row).__name__}; one JSON object per line is wanted.")
    return row


def _list_hint(line: bytes) -> str:
    return " The file looks like one JSON list; write one object per line instead." if line.lstrip()[:1] == b"[" else ""
