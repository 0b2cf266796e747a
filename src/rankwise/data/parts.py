"""Files of rows as parts of a source, and the identity of files whose rows name images."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

from rankwise.config.data import Rows
from rankwise.data.arrays import array_records, refuse_npy
from rankwise.data.columnar import Record, Seen, class_names, schema_of
from rankwise.data.columns import renamed
from rankwise.data.files import records
from rankwise.data.hub import Part, with_names
from rankwise.data.image_folder import METADATA, list_folder, sha256_or_nothing
from rankwise.data.image_rows import IMAGE_SUFFIXES, PATH_FIELDS, image_field, is_image_path
from rankwise.data.splits import visible
from rankwise.errors import DataError
from rankwise.system.contents import hash_of
from rankwise.system.contents import opened as contents

HEAD = 1 << 18
_IMAGE_PATH = re.compile("|".join(map(re.escape, IMAGE_SUFFIXES)).encode(), re.IGNORECASE)


def file_part(path: Path, source: Rows) -> Part:
    if not path.is_file():
        raise DataError(f"{path}: is not a file of rows.")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: cannot be read (Permission denied).")
    refuse_npy(path)
    if is_image_path(str(path)):
        return _image_part(path)

    def opened(seen: Seen) -> Iterator[Record]:
        if path.suffix.lower() == ".npz":
            return array_records(path, source.columns, seen, part.note)
        rows = records(path, seen, source=source, note=part.note)
        names = {} if source.labels else class_names(schema_of(path))
        return _named(rows, names) if names else rows

    part = Part(str(path), opened, lambda: _identity(path, source, lambda: opened(lambda share: None)), path.parent)
    part.images = path.parent
    part.of_images = path.suffix.lower() == ".npz" or (path.name.lower() in METADATA and _has_images(path.parent))
    return part


def _named(rows: Iterator[Record], names: dict[str, list[str]]) -> Iterator[Record]:
    for where, row in rows:
        yield where, row if isinstance(row, DataError) else with_names(row, names)


def _image_part(path: Path) -> Part:
    """One image without a label, as predictions need it."""

    def opened(seen: Seen) -> Iterator[Record]:
        yield str(path), {"image": path.name}

    return Part(str(path), opened, lambda: hash_of(path), path.parent, images=path.parent, of_images=True)


def arrays_in(folder: Path) -> list[Path]:
    """The .npz files of a folder. A .npy file is refused if there is none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".npz" and visible(path, folder))
    for path in [] if files else sorted(folder.rglob("*.npy")):
        refuse_npy(path)
    return files


def _has_images(folder: Path) -> bool:
    return bool(list_folder(folder).images)


def _identity(path: Path, source: Rows, rows: Callable[[], Iterator[Record]]) -> str:
    """A hash of the file, and of the images that its rows name."""
    own = hash_of(path)
    if not _may_name_images(path, source):
        return own
    digest, names = sha256(own.encode()), 0
    try:
        for _, row in rows():
            name = None if isinstance(row, DataError) else _named_image(row, source)
            if name is None and not names:
                return own  # as the first row, so all
            names += name is not None
            digest.update(f"{name}\0{sha256_or_nothing(path.parent / (name or ''))}\0".encode(errors="replace"))
    except DataError:
        return own  # reading the rows reports the damage
    return digest.hexdigest()


def _may_name_images(path: Path, source: Rows) -> bool:
    """A cheap look, since most files of rows are texts."""
    schema = schema_of(path)
    if schema is not None:
        return not {"image", *PATH_FIELDS, source.columns.get("image", "image")}.isdisjoint(schema.names)
    with contents(path) as file:
        head = file.read(HEAD)
    return head.startswith(b"PK") or _IMAGE_PATH.search(head) is not None


def _named_image(row: dict[str, object], source: Rows) -> str | None:
    try:
        fields = renamed(row, source.columns, "")
    except DataError:
        return None
    value = fields.get(image_field(fields) or "")
    if isinstance(value, dict) and not value.get("bytes"):
        value = value.get("path")
    return value if isinstance(value, str) else None
