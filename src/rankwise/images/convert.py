"""Pixels of any kind into RGB, with a note of what was changed.

Transparent pixels are laid over white. Deep pixels are scaled by the range of their type, 16 bits by 255 / 65535, and
never by what one image contains, so that all images of a set are scaled alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np

KINDS = {"1": "black and white (1 bit)", "L": "grayscale", "P": "a palette"}
"""Modes of Pillow as they are called elsewhere; others have the usual name, such as CMYK."""
SIXTEEN = 65535


class Refused(Exception):
    """Why an image is refused, as the end of a sentence that begins with its file."""


def is_deep(opened: Any) -> bool:
    """Whether an image that is not loaded yet has colours of 16 bits, of which the decoder drops the lower 8."""
    return any(";16" in str(tile[3]) for tile in opened.tile) and not opened.mode.startswith("I")


def in_rgb(picture: Any) -> tuple[Any, list[str]]:
    """The picture in mode RGB, and what was changed."""
    mode = picture.mode
    if mode.startswith("I") or mode == "F":
        return _scaled(picture)
    notes = [] if mode in ("RGB", "RGBA", "RGBa") else [f"converted from {_kind(mode)}"]
    if not picture.has_transparency_data:
        return picture if mode == "RGB" else picture.convert("RGB"), notes
    whole = picture.convert("RGBA")
    opaque = whole.getchannel("A").getextrema()[0] == 255
    return _over_white(whole), notes if opaque else [*notes, "laid over white where they are transparent"]


def _kind(mode: str) -> str:
    return KINDS.get(
        "L" if mode.upper().startswith("LA") and mode != "LAB" else mode[:1] if mode == "PA" else mode, mode
    )


def _over_white(picture: Any) -> Any:
    from PIL import Image

    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _scaled(picture: Any) -> tuple[Any, list[str]]:
    from PIL import Image

    if picture.mode == "I":
        raise Refused("has pixels of 32 bits, whose range is unknown. Save it with 8 or 16 bits per pixel")
    pixels = np.asarray(picture)
    low, high = float(pixels.min()), float(pixels.max())
    if picture.mode == "F":
        if not (low >= 0 and high <= 1):  # also where a pixel is not a number
            raise Refused(f"has decimal pixels from {low:g} to {high:g}; numbers from 0 to 1 are expected")
        note, end = "scaled from decimals between 0 and 1", 1
    else:
        bits = max(8, int(high).bit_length())
        used = "" if bits == 16 else f", of which they use the lowest {bits}"
        note, end = f"scaled from 16 bits{used}", SIXTEEN
    eight = np.rint(pixels.astype(np.float32) * (255 / end)).astype(np.uint8)
    return Image.fromarray(eight).convert("RGB"), [note]
