"""Contents of files that are read many times: a small one is read once in a process while it stays as it is.

A file is the same while the system gives the same number, size and times for it. Larger files are opened by each
reader; of these only the hash is kept.
"""

from __future__ import annotations

import hashlib
import os
from io import BytesIO
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

MOST_BYTES = 64 << 20
"""Bytes of all contents that are kept."""
State = tuple[int, ...]
_contents: dict[State, bytes] = {}
_hashes: dict[State, str] = {}


def state_of(status: os.stat_result) -> State:
    """What changes when somebody writes into a file, or puts another in its place."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def opened(path: Path) -> BinaryIO:
    """The file from its beginning, as `path.open("rb")` gives it. OSError where it cannot be opened."""
    if (content := _contents.get(state_of(path.stat()))) is not None:
        return BytesIO(content)
    file = path.open("rb")
    status = os.fstat(file.fileno())
    if not S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
        return file
    with file:
        content = file.read()
    if len(content) == status.st_size:
        _keep(state_of(status), content)
    return BytesIO(content)


def _keep(state: State, content: bytes) -> None:
    _contents[state] = content
    for oldest in list(_contents):
        if sum(map(len, list(_contents.values()))) <= MOST_BYTES:
            break
        _contents.pop(oldest, None)


def content_of(path: Path) -> bytes:
    with opened(path) as file:
        return file.read()


def hash_of(path: Path) -> str:
    """The SHA-256 of the file, in hexadecimal digits."""
    state = state_of(path.stat())
    if state not in _hashes:
        with opened(path) as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        _hashes[state] = digest.hexdigest()
    return _hashes[state]
