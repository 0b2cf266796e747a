"""The images that a Python program gives a classifier, as rows without a label.

images_given(["cat.jpg", picture, pixels]) -> three Examples, each with the bytes of an image file
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rankwise.config.base import shown
from rankwise.data.in_memory_images import image_bytes
from rankwise.errors import DataError, together
from rankwise.text.example import Example, ImageContent

ACCEPTED = "the path or the bytes of an image file, a picture of Pillow, or a uint8 array (H, W) or (H, W, 3)"


def images_given(images: object) -> list[Example]:
    """DataError lists every item that is no image."""
    if isinstance(images, str | bytes | Path) or hasattr(images, "columns") or not isinstance(images, Iterable):
        raise DataError(
            f"the images to classify are of type {type(images).__name__}. Give a list, even of one image; each is "
            f"{ACCEPTED}."
        )
    examples, problems = list[Example](), list[str]()
    for at, item in enumerate(images):
        where = f"item {at} of the images to classify"
        try:
            content = image_bytes(Path(item) if isinstance(item, str) else item)
        except DataError as error:
            problems.append(f"{where}: {error}")
            continue
        if content is None:
            problems.append(f"{where} is {_described(item)}; {ACCEPTED} is expected.")
        else:
            examples.append(Example((), where, image=ImageContent(content)))
    if problems:
        raise DataError(together(problems))
    return examples


def _described(item: Any) -> str:
    shape = getattr(item, "shape", None)
    return shown(item) if shape is None else f"an array of the shape {tuple(shape)}"
