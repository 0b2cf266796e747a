"""The texts that a Python program gives a classifier, as pairs of a text and a second one or "".

texts_given(["a film", ("a film", "a plot")]) -> [("a film", ""), ("a film", "a plot")]
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rankwise.config.base import shown
from rankwise.data.tagged_rows import untagged
from rankwise.errors import DataError, together
from rankwise.text.example import Example

ACCEPTED = "a text, or a tuple of a text and a second one"


def texts_given(texts: object) -> list[tuple[str, str]]:
    """DataError lists every item that is neither a text nor a pair of texts."""
    if isinstance(texts, str):
        raise DataError(f"the texts to classify are one text, {shown(texts)}. Give a list, even of one text.")
    if hasattr(texts, "columns"):
        raise DataError(
            "the texts to classify are a table. Give one column of it, or list(zip(first, second)) of two columns."
        )
    if not isinstance(texts, Iterable):
        raise DataError(f"the texts to classify are of type {type(texts).__name__}. Give a list of texts.")
    items: list[Any] = list(texts)
    pairs = [_pair(item) for item in items]
    problems = [
        f"item {at} of the texts to classify is {shown(item)}; {ACCEPTED} is expected."
        for at, (item, pair) in enumerate(zip(items, pairs, strict=True))
        if pair is None
    ]
    if problems:
        raise DataError(together(problems))
    return [pair for pair in pairs if pair is not None]


def _pair(item: Any) -> tuple[str, str] | None:
    """None where the item is neither a text nor a pair, or the first text is empty."""
    parts = (item, "") if isinstance(item, str) else item
    if not isinstance(parts, tuple | list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        return None
    return (parts[0], parts[1]) if parts[0].strip() else None


def untagged_given(texts: object) -> list[Example]:
    """The texts that a token classifier is given, each one text or a list of its words."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise DataError(f"the texts to tag are {shown(texts)}. Give a list of texts, or of lists of words.")
    items: list[Any] = list(texts)
    problems = [
        f"item {at} of the texts to tag is {shown(item)}; a text or a list of words is expected."
        for at, item in enumerate(items) if not _is_taggable(item)
    ]  # fmt: skip
    if problems:
        raise DataError(together(problems))
    return [untagged(item, f"item {at} of the texts to tag") for at, item in enumerate(items)]


def _is_taggable(item: Any) -> bool:
    if isinstance(item, str):
        return bool(item.strip())
    return isinstance(item, list | tuple) and bool(item) and all(isinstance(one, str) and one.strip() for one in item)
