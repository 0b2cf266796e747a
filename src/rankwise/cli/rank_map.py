"""Ranks as a table of 80 columns: a row for each block, a column for each kind of layer, and totals.

If not all kinds of layers fit side by side, there are several tables, one below the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.runs.records import rank_grid

WIDTH = 79


@dataclass(frozen=True)
class Cell:
    text: str
    share: float | None
    """The rank as a share of the largest rank, for the shade; None for a cell without shade."""


Row = list[Cell]


def rank_tables(ranks: dict[str, int]) -> list[list[Row]]:
    """Tables of padded cells. The joined cells of a row are a line of at most 79 characters."""
    rows, columns, cells = rank_grid(ranks)
    side = max(map(len, ("layer", *rows)))
    end = max(len("total"), len(str(sum(ranks.values())))) + 1
    widths = {
        column: max(len(column), len(str(sum(cells.get((row, column), 0) for row in rows)))) + 1 for column in columns
    }
    largest = max(1, *ranks.values())
    return [
        _table(rows, some, cells, [side, *map(widths.__getitem__, some), end], largest)
        for some in _side_by_side(columns, widths, WIDTH - side - end)
    ]


def _table(
    rows: list[str], columns: list[str], cells: dict[tuple[str, str], int], widths: list[int], largest: int
) -> list[Row]:
    body = {row or "-": [cells.get((row, column)) for column in columns] for row in rows}
    body = {row: own for row, own in body.items() if own.count(None) < len(own)}
    sums = [sum(filter(None, column)) for column in zip(*body.values(), strict=True)]
    return [
        _row(["layer", *columns, "total"], widths),
        *(
            _row([row, *own], widths[:-1], largest) + _row([sum(filter(None, own))], widths[-1:])
            for row, own in body.items()
        ),
        _row(["total", *sums, sum(sums)], widths),
    ]


def _row(texts: Sequence[str | int | None], widths: list[int], largest: int | None = None) -> Row:
    """Padded cells; with the largest rank, each rank among them has a shade."""
    return [
        Cell(
            f"{'-' if text is None else text:>{width}}",
            min(1.0, text / largest) if largest and isinstance(text, int) else None,
        )
        for text, width in zip(texts, widths, strict=True)
    ]


def _side_by_side(columns: list[str], widths: dict[str, int], room: int) -> list[list[str]]:
    tables: list[list[str]] = [[]]
    for column in columns:
        if tables[-1] and sum(widths[one] for one in tables[-1]) + widths[column] > room:
            tables.append([])
        tables[-1].append(column)
    return tables
