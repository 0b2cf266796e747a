"""A map of ranks: blocks along one axis, kinds of layers along the other, darker where more rank remains."""

from __future__ import annotations

from rankwise.reporting.figures import Sheet, chart
from rankwise.reporting.markup import Markup
from rankwise.runs.records import rank_grid

MOST_KINDS, MOST_BLOCKS = 40, 200
NUMBERED = 400
"""Maps with up to so many cells show the rank in each."""
FAINTEST = 0.04
LEFT, TOP, EDGE = 92, 26, 10
Grid = dict[tuple[str, str], int]


def rank_map(ranks: dict[str, int]) -> Markup:
    blocks, kinds, cells = rank_grid(ranks)
    blocks, kinds = blocks[:MOST_BLOCKS], kinds[:MOST_KINDS]
    largest = max([*ranks.values(), 1])
    cell_wide = min(22.0, (760 - LEFT - EDGE) / max(1, len(blocks)))
    cell_tall = 22 if len(blocks) <= 60 else 12

    def draw(sheet: Sheet) -> None:
        if sheet.narrow:
            _draw(sheet, kinds, blocks, {(kind, block): rank for (block, kind), rank in cells.items()}, largest, 44)
        else:
            _draw(sheet, blocks, kinds, cells, largest, LEFT)

    heights = (TOP + EDGE + max(cell_wide, 20) * len(kinds), 2 * TOP + EDGE + cell_tall * len(blocks))
    return chart("rank-map", _described(kinds, cells), draw, heights)


def left_out(ranks: dict[str, int]) -> str:
    """Return a sentence about blocks or layers that do not fit on the map."""
    blocks, kinds, _ = rank_grid(ranks)
    if len(blocks) <= MOST_BLOCKS and len(kinds) <= MOST_KINDS:
        return ""
    return (
        f" The map shows the first {min(len(kinds), MOST_KINDS)} of {len(kinds):,} kinds of layers in the first "
        f"{min(len(blocks), MOST_BLOCKS)} of {len(blocks):,} blocks; the JSON beside this page has all."
    )


def _draw(sheet: Sheet, columns: list[str], rows: list[str], cells: Grid, largest: int, left: float) -> None:
    # long column names alternate between two lines
    in_turns = sheet.narrow and any(len(_cut(column, sheet)) > 6 for column in columns)
    top = 2 * TOP if in_turns else TOP
    panel = sheet.panel(left, top, EDGE, EDGE)
    panel.bare((-0.5, len(columns) - 0.5), (len(rows) - 0.5, -0.5))
    numbered = len(columns) * len(rows) <= NUMBERED
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            rank = cells.get((column, row))
            if rank is None:
                continue
            share = min(1.0, rank / largest)
            panel.cell(x, y, "tuned" if rank > 0 else "rule", max(FAINTEST, share) if rank > 0 else 0.5)
            if numbered:
                panel.word(x, y, str(rank), "paper" if share > 0.6 else "ink" if rank > 0 else "quiet", size=9.5)
    for y, row in enumerate(rows):
        if len(rows) <= 60 or y % 10 == 0:
            panel.word(-0.5, y, row or "other", "quiet", to="end", beside=(-8, 0), size=10)
    apart = 1 if len(columns) <= 40 else 5 if len(columns) <= 100 else 10
    for x, column in enumerate(columns):
        if x % apart == 0:
            higher = in_turns and x % 2
            panel.word(x, -0.5, _cut(column or "other", sheet), "quiet", beside=(0, 24 if higher else 10), size=10)


def _cut(name: str, sheet: Sheet) -> str:
    name = name.removesuffix("_proj") if sheet.narrow else name
    return name if len(name) <= 12 else f"\u2026{name[-11:]}"


def _described(kinds: list[str], cells: Grid) -> str:
    sums = {kind: sum(rank for (_, one), rank in cells.items() if one == kind) for kind in kinds}
    return "Ranks by kind of layer: " + ", ".join(f"{kind} {total:,}" for kind, total in sums.items())
