"""Decode an image and check it: RGB pixels, and what was changed on the way.

Only formats that hold pixels are read, each by the library's decoder for it, and nothing that a file contains is run.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.errors import DataError, first_line
from rankwise.text.example import ImageContent

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True)
class DecodedImage:
    """An upright image in RGB."""

    picture: Any
    """A PIL image in mode RGB."""
    width: int
    height: int
    notes: tuple[str, ...] = ()
    """What was changed, each as the end of a sentence about images: "converted from CMYK"."""


def decode(content: ImageContent, where: str) -> DecodedImage:
    """DataError, which begins with `where`, where this is no image that can be trained on."""
    from PIL import Image, ImageOps

    source = content.source
    try:
        if isinstance(source, np.ndarray):
            picture = Image.fromarray(source)
        else:
            opened = source if isinstance(source, Path) else io.BytesIO(source)
            picture = ImageOps.exif_transpose(Image.open(opened, formats=FORMATS))
        picture = picture.convert("RGB")
    except Exception as error:  # a damaged file makes the library raise errors of many kinds
        raise DataError(f"{where}: cannot be decoded as an image: {first_line(error)}.") from None
    return DecodedImage(picture, *picture.size)
