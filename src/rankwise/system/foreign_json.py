"""Read JSON that others have written: settings of other programs, with a size limit and clear errors, and objects in
which no key may be repeated, of which the standard library would silently keep the last value."""

from __future__ import annotations

import json
from pathlib import Path
from stat import S_ISREG
from typing import Any

from rankwise.errors import ModelError
from rankwise.system.contents import content_of

LARGEST_CONFIG, DEEPEST_CONFIG = 10_000_000, 100


def read_json(file: Path) -> dict[str, Any]:
    loaded = read_any_json(file)
    if not isinstance(loaded, dict):
        raise ModelError(f"{file} is damaged: it contains a {type(loaded).__name__}.")
    return loaded


def read_any_json(file: Path) -> Any:
    try:
        status = file.stat()
        if not S_ISREG(status.st_mode):  # reading a pipe would wait forever
            raise ModelError(f"{file} is not a regular file; this folder is not a model.")
        if status.st_size > LARGEST_CONFIG:
            raise ModelError(f"{file} has {status.st_size:,} bytes, which is too many for settings.")
        loaded = json.loads(content_of(file).decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror}); this folder is not a model.") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{file} is damaged: it is not JSON.") from None
    if _is_deeper(loaded, DEEPEST_CONFIG):
        raise ModelError(f"{file} is damaged: its settings are nested more than {DEEPEST_CONFIG} deep.")
    return loaded


def read_if_sound(file: Path) -> Any:
    """None where the file is not there, or cannot be read."""
    try:
        return read_any_json(file) if file.is_file() else None
    except ModelError:
        return None


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested deeper. Libraries that read settings copy them by recursion."""
    level = [value]
    for _ in range(depth):
        inside = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [part for parts in inside for part in parts]
        if not level:
            return False
    return any(isinstance(one, dict | list) for one in level)


class GivenTwice(ValueError):
    """Raised for a repeated key. The text of the error is the key."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `object_pairs_hook` that refuses repeated keys."""
    row = dict(pairs)
    if len(row) != len(pairs):
        seen: set[str] = set()
        raise GivenTwice(repr(next(key for key, _ in pairs if key in seen or seen.add(key))))
    return row


def loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=once)
