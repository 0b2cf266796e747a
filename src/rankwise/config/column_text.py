"""A text with the columns of a row in it: `Summarise: {dialogue}`. `{{` and `}}` are braces themselves.

Between braces stands the name of a column, to the letter, and nothing else: no attribute, no index, no format. So
nothing is ever computed from what a user or a file says; a name is looked up and its text is put in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")


@dataclass(frozen=True)
class Column:
    name: str


@dataclass(frozen=True)
class ColumnText:
    """`parts` in order: literal text, and columns."""

    parts: tuple[str | Column, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Each once, in the order in which they stand."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Column)))

    @property
    def alone(self) -> str | None:
        """The one column that is the whole text."""
        only = self.parts[0] if len(self.parts) == 1 else None
        return only.name if isinstance(only, Column) else None


def column_text(text: str) -> ColumnText:
    """ValueError where its braces do not close or are empty."""
    parts: list[str | Column] = []
    for found in _PIECE.finditer(text):
        piece, name = found[0], found[1]
        if name is not None:
            if not name.strip():
                raise ValueError("its braces {} are empty; write the name of a column between them")
            parts.append(Column(name))
        elif piece in ("{", "}"):
            other = "}" if piece == "{" else "{"
            raise ValueError(
                f"the brace {piece} at character {found.start() + 1} has no {other}; write {piece}{piece} for a "
                "literal brace"
            )
        else:
            parts.append(piece[0] if piece in ("{{", "}}") else piece)
    return ColumnText(tuple(parts))
