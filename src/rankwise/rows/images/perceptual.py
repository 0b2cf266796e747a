"""Fingerprints of images, to find copies: a hash of all pixels, and a perceptual hash of 64 bits.

The perceptual hash (imagehash's phash) has the signs of the lowest frequencies of the image in grey. It stays nearly
the same if an image is resized, compressed again or made a little lighter.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from rankwise.errors import DataError
from rankwise.rows.images.decode import DecodedImage
from rankwise.rows.text.example import ImageRecord
from rankwise.system.extras import need_extra

LEAST_CONTRAST = 2
"""Standard deviation of the grey levels, of 255."""
SIDE = 128
"""Larger images are reduced to at least this side by whole factors first, which is several times as fast."""


def record_of(image: DecodedImage) -> ImageRecord:
    """The facts of an image that remain when its pixels are gone."""
    return ImageRecord(image.width, image.height, image.notes, content_of(image.picture), perceptual_of(image.picture))


def content_of(picture: Any) -> bytes:
    """Equal for images with the same pixels."""
    return sha256(b"%d %d " % picture.size + picture.tobytes()).digest()[:16]


def perceptual_of(picture: Any) -> int | None:
    """None for an image of nearly one colour, which has no structure."""
    need_extra("imagehash", "finding duplicates among images", "vision", DataError)
    from imagehash import phash

    factor = min(picture.size) // SIDE
    small = picture.reduce(factor) if factor > 1 else picture
    return None if _is_flat(small) else int(str(phash(small)), 16)


def _is_flat(picture: Any) -> bool:
    from PIL import ImageStat

    return ImageStat.Stat(picture.convert("L")).stddev[0] < LEAST_CONTRAST
