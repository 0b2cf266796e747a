"""Files that a browser sends: `runs/.uploads/HASH/NAME`, by the hash of their content and by their own name.

The name is what people read in messages, so it stays in the path, with nothing but plain letters: of folders before it,
and of all other signs, nothing is left, and the ending must be a known one. A zip archive is read as a folder of
images: each member is written under such names, links and paths that lead elsewhere are refused, and its sizes are
counted while it is unpacked.

Whoever uses an upload has this hash in its settings: a run in its config.json and in the copies of it beside its
checkpoints, from which a damaged one is restored; an entry of the queue in its own file. An upload that none of them
names can go, unless it is young, since somebody may be filling in the form.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from starlette.concurrency import run_in_threadpool

from rankwise.errors import DEVICE, DataError
from rankwise.rows.files.files import SUFFIXES
from rankwise.rows.files.image_folder import METADATA
from rankwise.rows.forms.image_rows import IMAGE_SUFFIXES
from rankwise.runs.directory import SETTINGS
from rankwise.runs.listing import RUNS, folder_bytes, run_names
from rankwise.runs.queue import Queue
from rankwise.system.files import make_folders, need_space, published, published_file

FOLDER = RUNS / ".uploads"
LARGEST = 4_000_000_000
"""Bytes of a file, and of all images of an archive once they are unpacked."""
MOST_IMAGES = 200_000
KNOWN = (*SUFFIXES, ".zip")
_PLAIN = re.compile(rf"(?!{DEVICE})[^\W_][\w .()+-]{{0,99}}")
_OTHER = re.compile(r"[^\w.() +-]+")
_STORED = re.compile(rf"(?:(?:[A-Za-z]:)?[/\\][^\s\"'<>]*[/\\])?{re.escape(str(FOLDER))}[/\\][0-9a-f]{{32}}[/\\]")
_DIGEST = re.compile(r"[0-9a-f]{32}")
CHUNK = 1 << 20
YOUNG = 86_400.0
"""Seconds in which an upload stays in any case."""


def ending_of(name: str) -> str:
    """The known ending of a client's file name; DataError with those that are known."""
    ending = next((one for one in KNOWN if name.lower().endswith(one)), None)
    if ending is None:
        raise DataError(f"{name[-60:]!r} is not a known kind of file of rows; known endings are {', '.join(KNOWN)}.")
    return ending


def plain_name(name: str) -> str:
    """A client's file name as the last part of a path; that of an archive without its ending."""
    ending = ending_of(name)
    stem = _OTHER.sub("_", re.split(r"[/\\]", name[: -len(ending)])[-1][:60]).strip(" .") or "rows"
    stem = f"_{stem}" if re.match(DEVICE, stem) else stem
    return stem.replace(".", "_") if ending == ".zip" else f"{stem}{ending}"


def check_size(size: int | None) -> None:
    """Before anything is read, if the browser says how large the file is."""
    if size is not None and size > LARGEST:
        raise DataError(
            f"the file has {size:,} bytes; at most {LARGEST:,} are accepted. Give its path on this machine."
        )
    if size is not None:
        make_folders(FOLDER)
        need_space(FOLDER / "upload", size)


async def stored(parts: AsyncIterator[bytes], name: str) -> Path:
    """The file under its own name; the same content is stored once for each."""
    plain, digest, size = plain_name(name), hashlib.sha256(), 0
    make_folders(FOLDER)
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".") as folder:
        with (whole := Path(folder, "upload")).open("wb") as file:
            async for part in parts:
                size += len(part)
                if size > LARGEST:
                    check_size(size)
                digest.update(part)
                file.write(part)
        if not size:
            raise DataError(f"the file {name[:100]!r} is empty.")
        return await run_in_threadpool(_published, whole, FOLDER / digest.hexdigest()[:32] / plain)


def _published(temporary: Path, path: Path) -> Path:
    make_folders(path.parent)
    if not path.exists() and not path.suffix:
        _unpack(temporary, path)
    elif not path.exists():
        with published_file(path, first_stays=True) as copy:
            shutil.copyfile(temporary, copy)
    os.utime(path.parent)
    return path


def name_of(path: str) -> str | None:
    """What an uploaded file is called, for people; None for any other path."""
    return None if (name := with_names(path)) == path else name


def with_names(text: str) -> str:
    """With the names of uploads in place of their paths."""
    return _STORED.sub("", text)


