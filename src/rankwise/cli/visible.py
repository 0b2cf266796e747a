"""Somebody else's text on a terminal: what would steer it is shown and not obeyed."""

from __future__ import annotations


def visible(text: str) -> str:
    return "".join(
        character if character.isprintable() or character in "\n\t" else repr(character)[1:-1] for character in text
    )
