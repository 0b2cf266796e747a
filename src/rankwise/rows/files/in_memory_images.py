"""Images that a Python program holds in memory, or names by paths of its own folder, written beside the file of rows.

    {"image": pixels, "label": "cat"}  ->  runs/.rows/images/5ee1….png  and  {"image": "images/5ee1….png", …}

Accepted are pictures of Pillow, uint8 arrays (H, W), (H, W, 1) and (H, W, 3), bytes of an image file, and paths. A file
is named after the hash of its content, so the same image is written once.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.errors import DataError
from rankwise.rows.forms.formats import form_of
from rankwise.rows.forms.image_rows import IMAGE_MARKS, is_image_path
from rankwise.rows.images.png import png_of_array, png_of_picture
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
            replaced[name] = _written(content, folder)
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


def _written(content: bytes, folder: Path) -> str:
    suffix = next((suffix for mark, suffix in IMAGE_MARKS.items() if content.startswith(mark)), ".png")
    name = f"{NAME}/{sha256(content).hexdigest()[:24]}{suffix}"
    if not (folder / name).is_file():
        (folder / NAME).mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, content)
    return name
