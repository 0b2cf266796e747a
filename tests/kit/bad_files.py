"""Bad files, for the table of bad_data.py: texts of every kind of file, images, and what is no file."""

from __future__ import annotations

import base64
import io
import json
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from openpyxl import Workbook
from PIL import Image

from kit.bad_data import GOOD, ROWS, Case, Content, lines

TEXT = GOOD["text"]
CELLS = ["messages", *(json.dumps(row["messages"]) for row in TEXT)]
LIST = json.dumps(TEXT, indent=1).encode()
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
PAGE = b"<!DOCTYPE html>\n<html><body>Not Found</body></html>\n"
MARK = b"\xef\xbb\xbf"


def refused(name: str, file: str, content: Content, *said: str, where: str | None = None) -> Case:
    return Case(name, "text", {file: content}, file, "refused", where or file, said)


def dropped(name: str, file: str, content: Content, line: int, *said: str) -> Case:
    return Case(name, "text", {file: content}, file, "dropped", f"{file}:{line}", said)


def read(name: str, file: str, content: Content, *said: str) -> Case:
    return Case(name, "text", {file: content}, file, "read", file, said)


def table(cells: list[str]) -> bytes:
    return "".join('"' + cell.replace('"', '""') + '"\n' for cell in cells).encode()


def windows(content: bytes) -> bytes:
    """With a byte order mark and Windows line ends."""
    return MARK + content.replace(b"\n", b"\r\n")


def workbook(path: Path) -> None:
    book = Workbook()
    for cell in [*CELLS[:3], "#N/A", *CELLS[3:]]:
        book.active.append([cell])  # pyright: ignore[reportOptionalMemberAccess]
    book.save(path)


def packed_bomb(path: Path) -> None:
    """A workbook whose archive says that it unpacks to 600 MB."""
    workbook(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("xl/media/image1.png", b"")
        archive.getinfo("xl/media/image1.png").file_size = 600_000_000


def parquet(rows: Any) -> bytes:
    written = io.BytesIO()
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), written, store_schema=False)
    return written.getvalue()


def arrow(rows: pa.Table) -> bytes:
    written = io.BytesIO()
    with pa.ipc.new_file(written, rows.schema) as file:
        file.write_table(rows)
    return written.getvalue()


def astray() -> bytes:
    """An Arrow file in which a text ends a gigabyte behind the end of all texts."""
    whole = arrow(pa.table({"text": ["one", "three", "seven"]}))
    ends = struct.pack("<4i", 0, 3, 8, 13)
    return whole.replace(ends, ends[:8] + struct.pack("<2i", 1 << 30, 13))


def repeated(path: Path) -> None:
    """16 MB of text, for each of 70 rows; written where it is wanted, since it takes seconds."""
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 70, pa.int8()), pa.array(["x" * 16_000_000]))
    path.write_bytes(parquet(pa.table({"text": once})))


def endless() -> pa.Table:
    return pa.table({"text": pa.RunEndEncodedArray.from_arrays(pa.array([2_000_000_000], pa.int32()), pa.array(["x"]))})


def named_in_bytes(path: Path) -> None:
    """A file whose name is no text, beside the one that was written."""
    with open(os.path.join(os.fsencode(path.parent), b"\xff.jsonl"), "wb") as file:
        file.write(lines(*TEXT))
    path.write_bytes(lines(*TEXT))


FILES = [
    read("conversations with a mark and Windows line ends", "x.jsonl", windows(lines(*TEXT))),
    read("a list with a mark and Windows line ends", "x.json", windows(LIST)),
    read("one id for every row", "x.jsonl", lines(*(row | {"id": 7} for row in TEXT)), "the column 'id' is not used"),
    refused("a list cut in the middle", "x.json", LIST[:-90], "is not JSON", where="x.json:"),
    refused("conversations in UTF-16", "x.jsonl", lines(*TEXT).decode().encode("utf-16"), "UTF-16"),
    refused("xz", "x.jsonl", lzma.compress(lines(*TEXT)), "is compressed (xz)"),
    refused("a pointer of Git LFS", "x.parquet", LFS, "is a pointer of Git LFS"),
    refused("a web page", "x.jsonl", PAGE, "is not JSON", where="x.jsonl:1"),
    dropped("a cell of broken JSON", "x.csv", table([*CELLS[:3], '[{"role": ', *CELLS[3:]]), 4, "is not JSON"),
    dropped("a cell in Latin-1", "x.csv", MARK + table(CELLS[:3]) + b'"\xff"\n' + table(CELLS[3:]), 4, "not UTF-8"),
    dropped("an error of Excel", "x.xlsx", workbook, 4, "contains the error #N/A"),
    refused("a workbook that unpacks to very much", "x.xlsx", packed_bomb, "would unpack to 600,0"),
    refused("a column named in Latin-1", "x.parquet", parquet(TEXT).replace(b"messages", b"mess\xffges"), "damaged"),
    refused("a long text once for all rows", "x.parquet", repeated, "take more than"),
    refused("two billion rows in a kilobyte", "x.arrow", arrow(endless()), "2,000,000,000 rows"),
    refused("a text that ends behind its file", "x.arrow", astray(), "is damaged"),
    Case("a file named in Latin-1", "text", {"x.jsonl": named_in_bytes}, "", "refused", "\\udcff.jsonl", ("name",)),
]  # fmt: skip


