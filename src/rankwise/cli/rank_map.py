"""Ranks as a table of 80 columns: a row for each block, a column for each kind of layer, and totals.

If not all kinds of layers fit side by side, there are several tables, one below the other.
"""

from __future__ import annotations

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
    whole = str(sum(ranks.values()))
    side = max(len("layer"), *(len(block) for block in rows))
    end = max(len("total"), len(whole)) + 1
    widths = {
        column: max(len(column), len(str(sum(cells.get((row, column), 0) for row in rows)))) + 1 for column in columns
    }
    largest = max(ranks.values(), default=0)
    return [
        _table(rows, some, cells, {"": side, "total": end} | widths, largest)
        for some in _side_by_side(columns, widths, WIDTH - side - end)
    ]


def _table(
    rows: list[str], columns: list[str], cells: dict[tuple[str, str], int], widths: dict[str, int], largest: int
) -> list[Row]:
    def bare(text: object, column: str) -> Cell:
        return Cell(f"{text:>{widths[column]}}", None)

    def of(row: str, column: str) -> Cell:
        rank = cells.get((row, column))
        return Cell(f"{'-' if rank is None else rank:>{widths[column]}}", rank and min(1.0, rank / max(1, largest)))

    def total(summed: list[tuple[str, str]]) -> int:
        return sum(cells.get(cell, 0) for cell in summed)

    head = [bare("layer", ""), *(bare(column, column) for column in columns), bare("total", "total")]
    body = [
        [bare(row or "-", ""), *(of(row, column) for column in columns),
         bare(total([(row, column) for column in columns]), "total")]
        for row in rows
        if any((row, column) in cells for column in columns)
    ]  # fmt: skip
    sums = [total([(row, column) for row in rows]) for column in columns]
    foot = [
        bare("total", ""),
        *(bare(n, column) for n, column in zip(sums, columns, strict=True)),
        bare(sum(sums), "total"),
    ]
    return [head, *body, foot]


def _side_by_side(columns: list[str], widths: dict[str, int], room: int) -> list[list[str]]:
    tables: list[list[str]] = [[]]
    for column in columns:
        if tables[-1] and sum(widths[one] for one in tables[-1]) + widths[column] > room:
            tables.append([])
        tables[-1].append(column)
    return tables
