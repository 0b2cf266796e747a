"""Read JSON and refuse an object with a repeated key. The standard library would silently keep the last value."""

from __future__ import annotations

import json
from typing import Any


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
