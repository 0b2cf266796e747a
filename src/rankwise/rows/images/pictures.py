"""Images for people and for files: pixels as PNG without loss, thumbnails as data: URIs of a few kilobytes, so that a
page needs no other file, and a contact sheet, many images on one page, each with a line of text below.
"""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.errors import DataError, first_line, one_line
from rankwise.system.extras import need_extra

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def png_of_array(pixels: np.ndarray) -> bytes:
    """`pixels` (H, W), (H, W, 1) or (H, W, 3) are uint8. DataError elsewhere, since their range would be unknown."""
    if pixels.dtype != np.uint8 or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)) or not pixels.size:
        raise DataError(
            f"is an array of the type {pixels.dtype} and the shape {pixels.shape}; pixels are uint8 in the shape "
            "(H, W), (H, W, 1) or (H, W, 3)."
        )
    need_extra("PIL", "writing an image", "vision", DataError)
    from PIL import Image

    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return png_of_picture(Image.fromarray(np.ascontiguousarray(flat)))


def png_of_picture(picture: Any) -> bytes:
    """`picture` is one of Pillow's."""
    written = io.BytesIO()
    (picture if picture.mode in MODES else picture.convert("RGB")).save(written, "PNG")
    return written.getvalue()


SIDE, LOSSLESS, QUALITY = 96, 48, 85
"""Longest side of a thumbnail in pixels, the longest that is stored without loss, and the quality of the others."""


def thumbnail_of(pixels: np.ndarray) -> str:
    """`pixels` (H, W, 3) are in uint8; larger images are reduced to SIDE."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    kind = "png" if max(picture.size) <= LOSSLESS else "jpeg"
    written = io.BytesIO()
    picture.save(written, kind, optimize=True, **({"quality": QUALITY} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{b64encode(written.getvalue()).decode()}"


TILE, MARGIN, LINE = 160, 8, 20
"""Pixels: side of an image's square, space around it, and height of the text."""
LEAST_COLUMNS = 6
SOFTWARE = "rankwise contact sheet"


def contact_sheet(tiles: Sequence[tuple[Any, str]]) -> bytes:
    """A PNG file with a picture (PIL's in RGB, or an array) and a text in each tile."""
    from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

    columns = min(len(tiles), max(LEAST_COLUMNS, round(math.sqrt(len(tiles)))))
    width, height = TILE + MARGIN, TILE + LINE + MARGIN
    sheet = Image.new("RGB", (columns * width + MARGIN, -(-len(tiles) // columns) * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (picture, text) in enumerate(tiles):
        left, top = MARGIN + number % columns * width, MARGIN + number // columns * height
        small = _fitted(Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture)
        sheet.paste(small, (left + (TILE - small.width) // 2, top + (TILE - small.height) // 2))
        draw.text((left, top + TILE + 3), _shortened(text, draw, font), fill="black", font=font)
    mark, written = PngImagePlugin.PngInfo(), io.BytesIO()
    mark.add_text("Software", SOFTWARE)
    sheet.save(written, "PNG", pnginfo=mark)
    return written.getvalue()


def is_contact_sheet(path: Path) -> bool:
    """Whether a file was written by `contact_sheet`, so that a newer one may replace it."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as sheet:
            return sheet.info.get("Software") == SOFTWARE
    except Exception:  # no image, or a damaged one
        return False


def check_sheet(path: Path) -> None:
    """Refuse a name that is not a PNG file's, and one of a file that is no contact sheet."""
    if path.suffix.lower() != ".png":
        raise DataError(f"{path}: the name of the contact sheet must end in .png.")
    if path.exists() and not is_contact_sheet(path):
        raise DataError(f"{path}: already exists and is no contact sheet. Give --out another name.")


def _fitted(picture: Any) -> Any:
    """The picture in a tile: reduced, or enlarged by a whole factor so that its pixels can be seen."""
    from PIL import Image

    factor = TILE // max(picture.size)
    if factor > 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    small = picture.copy()
    small.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return small


def _shortened(text: str, draw: Any, font: Any) -> str:
    """The text on one line of a tile's width."""
    text = one_line(text)
    try:
        while len(text) > 1 and draw.textlength(text, font=font) > TILE:
            text = f"{text[:-2]}…" if text.endswith("…") else f"{text[:-1]}…"
    except (UnicodeError, ValueError) as error:
        raise DataError(f"the label {text!r} cannot be drawn: {first_line(error)}.") from None
    return text
