"""JSON in which no object has a key twice: the standard library would keep the last and lose the others in silence."""

from __future__ import annotations

import json
from typing import Any


class GivenTwice(ValueError):
    """Its text is the key."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `object_pairs_hook`."""
    row = dict(pairs)
    if len(row) != len(pairs):
        seen: set[str] = set()
        raise GivenTwice(repr(next(key for key, _ in pairs if key in seen or seen.add(key))))
    return row


def loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=once)
