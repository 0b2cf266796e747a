"""Write files and folders atomically: they are complete or absent.

Everything is written under a temporary name, flushed to the disk and then renamed, so no reader sees half a file. An
error on a full disk says where, how much was needed and how much is free.
"""

from __future__ import annotations

import errno
import gc
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import psutil

from rankwise.errors import DEVICE, FULL, ResourceError, RunError

LONGEST_NAME = 256
ABANDONED = 86_400
"""Age in seconds from which a leftover temporary folder is removed."""
ATTEMPTS, BETWEEN = 20, 0.05
"""How often Windows is asked to rename, and the seconds between."""
NOT_WRITABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT,
    errno.EINVAL,
}  # fmt: skip


def _own_name(path: Path) -> Path:
    """What this thread writes before it has its name: its process is the last number, by which leftovers are known.
    RunError for a name that no file has on Windows, where it may be copied."""
    if re.match(DEVICE, path.name) or path.name.endswith((".", " ")):
        raise RunError(f"{path} is not written, because Windows can have no file {path.name!r}. Choose another name.")
    own = threading.current_thread()
    thread = "" if own is threading.main_thread() else f".t{own.ident}"
    return path.parent / f".{path.name}{thread}.{os.getpid()}.tmp"


def write_atomic(path: Path, content: bytes) -> None:
    temporary = _own_name(path)
    try:
        with told_when_full(path), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with told_when_full(path):
            move(temporary, path, over=True)
            _flush(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_new(path: Path, content: bytes) -> None:
    """Write a file whose name must be free, whole or not at all: FileExistsError where another has taken the name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with told_when_full(path), temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise
            with told_when_full(path), path.open("xb") as file:  # a file system without hard links
                file.write(content)
        with told_when_full(path):
            _flush(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


@contextmanager
def published(folder: Path, *, first_stays: bool = False) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` when the block ends, and removed if the block fails.

    If a folder with this name already has content, that is an error. With `first_stays`, the existing folder is used,
    because another process has written the same content.
    """
    with temporary_folder(folder) as temporary:
        yield temporary
        readable = temporary.stat().st_mode & 0o666
        for file in temporary.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(readable)  # safetensors writes through a private file, which others could not read
            _flush(file)
        _flush(temporary)
        if sys.platform == "win32" and not first_stays:
            with suppress(OSError):  # an empty folder gives way on other systems
                folder.rmdir()
        try:
            move(temporary, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not first_stays:
                raise RunError(f"{folder} already exists and is not overwritten.") from None
        _flush(folder.parent)


@contextmanager
def published_file(path: Path, *, first_stays: bool = False) -> Iterator[Path]:
    """A temporary file that takes the name `path` when the block ends, and is removed if the block fails. An existing
    file is an error, or stays with `first_stays`, because somebody has written the same content."""
    with temporary_folder(path) as temporary:
        yield temporary / path.name
        _flush(temporary / path.name)
        if os.path.lexists(path):
            if first_stays:
                return
            raise RunError(f"{path} already exists and is not overwritten.")
        move(temporary / path.name, path)
        _flush(path.parent)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which is removed with what is still in it."""
    with folders_above(path):
        temporary = _own_name(path)
        _clear(path)
        try:
            with told_when_full(path):
                temporary.mkdir()
                yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def folders_above(path: Path) -> Iterator[None]:
    """Create the folders that a path lies in. If the block fails, those that were created and are empty go again."""
    with told_when_full(path):
        created = make_folders(path.parent)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # from the innermost to the first that holds something
            for parent in created:
                parent.rmdir()
        raise


def make_folders(folder: Path) -> list[Path]:
    """Create a folder and those above it, for good: a power failure leaves them. Returns the new ones, the innermost
    first."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(created):
        _flush(path.parent)
    return created


def _clear(folder: Path) -> None:
    """Remove temporary folders that this thread left, and those of dead processes that are older than a day.

    The age matters because another machine or container may share the folder, and its process ids are unknown here.
    """
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        number = left.name.removesuffix(".tmp").rpartition(".")[2]
        with suppress(OSError):
            abandoned = number.isdecimal() and not psutil.pid_exists(int(number))
            if left == _own_name(folder) or (abandoned and time.time() - left.stat().st_mtime > ABANDONED):
                shutil.rmtree(left, ignore_errors=True)


def move(path: Path, to: Path, *, over: bool = False) -> None:
    """Rename a file or folder. Windows refuses while anybody has it open or mapped, such as a reader, a search for
    viruses, or this process in objects that it no longer uses; so there it is tried again."""
    for left in reversed(range(ATTEMPTS if sys.platform == "win32" else 1)):
        try:
            path.replace(to) if over else path.rename(to)
            return
        except PermissionError:
            if not left:
                raise
            gc.collect()
            time.sleep(BETWEEN)


def _flush(path: Path) -> None:
    with suppress(PermissionError):  # Windows opens no folder, and flushes only a file that may be written
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def told_when_full(path: Path) -> Iterator[None]:
    """Turn write errors of the system into errors that name the path and the free space."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise _full(path) from None
        if error.errno == errno.ENOENT and path.parent.exists():
            raise RunError(f"{error.filename or path} was removed while it was in use. Try again.") from None
        if error.errno in NOT_WRITABLE:
            raise RunError(
                f"{path} cannot be written ({error.strerror}). Choose a folder that you can write to."
            ) from None
        raise
    except Exception as error:
        number = re.search(r"os error (\d+)", str(error))  # the form of safetensors' errors
        if "No space left" in str(error) or (number and int(number[1]) in FULL):
            raise _full(path) from None
        raise


def check_place(path: Path) -> None:
    """Check, before long work, that a file can be written to this path. Creates its folder."""
    _own_name(path)
    with told_when_full(path):
        if not path.name or path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        make_folders(path.parent)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def need_space(path: Path, size: int) -> None:
    """Refuse before writing if `size` bytes (and a fifth more) do not fit."""
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < 1.2 * size:
        raise ResourceError(
            f"{path} needs {_amount(size)} and {existing.absolute()} has {_amount(free)} free. "
            "Free some, or use another disk."
        )


def _full(path: Path) -> ResourceError:
    existing = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    free = _amount(shutil.disk_usage(existing).free)
    return ResourceError(f"no space left while writing {path} ({free} free). Free some, or use another disk.")


def _amount(size: float) -> str:
    """As whole megabytes, or as whole kilobytes where these say more."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 or size == 0 else f"{size / 1e3:,.0f} kB"


def unnamed_file(folder: Path) -> BinaryIO:
    """A file that nobody else sees, in the folder, or where that cannot be written to, in the system's folder of
    temporary files. Its space is free again when nobody reads it any more, also where the process is killed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return cast(BinaryIO, tempfile.TemporaryFile(dir=folder))
    except OSError:
        return cast(BinaryIO, tempfile.TemporaryFile())


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_here(name: str) -> Path | None:
    """The file or folder on this disk that has this name."""
    if not 0 < len(name) < LONGEST_NAME or "\0" in name:
        return None
    path = Path(os.path.expanduser(name))  # noqa: PTH111  Path.expanduser raises where there is no such home
    return path if path.exists() else None
