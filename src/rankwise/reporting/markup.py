"""The only module that makes HTML, and with each piece of it the same as plain text, for a terminal.

Everything that comes from a run is text, and text is always escaped: a plain string becomes markup only through
`text`, or as a child or attribute of `element`, and both escape it. Characters that could mislead a reader or a
terminal (control characters, overrides of the writing direction, incomplete characters) are shown by their code point,
in a style of their own.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from html import escape

EMPTY = frozenset({"meta", "br", "path", "circle", "line", "rect", "img"})
LINES = frozenset({"p", "h3", "li"})
"""Elements that are a line of plain text."""
DRAWN = frozenset({"svg", "figure", "article", "pre"})
"""Elements that a terminal does not show."""
ASCII = str.maketrans("\u2212\u2013", "--")
"""Plain text has no signs beyond those of the words in it."""
SEEN = frozenset("\n\t\u200c\u200d")
"""Line ends, tabs, and the joiners that several scripts and many emoji need."""


class Markup(str):
    """HTML made by this module, and in `plain` what a terminal shows of it."""

    plain = ""


Content = str | Markup | Iterable["str | Markup"]
Rows = list[list[Content]]
"""Cells of a table."""


def element(tag: str, *children: Content, **attributes: str | int | float | bool | None) -> Markup:
    """Make an element. `class_` means class and `data_label` data-label. None and False leave an attribute out; True
    writes it without a value."""
    attributes_text = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{attribute(str(value))}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in EMPTY:
        return Markup(f"<{tag}{attributes_text}>" if tag in ("meta", "br", "img") else f"<{tag}{attributes_text}/>")
    inside = joined(*children)
    plain = "" if tag in DRAWN else inside.plain + "\n" * (tag in LINES)
    return both(f"<{tag}{attributes_text}>{inside}</{tag}>", plain)


def both(html: str, plain: str) -> Markup:
    """HTML of this module, and the plain text that stands for it."""
    made = Markup(html)
    made.plain = plain
    return made


def picture(uri: str, description: str) -> Markup:
    """Show pixels that are part of the page itself; any other address is refused."""
    if not uri.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")):
        raise ValueError("a page shows no picture that lies elsewhere")
    return element("img", src=uri, alt=description)


def joined(*children: Content) -> Markup:
    parts = list(map(_content, children))
    return both("".join(parts), "".join(part.plain for part in parts))


def _content(child: Content) -> Markup:
    if isinstance(child, Markup):
        return child
    return text(child) if isinstance(child, str) else joined(*child)


def lines_of(*blocks: Content) -> list[str]:
    """The lines of plain text of some blocks."""
    return joined(*blocks).plain.translate(ASCII).splitlines()


def text(words: str) -> Markup:
    """Escape text and make invisible characters visible."""
    whole_or_apart = [words] if words.isprintable() else words
    parts = (escape(one) if _seen(one) else f'<span class="unseen">{number(one)}</span>' for one in whole_or_apart)
    return both("".join(parts), words)


def attribute(words: str) -> str:
    return escape(shown(words), quote=True).replace("\n", " ").replace("`", "&#96;")


def shown(words: str) -> str:
    """Make invisible characters visible in plain text, without styles."""
    return "".join(one if _seen(one) else number(one) for one in words)


def number(character: str) -> str:
    return f"U+{ord(character):04X}"


def _seen(character: str) -> bool:
    return (
        character.isprintable()
        or character in SEEN
        or unicodedata.category(character) == "Zs"  # no-break and ideographic spaces
    )
