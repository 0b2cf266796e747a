"""Amounts of memory as people write them: 6GB, 800 MB, 1.5GiB."""

from __future__ import annotations

import re

UNITS = {
    f"{letter}{binary}b": (1024 if binary else 1000) ** power
    for power, letter in enumerate(("", "k", "m", "g", "t"))
    for binary in ("", "i")
    if letter or not binary
}
LARGEST = 10**15


def parse_size(text: str) -> int:
    """Bytes. ValueError for anything else than a number and a unit."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b)", text.strip().lower())
    size = 0 if found is None or found[2] not in UNITS else round(float(found[1]) * UNITS[found[2]])
    if not 0 < size <= LARGEST:
        raise ValueError("an amount of memory is a number with a unit, such as 6GB or 800MB")
    return size
