"""Make text of other people safe for a terminal: control characters are printed as escapes."""

from __future__ import annotations


def visible(text: str) -> str:
    return "".join(
        character if character.isprintable() or character in "\n\t" else repr(character)[1:-1] for character in text
    )
