"""Thumbnails: a row's pixels as a data: URI of a few kilobytes, so that a page needs no other file."""

from __future__ import annotations

import io
from base64 import b64encode

import numpy as np

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