def _unpack(archive: Path, folder: Path) -> None:
    """DataError, and nothing left, where a member is no image or leads elsewhere."""
    try:
        with zipfile.ZipFile(archive) as opened, published(folder, first_stays=True) as temporary:
            members = [one for one in opened.infolist() if not one.is_dir() and _is_read(one.filename)]
            _check(members)
            left = LARGEST
            for member in members:
                left -= _extracted_bytes(opened, member, temporary / _path_of(member.filename), left)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise DataError(f"the archive cannot be read: {error}.") from None


def _is_read(name: str) -> bool:
    """Files that a tool of the system adds are passed over, as in a folder."""
    parts = PurePosixPath(name).parts
    return not any(part.startswith((".", "__MACOSX")) and part != ".." for part in parts)


def _check(members: list[zipfile.ZipInfo]) -> None:
    if not members:
        raise DataError("the archive has no images.")
    if len(members) > MOST_IMAGES or sum(one.file_size for one in members) > LARGEST:
        raise DataError(f"the archive is too large: at most {MOST_IMAGES:,} images of {LARGEST:,} bytes together.")
    paths, folders = set[Path](), set[Path]()
    for member in members:
        path = _path_of(member.filename)
        if path in paths:
            raise DataError(f"the archive has the file {member.filename[:80]!r} twice.")
        paths.add(path)
        folders.update(path.parents)
    if both := sorted(paths & folders):
        raise DataError(f"the archive has {str(both[0])[:80]!r} as a file and as a folder.")


def _path_of(name: str) -> Path:
    """The path for a file of the archive, made of plain names alone, so that it leads out of the folder on no system.
    DataError for other names, and for files that do not belong in a folder of images."""
    parts = name.split("/")
    if not 0 < len(parts) <= 8 or not all(_PLAIN.fullmatch(part) and not part.endswith((".", " ")) for part in parts):
        raise DataError(
            f"the archive names a file {name[:80]!r}; names of letters, digits, spaces and .-_()+ are read."
        )
    if not name.lower().endswith(tuple(IMAGE_SUFFIXES)) and parts[-1].lower() not in METADATA:
        raise DataError(
            f"the archive has a file {name[:80]!r}, which is not an image. A zip is read as a folder of images."
        )
    return Path(*parts)


def _extracted_bytes(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, left: int) -> int:
    """The bytes of a member, whatever its header says."""
    make_folders(path.parent)
    size = 0
    with opened.open(member) as source, path.open("xb") as file:
        while part := _read(source):
            size += len(part)
            if size > left:
                raise DataError(f"the archive unpacks to more than {LARGEST:,} bytes.")
            file.write(part)
    return size


def _read(source: IO[bytes]) -> bytes:
    try:
        return source.read(CHUNK)
    except (zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk; bzip2 says it so of its data
            raise
        raise DataError(f"the archive cannot be read: {error}.") from None


@dataclass(frozen=True)
class UnusedUploads:
    digests: tuple[str, ...]
    bytes: int


def unused() -> UnusedUploads:
    """OSError where the settings of a run cannot be read, since it may use any of them."""
    ages = {one.name[:32]: time.time() - one.stat().st_mtime for one in _stored()}
    old = [digest for digest, age in ages.items() if age > YOUNG]
    if not old:
        return UnusedUploads((), 0)
    named = _settings()
    digests = sorted(digest for digest in old if digest not in named)
    return UnusedUploads(tuple(digests), sum(_bytes(part) for one in digests for part in _parts(one)))


def remove_unused() -> UnusedUploads:
    gone = unused()
    for digest in gone.digests:
        for part in _parts(digest):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
    return gone


def _settings() -> str:
    of_runs = [file for name in run_names() for where in ("", "checkpoints/*/")
               for file in (RUNS / name).glob(f"{where}{SETTINGS}")]  # fmt: skip
    files = [file for file in (*of_runs, *Queue().folder.rglob("*.json")) if file.is_file()]
    return "\n".join(file.read_text("utf-8", "replace") for file in files)


def _parts(digest: str) -> list[Path]:
    return [file for file in _stored() if file.name.startswith(digest)]


def _stored() -> list[Path]:
    return [one for one in FOLDER.iterdir() if _DIGEST.match(one.name)] if FOLDER.is_dir() else []


def _bytes(path: Path) -> int:
    return folder_bytes(path) if path.is_dir() else path.stat().st_size
