"""What a file is that is no image of a known format, by its first bytes, for messages."""

from __future__ import annotations

from pathlib import Path

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
