"""Block and kind of a layer, read from its path: `model.layers.3.mlp.up_proj` is mlp.up_proj of block 3."""

from __future__ import annotations

import re

LONGEST_NAME = 20
USUAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Usual kinds in the order of a forward pass; files list layers alphabetically."""
_BLOCK = re.compile(r"(?:^|.*?\.)(?P<block>\d{1,9})\.(?P<rest>.+)")


def placed(path: str) -> tuple[str, str]:
    """Split a path into block and kind; the block is empty for layers outside blocks."""
    match = _BLOCK.fullmatch(path)
    return (match["block"], match["rest"]) if match else ("", path)


def rank_grid(ranks: dict[str, int]) -> tuple[list[str], list[str], dict[tuple[str, str], int]]:
    """Return blocks in order, short names of kinds in order of use, and the rank of each (block, kind)."""
    places = {path: placed(path) for path in ranks}
    names = short_names({rest for _, rest in places.values()})
    cells: dict[tuple[str, str], int] = {}
    for path, (block, rest) in places.items():
        cells[block, names[rest]] = cells.get((block, names[rest]), 0) + ranks[path]
    blocks = sorted({block for block, _ in cells}, key=lambda block: (not block, int(block or 0)))
    kinds = list(dict.fromkeys(names[rest] for _, rest in places.values()))
    kinds.sort(key=lambda name: USUAL.index(name) if name in USUAL else len(USUAL))
    return blocks, kinds, cells


def short_names(kinds: set[str]) -> dict[str, str]:
    """Shorten each kind to as many trailing words as make it unique, cut at the beginning if still too long."""
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
    """Number names that would be equal after cutting."""
    return f"..{kind[-LONGEST_NAME + 8 :]}#{sorted(kinds).index(kind) + 1}"
