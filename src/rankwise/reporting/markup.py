"""The only place that makes HTML. What comes from a run is text, and text is escaped wherever it is put.

A plain string is never markup: it becomes markup by `text`, or as a child or attribute of `element`, and all of these
escape it. Characters that would steer a reader's eye or a terminal (control characters, overrides of the direction of
writing, halves of characters) are shown by their number, in a style of their own.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from html import escape

EMPTY = frozenset({"meta", "br", "path", "use", "circle", "line", "rect"})
JOINERS = frozenset("\u200c\u200d")
"""Letters of several scripts, and many emoji, are written with them."""


class Markup(str):
    """HTML that was made here."""

    __slots__ = ()


Content = str | Markup | Iterable["str | Markup"]


def element(tag: str, *children: Content, **attributes: str | int | float | bool | None) -> Markup:
    """`class_` is class and `data_label` data-label; an attribute of None or False is left out, and True has no
    value."""
    said = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{attribute(str(value))}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in EMPTY:
        return Markup(f"<{tag}{said}>" if tag in ("meta", "br") else f"<{tag}{said}/>")
    return Markup(f"<{tag}{said}>{joined(*children)}</{tag}>")


def joined(*children: Content) -> Markup:
    return Markup("".join(_content(child) for child in children))


def _content(child: Content) -> str:
    if isinstance(child, Markup):
        return str(child)
    return text(child) if isinstance(child, str) else "".join(map(_content, child))


def text(words: str) -> Markup:
    """Somebody's words, escaped; what cannot be seen is shown."""
    parts: list[str] = []
    for character in words:
        if _seen(character):
            parts.append(escape(character, quote=True))
        else:
            parts.append(f'<span class="unseen">{escape(number(character))}</span>')
    return Markup("".join(parts))


def attribute(words: str) -> str:
    return escape(shown(words), quote=True).replace("\n", " ").replace("`", "&#96;")


def shown(words: str) -> str:
    """As plain text, for places that have no styles."""
    return "".join(character if _seen(character) else number(character) for character in words)


def number(character: str) -> str:
    return f"U+{ord(character):04X}"


def _seen(character: str) -> bool:
    return (
        character.isprintable()
        or character in "\n\t"
        or character in JOINERS
        or unicodedata.category(character) == "Zs"  # no-break and ideographic spaces
    )
