"""Ranks as a table: a row for each block, a column for each kind of layer, totals on both sides, in 80 columns.

A model with more kinds of layers than fit side by side gets several tables, one below the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

WIDTH = 79
LONGEST_NAME = 20
USUAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""A file has its layers by the alphabet; these are shown in the order in which a model uses them."""
_BLOCK = re.compile(r"(?:^|.*?\.)(?P<block>\d+)\.(?P<rest>.+)")


@dataclass(frozen=True)
class Cell:
    text: str
    share: float | None
    """Of the largest rank of a layer; None where there is nothing to shade."""


Row = list[Cell]


def rank_tables(ranks: dict[str, int]) -> list[list[Row]]:
    """Rows of cells that are padded already: joined, they are lines of at most 79 characters."""
    placed = {path: _placed(path) for path in ranks}
    names = _short({rest for _, rest in placed.values()})
    cells: dict[tuple[str, str], int] = {}
    for path, (block, rest) in placed.items():
        cells[block, names[rest]] = cells.get((block, names[rest]), 0) + ranks[path]
    rows = sorted({block for block, _ in cells}, key=lambda block: (not block, int(block or 0)))
    columns = list(dict.fromkeys(names[rest] for _, rest in placed.values()))
    columns.sort(key=lambda name: USUAL.index(name) if name in USUAL else len(USUAL))
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

    def total(wanted: list[tuple[str, str]]) -> int:
        return sum(cells.get(place, 0) for place in wanted)

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


def _placed(path: str) -> tuple[str, str]:
    """Block and kind: `model.layers.3.mlp.up_proj` is 3 and mlp.up_proj. Layers outside blocks have none."""
    match = _BLOCK.fullmatch(path)
    return (match["block"], match["rest"]) if match else ("", path)


def _short(kinds: set[str]) -> dict[str, str]:
    """The last words of each kind, as many as tell it from the others, cut at its beginning if it is still long."""
    short: dict[str, str] = {}
    for kind in kinds:
        words = kind.split(".")
        ends = [".".join(words[-count:]) for count in range(1, len(words) + 1)]
        short[kind] = next(
            (end for end in ends if not any(other != kind and f".{other}".endswith(f".{end}") for other in kinds)), kind
        )
    cut = {
        kind: name if len(name) <= LONGEST_NAME else f"..{name[-LONGEST_NAME + 2 :]}" for kind, name in short.items()
    }
    return cut if len(set(cut.values())) == len(cut) else {kind: _numbered(kind, kinds) for kind in kinds}


def _numbered(kind: str, kinds: set[str]) -> str:
    """Names that differ only where they were cut."""
    return f"..{kind[-LONGEST_NAME + 8 :]}#{sorted(kinds).index(kind) + 1}"


def _side_by_side(columns: list[str], widths: dict[str, int], room: int) -> list[list[str]]:
    tables: list[list[str]] = [[]]
    for column in columns:
        if tables[-1] and sum(widths[one] for one in tables[-1]) + widths[column] > room:
            tables.append([])
        tables[-1].append(column)
    return tables