def picture(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize((48, 40), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **more)
    return written.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def half_zeros(kind: str) -> bytes:
    """What a download leaves that was broken off after the space for it was made."""
    whole = encoded(picture(9), kind)
    return whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)


def turned() -> bytes:
    """The first picture of a cat as a camera stores it that was held upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(0).transpose(Image.Transpose.ROTATE_90), exif=exif)


PETS: dict[str, bytes] = {f"{name}/{n}.png": encoded(picture(2 * n + (name == "dog"))) for name in ("cat", "dog")
                          for n in (0, 1)}  # fmt: skip
GOOD_IMAGES = [{"image": name, "label": name[:3]} for name in PETS]
WHOLE = encoded(picture(8))
HUGE = (
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
)
COMMENT = WHOLE[:33] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000), 1)) + WHOLE[33:]
DATA_URL = f"data:image/png;base64,{base64.b64encode(WHOLE).decode()}"


def image(name: str, file: str, content: Content, *said: str) -> Case:
    """A bad file in a folder of images."""
    return Case(name, "images", {**PETS, file: content}, "", "dropped", file, said)


def image_row(name: str, value: Any, *said: str) -> Case:
    rows = [*GOOD_IMAGES[:2], {"image": value, "label": "cat"}, *GOOD_IMAGES[2:]]
    files: Mapping[str, Content] = {**PETS, "x.jsonl": lines(*rows)}
    return Case(name, "images", files, "x.jsonl", "dropped", "x.jsonl:3", said)


def image_bytes(cut: bytes) -> bytes:
    rows = [{"image": {"bytes": PETS[row["image"]], "path": None}, "label": row["label"]} for row in GOOD_IMAGES]
    return parquet([*rows[:2], {"image": {"bytes": cut, "path": None}, "label": "cat"}, *rows[2:]])


IMAGES = [
    image("an image cut in the middle", "cat/x.png", WHOLE[: len(WHOLE) // 2], "cannot be decoded as an image"),
    image("a JPEG whose rest is zeros", "cat/x.jpg", half_zeros("JPEG"), "the end of the JPEG file is lost"),
    image("an image of 900 million pixels", "cat/x.png", HUGE, "900,000,000 pixels"),
    image("a comment that unpacks to very much", "cat/x.png", COMMENT, "cannot be decoded as an image"),
    image("an image of no byte", "cat/x.png", b"", "is empty"),
    image("a web page under the name of an image", "cat/x.png", PAGE, "it is a web page"),
    image("a pipe under the name of an image", "cat/x.png", os.mkfifo, "there is no such file"),
    image("a link to a device", "cat/x.png", lambda path: path.symlink_to("/dev/zero"), "leads out of the folder"),
    image_row("an image written into its row", DATA_URL, "is a data: URL"),
    image_row("a path that is too long", "x" * 5000 + ".png", "is missing: there is no such file"),
    Case("an image cut in its cell", "images", {"x.parquet": image_bytes(WHOLE[:60])}, "x.parquet", "dropped",
         "x.parquet:3", ("cannot be decoded as an image",)),
    Case("an image that EXIF data turn", "images", {**PETS, "cat/0.png": turned()}, "", "read", "",
         ("turned upright",)),
    Case("a wrong extension", "images", {**PETS, "cat/0.png": encoded(picture(0), "BMP")}, "", "read", "",
         ("named .png, but in the format BMP",)),
]  # fmt: skip
CASES = [*ROWS, *FILES, *IMAGES]
