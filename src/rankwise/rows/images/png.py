"""Pixels as a PNG file, without loss."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from rankwise.errors import DataError
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
