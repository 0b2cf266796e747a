"""Decode an image and check it: RGB pixels, upright, what was changed on the way, and fingerprints to find copies.

Only formats that hold pixels are read, each by Pillow's decoder for it, and nothing that a file contains is run. The
size is checked before any pixel is decoded, since a file of a few kilobytes can unfold to gigabytes. What cannot be
trained on as it is, such as an animation, is refused; what has one usual meaning in RGB, such as CMYK, is converted and
noted. Transparent pixels are laid over white. Deep pixels are scaled by the range of their type, 16 bits by
255 / 65535, and never by what one image contains, so that all images of a set are scaled alike.

The perceptual hash (imagehash's phash) has the signs of the lowest frequencies of the image in grey. It stays nearly
the same if an image is resized, compressed again or made a little lighter.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.errors import DataError, first_line
from rankwise.rows.text.example import ImageContent, ImageRecord
from rankwise.system.extras import need_extra

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


MARKS = {
    b"%PDF": "a PDF", b"%!PS": "PostScript, which is a program and never run", b"\xc5\xd0\xd3\xc6": "PostScript (EPS)",
    b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "compressed (gzip)", b"8BPS": "a Photoshop file",
    b"\0\0\x01\0": "an icon", b"version https://git-lfs": "a pointer of Git LFS; run git lfs pull",
    b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", b"\0\0\0\x0cjP": "JPEG 2000", b"\x93NUMPY": "a NumPy array",
}  # fmt: skip
BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"qt  ": "a video",
          b"isom": "a video", b"mp42": "a video"}  # fmt: skip
"""What files are that begin with a box "ftyp", by the brand in it."""


def what_instead(source: Path | bytes) -> str:
    """The end of a sentence: what the file seems to be, or nothing."""
    head = source[:512] if isinstance(source, bytes) else _head(source)
    if head[4:8] == b"ftyp":
        return f"; it is {BRANDS.get(head[8:12], 'a media file')}"
    kind = next((kind for mark, kind in MARKS.items() if head.startswith(mark)), None)
    if kind is not None:
        return f"; it is {kind}"
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "; it is a web page"
    if start.startswith(b"<svg") or b"<svg" in start:
        return "; it is SVG, a drawing without pixels"
    return "; it is text" if head and _is_text(head) else ""


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError:
        return b""


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", errors="ignore")
    return len(text.encode()) >= len(head) - 3 and all(sign.isprintable() or sign.isspace() for sign in text)


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP",
    ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
MOST_PIXELS = 89_478_485
"""Pillow's own limit: a quarter of a gigabyte in RGB."""
SHORTEST_SIDE = 4
MOST_SLENDER = 100
"""Largest ratio of the sides. Resizing the shorter side of a slenderer image would need very much memory."""
ORIENTATION = 0x0112
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF's orientation -> Pillow's transposition that makes an image upright."""
SCAN, END = b"\xda", b"\xff\xd9"
"""Markers of a JPEG file: what follows are pixels, and the end of the file."""
_PIXELS = re.compile(r"\((\d+) pixels\)")


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
    need_extra("PIL", f"{where}: decoding an image", "vision", DataError)
    source = content.source
    try:
        with _strict():
            if isinstance(source, np.ndarray):
                picture, notes = _of_array(source)
            else:
                picture, notes = _of_file(source)
    except Refused as error:
        raise DataError(f"{where}: {error}.") from None
    except Exception as error:  # a damaged file makes the library raise errors of many kinds
        raise DataError(f"{where}: {_why(error, source)}.") from None
    return DecodedImage(picture, picture.width, picture.height, tuple(notes))


@contextmanager
def _strict() -> Iterator[None]:
    """Raise where a file is too large or cut off, whatever other code has set for the library."""
    from PIL import Image, ImageFile

    truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, which is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated


def _of_array(pixels: np.ndarray) -> tuple[Any, list[str]]:
    from PIL import Image

    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    _check_size(pixels.shape[1], pixels.shape[0])
    return in_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def _of_file(source: Path | bytes) -> tuple[Any, list[str]]:
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if not size:
        raise Refused("is empty (0 bytes)")
    with _open(source) as opened:
        _check_size(*opened.size)
        if opened.format in ("JPEG", "MPO") and not _has_end(source):
            raise Refused("cannot be decoded as an image: the end of the JPEG file is lost")
        notes = _of_wrong_name(source, opened) + _of_frames(opened)
        if opened.format == "PNG":
            with _open(source) as again:
                again.verify()  # the check sums, which decoding does not look at
        notes += ["reduced from 16 to 8 bits for each colour"] * is_deep(opened)
        turn, is_read = _orientation(opened)
        opened.load()
        upright = opened.transpose(TURNS[turn]) if turn in TURNS and _orientation(opened)[0] == turn else opened
        picture, changes = in_rgb(upright)
        notes += ["turned upright (EXIF orientation)"] * (turn in TURNS)
        notes += ["read without their damaged EXIF data"] * (not is_read)
        return picture, notes + changes


def _has_end(source: Path | bytes) -> bool:
    """Whether a JPEG has its end marker after the pixels begin. Where the rest of a file was replaced by zeros, as an
    interrupted download leaves it, the decoder reads the zeros as pixels."""
    content = source if isinstance(source, bytes) else source.read_bytes()
    position = 2
    while content[position : position + 1] == b"\xff" and content[position + 1 : position + 2] != SCAN:
        fills = content[position + 1 : position + 2] == b"\xff"
        position += 1 if fills else 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return content.find(END, position) >= 0


def _open(source: Path | bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise Refused(
            f"has {width:,} x {height:,} pixels; at most {MOST_PIXELS:,} pixels are decoded, so that a small file "
            "cannot fill the memory. Make it smaller"
        )
    if min(width, height) < SHORTEST_SIDE:
        raise Refused(f"has {width:,} x {height:,} pixels; each side must have at least {SHORTEST_SIDE}")
    if max(width, height) > MOST_SLENDER * min(width, height):
        raise Refused(
            f"has {width:,} x {height:,} pixels; one side may be at most {MOST_SLENDER} times as long as the other"
        )


def _of_wrong_name(source: Path | bytes, opened: Any) -> list[str]:
    known = "JPEG" if opened.format == "MPO" else opened.format
    suffix = source.suffix.lower() if isinstance(source, Path) else ""
    return [f"named {suffix}, but in the format {known}"] if SUFFIXES.get(suffix, known) != known else []


def _of_frames(opened: Any) -> list[str]:
    """Refuse several pictures in one file, but for those that cameras append to a JPEG."""
    frames = getattr(opened, "n_frames", 1)
    if frames == 1:
        return []
    if opened.format == "MPO":
        return ["read without the pictures that the camera appended (MPO)"]
    if opened.format == "TIFF":
        raise Refused(f"has {frames:,} pages. Save each as a file of its own")
    raise Refused(f"is an animation of {frames:,} frames. Save the frame that shows its class as an image")


def _orientation(opened: Any) -> tuple[int, bool]:
    """EXIF's orientation, and whether it could be read. The decoder of TIFF turns the pixels by itself, and then the
    orientation is gone."""
    try:
        return int(opened.getexif().get(ORIENTATION, 1)), True
    except Exception:  # damaged EXIF data raise errors of many kinds; the pixels are whole
        return 1, False


def _why(error: Exception, source: Path | bytes | np.ndarray) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError) and not isinstance(source, np.ndarray):
        return f"is no image in one of the formats {', '.join(FORMATS)}{what_instead(source)}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        pixels = _PIXELS.search(str(error))
        count = f"{int(pixels[1]):,}" if pixels is not None else "too many"
        return (
            f"has {count} pixels; at most {MOST_PIXELS:,} are decoded, so that a small file cannot fill the memory. "
            "Make it smaller"
        )
    return f"cannot be decoded as an image: {first_line(error).rstrip('.')}"


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
