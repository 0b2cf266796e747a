"""A text with column names in braces, such as `Summarise: {dialogue}`. Write `{{` and `}}` for literal braces.

Only the exact name of a column can stand between braces: no attribute, index or format. Filling the text in therefore
only looks names up, and never evaluates anything that a user or a file wrote.
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
    """A parsed column text: its literal texts and columns, in order."""

    parts: tuple[str | Column, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it names, each once, in order of appearance."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Column)))

    @property
    def alone(self) -> str | None:
        """The column, if the text consists of one column and nothing else."""
        only = self.parts[0] if len(self.parts) == 1 else None
        return only.name if isinstance(only, Column) else None


def column_text(text: str) -> ColumnText:
    """Parse a column text; raises ValueError for braces that are empty or not closed."""
    parts: list[str | Column] = []
    for match in _PIECE.finditer(text):
        piece, name = match[0], match[1]
        if name is not None:
            if not name.strip():
                raise ValueError("its braces {} are empty; write the name of a column between them")
            parts.append(Column(name))
        elif piece in ("{", "}"):
            other = "}" if piece == "{" else "{"
            raise ValueError(
                f"the brace {piece} at character {match.start() + 1} has no {other}; write {piece}{piece} for a "
                "literal brace"
            )
        else:
            parts.append(piece[0] if piece in ("{{", "}}") else piece)
    return ColumnText(tuple(parts))
