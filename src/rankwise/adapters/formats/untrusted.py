"""Bytes and JSON of a folder that somebody else made: regular files only, with limits on size, depth and repetition.

A named pipe would block the reader for ever, a device would never end, and deep JSON exhausts the stack. `json` keeps
the last of two equal keys, so two programs may read different settings from one file: repeated keys are refused. Links
are followed, since the hub's cache is made of them, and what they lead to is checked in the same way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO

from rankwise.errors import AdapterError, one_line
from rankwise.system.strict_json import GivenTwice, once

DEEPEST = 20
"""Levels of nested lists and objects. PEFT's own settings have four."""
MISSING = "is missing"
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@contextmanager
def open_regular(file: Path, missing: str = "") -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file, or what a link leads to, with its size in bytes. `missing` is the end of
    the message for no file, with its full stop."""
    try:
        descriptor = os.open(file, _FLAGS)
    except FileNotFoundError:
        link = " is a link that leads nowhere" if file.is_symlink() else f" {MISSING}"
        raise AdapterError(f"{file}{link}{missing or '.'}") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file} cannot be opened ({getattr(error, 'strerror', None) or error}).") from None
    status = os.fstat(descriptor)
    if not S_ISREG(status.st_mode):
        os.close(descriptor)
        raise AdapterError(f"{file} is not a regular file (it is a folder, a pipe or a device), so it is not read.")
    with os.fdopen(descriptor, "rb") as stream:
        yield stream, status.st_size


def read_json(file: Path, largest: int, what: str, missing: str = "") -> Any:
    """Read a JSON file of at most `largest` bytes. `what` names its content in the message for a larger one."""
    with open_regular(file, missing) as (stream, size):
        if size > largest:
            raise AdapterError(f"{file} has {size:,} bytes, which is too large for {what}.")
        try:
            content = stream.read(largest + 1)
        except OSError as error:
            raise AdapterError(f"{file} cannot be read ({error.strerror}).") from None
    return parse_json(content, file)


def parse_json(content: bytes, file: Path) -> Any:
    """Parse JSON in UTF-8; AdapterError for repeated keys, deep nesting and text that is no Unicode."""
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=once)
    except GivenTwice as error:
        raise AdapterError(f"{file} has the key {one_line(str(error))} twice, so it is unclear which counts.") from None
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{file} is not JSON ({type(error).__name__}).") from None
    if _depth_of(value) > DEEPEST:
        raise AdapterError(f"{file} is nested more than {DEEPEST} levels deep, so it is not read.")
    if _has_surrogates(content):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise AdapterError(f"{file} contains half a surrogate pair, which is no Unicode text.") from None
    return value


def _depth_of(value: Any) -> int:
    """Levels of nesting, without recursion. Stops counting after one more than are allowed."""
    level, depth = [value], 0
    while depth <= DEEPEST:
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return depth
        depth += 1
    return depth


def _has_surrogates(content: bytes) -> bool:
    return b"\\ud" in content or b"\\uD" in content
