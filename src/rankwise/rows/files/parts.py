"""Files of rows as parts of a source, the rows of .npz files, and the identity of files whose rows name images.

A .npz file has `images` (N, H, W), (N, H, W, 1) or (N, H, W, 3), and `labels` (N,). Pixels become whole numbers from 0
to 255. Their range follows from the whole array, and the data report names it:

    from 0 to the first of 1, 16, 64, 255, 1023, 4095, 16383, 65535 that no value is above:  255 x / end
    from -1 to 1:                                                                          255 (x + 1) / 2

so that files of the same kind are read alike even if one of them does not reach the end of its range. Pickled objects
are never read.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import read_array

from rankwise.config.data import Rows
from rankwise.errors import DataError, first_line, some
from rankwise.rows.files.columnar import Record, Seen, class_names, schema_of
from rankwise.rows.files.files import records
from rankwise.rows.files.hub import Part, with_names
from rankwise.rows.files.image_folder import METADATA, list_folder, sha256_or_nothing, visible
from rankwise.rows.forms.columns import renamed
from rankwise.rows.forms.image_rows import IMAGE_SUFFIXES, PATH_FIELDS, image_field, is_image_path
from rankwise.runs.row_facts import LayoutFacts
from rankwise.system.contents import hash_of
from rankwise.system.contents import opened as contents

HEAD = 1 << 18
_IMAGE_PATH = re.compile("|".join(map(re.escape, IMAGE_SUFFIXES)).encode(), re.IGNORECASE)
ENDS = (1, 16, 64, 255, 1023, 4095, 16383, 65535)
LARGEST = 16_000_000_000
"""Bytes of all arrays of a file, which are read into memory at once."""
NAMES = {"images": "image", "labels": "label"}
HOW = "Write it with numpy.savez(file, images=…, labels=…)."


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


def refuse_npy(path: Path) -> None:
    if path.suffix.lower() == ".npy":
        raise DataError(
            f"{path}: is a single NumPy array without labels. Write images and labels into one .npz file: "
            "numpy.savez(file, images=…, labels=…)."
        )


def array_records(path: Path, columns: Mapping[str, str], seen: Seen, note: Any) -> Iterator[Record]:
    """The rows of a .npz file. `columns` are those of data.columns, and `note` receives the range of the pixels."""
    arrays = _arrays(path)
    name = columns.get("image", "image")
    if name not in arrays:
        raise DataError(f"{path}: has no array images; its arrays are {some(arrays) or 'none'}. {HOW}")
    images = arrays[name]
    _check_shape(path, images)
    label = columns.get("label", "label")
    if label in arrays and arrays[label].shape != (len(images),):
        raise DataError(
            f"{path}: has {len(images):,} images and labels of the shape {arrays[label].shape}; one label for each "
            "image is expected."
        )
    low, high = _range(path, images)
    beside = {key: array for key, array in arrays.items() if key != name and array.shape == (len(images),)}
    note(
        LayoutFacts(pixels=_described(low, high, images, [key for key in arrays if key != name and key not in beside]))
    )
    for number, image in enumerate(images, start=1):
        seen(number / len(images))
        where = f"{path}:{number}"
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            yield where, DataError(f"{where}: its image has pixels that are not finite numbers.")
            continue
        yield (
            where,
            {name: _pixels(image, low, high)} | {key: array[number - 1].item() for key, array in beside.items()},
        )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays, under the names of the row's fields."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if size > LARGEST:
                raise DataError(f"{path}: its arrays have {size:,} bytes; {LARGEST:,} at most are read into memory.")
            named = {entry.filename.removesuffix(".npy"): entry for entry in entries}
            return {NAMES.get(name, name): _array(archive, entry) for name, entry in named.items()}
    except DataError:
        raise
    except Exception as error:  # a damaged archive, an object that only pickle can read, or too little memory
        if "Object arrays" in str(error):
            raise DataError(
                f"{path}: contains pickled objects, which are never read, since they can run code. Write numbers, and "
                f"labels as numbers or texts. {HOW}"
            ) from None
        raise DataError(f"{path}: is damaged, or is not a readable .npz file: {first_line(error)}") from None


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        return read_array(file, allow_pickle=False)


def _check_shape(path: Path, images: np.ndarray) -> None:
    shape = images.shape
    fits = images.ndim == 3 or (images.ndim == 4 and shape[3] in (1, 3))
    if fits and images.dtype.kind in "buif" and images.size:
        return
    if not images.size and images.ndim:
        raise DataError(f"{path}: its images have the shape {shape}, so there are no pixels.")
    turn = images.ndim == 4 and shape[1] in (1, 3)
    hint = " Move the channels to the end: images.transpose(0, 2, 3, 1)." if turn else ""
    raise DataError(
        f"{path}: its images have the shape {shape} and the type {images.dtype}; numbers of the shape (N, H, W), "
        f"(N, H, W, 1) or (N, H, W, 3) are expected.{hint}"
    )


def _range(path: Path, images: np.ndarray) -> tuple[float, float]:
    """The ends of the range that the values are in."""
    finite = images[np.isfinite(images)] if images.dtype.kind == "f" else images
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if -1 <= low < 0 and high <= 1:
        return -1.0, 1.0
    end = next((end for end in ENDS if high <= end), None)
    if low < 0 or end is None:
        raise DataError(
            f"{path}: its pixels go from {low:g} to {high:g}, which is no usual range of pixels. Write them as whole "
            "numbers from 0 to 255, or as numbers from 0 to 1."
        )
    return 0.0, float(end)


def _pixels(image: np.ndarray, low: float, high: float) -> np.ndarray:
    if image.dtype == np.uint8 and (low, high) == (0, 255):
        return image
    return np.rint((image.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def _described(low: float, high: float, images: np.ndarray, unread: list[str]) -> str:
    text = f"{images.shape[2]} x {images.shape[1]} pixels"
    if (low, high) != (0, 255):
        text += f", values from {low:g} to {high:g} scaled to 0 to 255"
    return f"{text}; not read: {some(unread)}" if unread else text
