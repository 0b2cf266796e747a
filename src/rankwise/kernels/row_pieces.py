"""Matrices in pieces of whole rows, so that little of a large one is worked on at a time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

PIECE = 1 << 20
"""Numbers that are worked on at a time. A replay of a merge must use the same, since a product of matrices may be
rounded otherwise when it is cut otherwise."""


def row_pieces(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of each piece of about PIECE numbers."""
    step = max(1, PIECE // max(1, columns))
    yield from ((first, min(first + step, rows)) for first in range(0, rows, step))


def cached_rows(matrix: Tensor) -> Iterator[tuple[int, int]]:
    """Pieces of a matrix whose float32 copy stays in a processor's cache; all rows at once on a GPU, where each further
    operation costs a start."""
    yield from row_pieces(*matrix.shape) if matrix.device.type == "cpu" else [(0, len(matrix))]
