"""Rows that a Python program holds in memory, written to a file that training can read like any other.

    rows_file([{"prompt": "2 + 2", "completion": "4"}]) -> runs/.rows/1f0c….jsonl
    {"image": pixels, "label": "cat"}                   -> runs/.rows/images/5ee1….png  and its path

A list of dicts, a pandas DataFrame or a `datasets.Dataset` becomes JSON lines. The file is named after the hash of its
content, so the same rows are written once, the data report names it, and a run can be resumed, evaluated and reproduced
after the program has ended. The numbers of a Dataset's ClassLabel column are written as the names of the classes.
Neither pandas nor datasets is imported here: their objects are read as they are. Images are pictures of Pillow, uint8
arrays (H, W), (H, W, 1) and (H, W, 3), bytes of an image file, and paths.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.errors import DataError, some
from rankwise.rows.files.hub import with_names
from rankwise.rows.forms.formats import form_of
from rankwise.rows.forms.image_rows import IMAGE_MARKS, is_image_path
from rankwise.rows.images.pictures import png_of_array, png_of_picture
from rankwise.rows.text.text_encoding import is_unicode
from rankwise.system.files import write_atomic

NAME = "images"


def with_image_files(row: Mapping[Any, Any], where: str, folder: Path, problems: list[str]) -> dict[Any, Any]:
    """The row with each image replaced by the path of its file in `folder`. Problems are added to `problems`."""
    texts = {str(name): value if isinstance(value, str | list | dict) else None for name, value in row.items()}
    names_files = form_of(texts) in (None, "image")
    replaced: dict[Any, Any] = {}
    for name, value in row.items():
        replaced[name] = value
        path = Path(value) if isinstance(value, str) and names_files and is_image_path(value) else value
        if isinstance(value, str) and path is value:
            continue
        try:
            content = image_bytes(path)
        except DataError as error:
            problems.append(f"{where}, column {name!r}: {str(error).rstrip('.')}")
            replaced[name] = None
            continue
        if content is not None:
            replaced[name] = _saved_image(content, folder)
    return replaced


def image_bytes(value: Any) -> bytes | None:
    """The image as the bytes of a file; None for any other value."""
    if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
        value = value["bytes"] or (value["path"] and Path(value["path"]))
    if isinstance(value, bytes):
        return value if value.startswith(tuple(IMAGE_MARKS)) else None
    if isinstance(value, Path):
        return _file(value) if is_image_path(str(value)) else None
    if isinstance(value, np.ndarray) and value.ndim in (2, 3):
        return png_of_array(value)
    return png_of_picture(value) if type(value).__module__.startswith("PIL.") else None


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None


def _saved_image(content: bytes, folder: Path) -> str:
    suffix = next((suffix for mark, suffix in IMAGE_MARKS.items() if content.startswith(mark)), ".png")
    name = f"{NAME}/{sha256(content).hexdigest()[:24]}{suffix}"
    if not (folder / name).is_file():
        (folder / NAME).mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, content)
    return name


FOLDER = Path("runs") / ".rows"
ACCEPTED = "a path, a list of dicts, a pandas DataFrame or a datasets.Dataset"


def path_of(data: Any) -> str:
    """The path of rows that are a file or a folder already, or are written to one."""
    return os.fspath(data) if isinstance(data, str | os.PathLike) else str(rows_file(data))


def rows_file(rows: object) -> Path:
    """Write the rows and return the file. DataError lists every value that JSON cannot hold, by row and column."""
    records = _records(rows)
    if not records:
        raise DataError(f"the data given from Python has no rows: {type(rows).__name__}.")
    problems: list[str] = []
    lines = [_line(number, record, problems) for number, record in enumerate(records)]
    if problems:
        raise DataError(f"the data given from Python cannot be written as JSON: {some(problems, 6)}.")
    content = "".join(lines).encode()
    file = FOLDER / f"{sha256(content).hexdigest()[:16]}.jsonl"
    if not file.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content)
    return file


def _records(rows: object) -> list[Any]:
    """The rows of any accepted container; DataError for everything else."""
    library = type(rows).__module__.partition(".")[0]
    if library == "pandas" and hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        return rows.to_dict("records")  # pyright: ignore[reportAttributeAccessIssue]
    if library == "datasets" and isinstance(rows, Mapping):
        splits = ", ".join(map(str, rows))
        raise DataError(f"the data is a datasets.DatasetDict with the splits {splits}. Give one of them.")
    if library == "datasets" and isinstance(rows, Iterable):
        dataset: Any = rows
        kinds: Mapping[str, Any] = getattr(rows, "features", None) or {}
        labels = {name: kind.names for name, kind in kinds.items() if type(kind).__name__ == "ClassLabel"}
        for name in [name for name, kind in kinds.items() if type(kind).__name__ == "Image"]:
            dataset = dataset.cast_column(name, type(kinds[name])(decode=False))  # the bytes of each file
        return [with_names(row, labels) for row in dataset]
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise DataError(f"the data is of type {type(rows).__name__}. Give {ACCEPTED}.")
    return list(rows)


def _line(number: int, record: object, problems: list[str]) -> str:
    if not isinstance(record, Mapping):
        problems.append(f"row {number} is a {type(record).__name__} and not a dict")
        return ""
    record = with_image_files(record, f"row {number}", FOLDER, problems)
    cells: dict[str, str] = {}
    for name, value in record.items():
        try:
            cells[str(name)] = _cell(name, value)
        except (TypeError, ValueError) as error:
            problems.append(f"row {number}, column {name!r} {error}")
    if len({*map(str, record)}) < len(record):
        problems.append(f"row {number} has two columns of the same name")
    return f"{{{', '.join(f'{json.dumps(name, ensure_ascii=False)}: {text}' for name, text in cells.items())}}}\n"


def _cell(name: object, value: Any) -> str:
    """A value as JSON; NaN is how pandas writes a missing one. Half of a surrogate pair cannot be written as UTF-8."""
    if isinstance(value, float) and not math.isfinite(value):
        if math.isinf(value):
            raise ValueError(f"is {value}")
        return "null"
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    if not is_unicode(f"{name}{text}"):
        raise ValueError("holds a lone surrogate, which is not text")
    return text


def _plain(value: Any) -> Any:
    """What JSON does not know: NumPy's numbers, dates as ISO 8601 text, and missing values."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(value, "item") and value.shape == ():
        number = value.item()
        return None if number != number else number
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"holds a {type(value).__name__}")
