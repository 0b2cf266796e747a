"""Show images before training: a contact sheet with their labels, and what is known of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rankwise.config.data import DataConfig
from rankwise.config.images import ImageProcessing
from rankwise.data.sources import open_source
from rankwise.errors import DataError, together
from rankwise.images.contact_sheet import check_sheet, contact_sheet
from rankwise.images.decode import decode
from rankwise.images.processor import pixels_of
from rankwise.system.files import check_place, write_atomic
from rankwise.text.example import Example

DEFAULT_SHEET, DEFAULT_ROWS = Path("contact_sheet.png"), 24


@dataclass(frozen=True)
class ShownImage:
    """An image of the sheet, or one that is left out."""

    where: str
    label: str
    width: int = 0
    height: int = 0
    notes: tuple[str, ...] = ()
    """What was changed in decoding it."""
    left_out: str | None = None
    """Why it is left out of training."""


@dataclass(frozen=True)
class Sheet:
    path: Path
    rows: list[ShownImage]

    def summary(self) -> dict[str, Any]:
        """What `rankwise data preview --json` prints."""
        return {"out": str(self.path), "rows": [vars(row) | {"notes": list(row.notes)} for row in self.rows]}


def holds_images(data: DataConfig) -> bool:
    """Whether the rows of the first source are images."""
    reading = open_source(data, data.all_sources[0].model_copy(update={"rows": None}))
    next(reading.chunks(), None)
    return any(part.of_images or part.format == "image" for part in reading.parts)


def preview_images(
    data: DataConfig, processing: ImageProcessing | None, out: Path | None, *, rows: int, first: int | None
) -> Sheet:
    """Write a sheet of rows from row `first` on, or of rows that are drawn by data.seed. With `processing`, images look
    as the model receives them."""
    path = out or DEFAULT_SHEET
    check_sheet(path)
    check_place(path)
    begin = (first or 1) - 1
    examples = list(islice(_examples(data, rows if first is None else None), begin, begin + rows))
    if not examples:
        raise DataError(f"there is no row {begin + 1}.")
    shown = [_shown(example, processing) for example in examples]
    problems = [image.left_out for image, _ in shown if image.left_out is not None]
    if problems and (data.on_bad_row == "stop" or len(problems) == len(shown)):
        raise DataError(together(problems))
    numbered = enumerate(shown, start=begin + 1)
    tiles = [(picture, f"{number}  {image.label}") for number, (image, picture) in numbered if picture is not None]
    write_atomic(path, contact_sheet(tiles))
    return Sheet(path, [image for image, _ in shown])


def _examples(data: DataConfig, drawn: int | None) -> Iterator[Example]:
    """The images of all sources, or so many drawn from them. A row that cannot be read stops the preview where its
    source ends."""
    for source in data.all_sources:
        share = source.rows if drawn is None else min(source.rows or drawn, -(-drawn // len(data.all_sources)))
        reading = open_source(data, source.model_copy(update={"rows": share}))
        for chunk in reading.chunks():
            yield from (example for row in chunk for example in row)
        if reading.skipped and data.on_bad_row == "stop":
            raise DataError(together([why for _, why in reading.skipped]))


def _shown(example: Example, processing: ImageProcessing | None) -> tuple[ShownImage, Any]:
    label = example.messages[-1].content
    if example.image is None:
        return ShownImage(example.where, label, left_out=f"{example.where}: is a row without an image."), None
    try:
        image = decode(example.image, example.where)
    except DataError as error:
        return ShownImage(example.where, label, left_out=str(error)), None
    picture = image.picture if processing is None else pixels_of(image.picture, processing)
    return ShownImage(example.where, label, image.width, image.height, image.notes), picture
