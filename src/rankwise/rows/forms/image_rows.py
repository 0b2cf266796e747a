"""Rows with an image and a label: find the image in a row, and make an Example of both.

    {"image": "cat/1.jpg", "label": "cat"}      a path, relative to the folder of the file of rows
    {"file_name": "1.jpg", "label": 3}          the same, as in an ImageFolder's metadata
    {"image": {"bytes": …, "path": …}, …}       as `datasets` writes it
    {"image": pixels, "label": 3}               an array of a .npz file

Nothing is decoded here (rows/images/decode.py does that). A path may not lead out of its folder, neither by .. nor by a
symbolic link, because data from elsewhere must not choose which files of this machine are read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.config.base import shown
from rankwise.errors import DataError, one_line, some
from rankwise.rows.forms.columns import Row
from rankwise.rows.forms.labels import label_text
from rankwise.rows.forms.proposals import ANSWERS
from rankwise.rows.text.example import Example, ImageContent, Message

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff")
IMAGE_MARKS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"BM": ".bmp", b"RIFF": ".webp",
               b"II*\0": ".tif", b"MM\0*": ".tif"}  # fmt: skip
"""The first bytes of a file, and the suffix of its name."""
PATH_FIELDS = ("file_name", "file", "path")
"""Fields that hold the path of an image if the path ends like one."""
LABELS = (*ANSWERS, "fine_label", "coarse_label", "species", "breed", "target_name", "class_name", "label_name")
"""Columns that are proposed as the label."""


def image_field(row: Mapping[str, Any]) -> str | None:
    """The field that holds the row's image, or None."""
    if _is_given(row.get("image")):
        return "image"
    return next((name for name in PATH_FIELDS if is_image_path(row.get(name))), None)


def is_image_path(value: Any) -> bool:
    return isinstance(value, str) and value.lower().endswith(IMAGE_SUFFIXES)


def is_image(value: Any) -> bool:
    """Whether a value is an image by its content: written by `datasets`, the bytes of a file, or an array."""
    if isinstance(value, dict):
        return value.keys() == {"bytes", "path"}
    return isinstance(value, np.ndarray) or (isinstance(value, bytes) and value.startswith(tuple(IMAGE_MARKS)))


def _is_given(value: Any) -> bool:
    return isinstance(value, np.ndarray) or bool(value)


def image_example(row: Row, labels: tuple[str, ...], where: str, folder: Path | None) -> Example:
    """The row as an Example. Paths are relative to `folder`."""
    field = image_field(row)
    if field is None:
        raise DataError(f"{where}: has no image; its columns are {some(map(shown, row), 8) or 'none'}.")
    if "label" not in row:
        raise DataError(f"{where}: has an image and no label. {_how_to_label(row)}")
    content, name = _content(row[field], where, folder)
    label = label_text(row["label"], labels, where)
    return Example((Message("user", name), Message("assistant", label)), where, image=ImageContent(content))


def _how_to_label(row: Row) -> str:
    others = [name for name in row if name not in ("image", *PATH_FIELDS)]
    if not others:
        return "Put the images of each class into a folder with its name, or write a column label beside them."
    guess = next((name for name in others if name.casefold() in LABELS), "COLUMN")
    return f"Its columns are {some(map(shown, row), 8)}; name the label's with --label {guess}."


def _content(value: Any, where: str, folder: Path | None) -> tuple[Path | bytes | np.ndarray, str]:
    """The image, and its name."""
    if isinstance(value, np.ndarray):
        return value, where
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(data, bytes) and data:
        return data, path if isinstance(path, str) and path else where
    name = path if isinstance(value, dict) else value
    if isinstance(name, str) and name.strip():
        return _file(name, where, folder), name
    if isinstance(value, list):
        raise DataError(f"{where}: its image is a list; rows have one image each, as a path or as the bytes of a file.")
    given = "empty" if isinstance(value, bytes | dict) else shown(value)
    raise DataError(f"{where}: its image is {given}; a path or the bytes of an image file are expected.")


def _file(name: str, where: str, folder: Path | None) -> Path:
    if "://" in name:
        raise DataError(
            f"{where}: its image is the web address {one_line(name)}. Download it, and give the file's path."
        )
    if name.startswith("data:"):
        raise DataError(
            f"{where}: its image is a data: URL ({one_line(name)}). Save it as a file, and give the file's path."
        )
    if folder is None:
        raise DataError(f"{where}: its image is the path {one_line(name)} without a folder to look in.")
    path = folder / name
    _refuse_outside(path, folder, where, name)
    if not os.path.isfile(path):  # noqa: PTH113  Path's raises where a name is too long
        raise DataError(f"{where}: its image {one_line(name)} is missing: there is no such file in {folder}.")
    return path


def _refuse_outside(path: Path, folder: Path, where: str, name: str) -> None:
    """DataError where the path or its symbolic links lead out of the folder."""
    try:
        real = os.path.realpath(path)
        inside = real.startswith(os.path.join(os.path.abspath(folder), ""))  # noqa: PTH100, PTH118  the usual case
        inside = inside or Path(real).is_relative_to(os.path.realpath(folder))
    except (OSError, ValueError) as error:  # a loop of links, or a NUL character
        raise DataError(f"{where}: its image {one_line(name)} cannot be looked up ({error}).") from None
    if not inside:
        how = "is a symbolic link that leads" if path.is_symlink() else "leads"
        raise DataError(
            f"{where}: its image {one_line(name)} {how} out of the folder {folder}. Copy the image into the folder."
        )
