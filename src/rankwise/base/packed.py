"""Weights in fewer bits: how many bytes they take, and how fast they are packed.

nf4     4 bits a number, 8 for each 64 of them, 32 for each 64 x 256, and 4 bytes for each weight
int8    8 bits a number, 32 for each row
"""

from __future__ import annotations

import math
from collections.abc import Mapping

BLOCK, OUTER = 64, 256
"""Numbers of NF4 that share a maximum, and maxima that share one; a test compares both with the format's own."""
PACKED_PER_SECOND: Mapping[str, float] = {"nf4": 60e6, "int8": 300e6}
"""Numbers that a conversion packs in a second, roughly: for nf4 on one core of an EPYC; for int8 the disk limits it."""
EXACT = 4
"""Bytes of a number in float32."""


def packed_size(rows: int, columns: int, storage: str) -> int:
    """Bytes of a matrix (rows, columns)."""
    size = rows * columns
    if storage == "nf4":
        maxima = size // BLOCK
        return size // 2 + maxima + EXACT * math.ceil(maxima / OUTER) + EXACT
    return size + EXACT * rows if storage == "int8" else EXACT * size
