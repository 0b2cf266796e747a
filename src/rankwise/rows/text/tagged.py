"""The words of a text, each with one tag, and the spans of words that tags stand for.

    B-x    the first word of a span of type x
    I-x    a further word of a span of type x; where none is open, the first word of one, as in conlleval
    O      a word of no span
    x      a name alone, such as a part of speech; equal names in a row are one span

A word is a run of letters, digits and underscores, or one other character that is no white space. In scripts that are
written without spaces, such as Chinese, Japanese and Thai, each character is a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

OUTSIDE, BEGIN, INSIDE = "O", "B-", "I-"
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+|[^\w\s]")

Range = tuple[int, int]
"""First and end, which is exclusive."""


@dataclass(frozen=True)
class TaggedWords:
    words: tuple[Range, ...]
    """Where each word begins and ends in the text, in characters."""
    tags: tuple[str, ...] = ()
    """One for each word; none where a text is only to be tagged."""
    widened: tuple[str, ...] = ()
    """The texts of spans that began or ended inside a word, and were widened to whole words."""
    given: bool = False
    """Whether the row gave the words one by one, and not a text."""


@dataclass(frozen=True)
class Span:
    """Words from `first` to `stop`, which is exclusive."""

    first: int
    stop: int
    label: str


def words_of(text: str) -> tuple[Range, ...]:
    return tuple(match.span() for match in _WORD.finditer(text))


def joined(words: Sequence[str]) -> tuple[str, tuple[Range, ...]]:
    """Words as one text with a space between two, and where each lies in it."""
    ranges, at = list[Range](), 0
    for word in words:
        ranges.append((at, at + len(word)))
        at += len(word) + 1
    return " ".join(words), tuple(ranges)


def label_in(tag: str) -> str | None:
    """The type of span that a tag belongs to; None outside of any."""
    if tag == OUTSIDE:
        return None
    return tag[len(BEGIN) :] if tag.startswith((BEGIN, INSIDE)) else tag


def spans_of(tags: Sequence[str]) -> list[Span]:
    spans, first, label = list[Span](), 0, None
    for at, tag in enumerate([*tags, OUTSIDE]):
        own = label_in(tag)
        if own == label and not tag.startswith(BEGIN):
            continue
        if label is not None:
            spans.append(Span(first, at, label))
        first, label = at, own
    return spans


def strays_in(tags: Sequence[str]) -> int:
    """Tags I-x that no tag of the same type comes before, which begin a span as B-x would."""
    pairs = zip([OUTSIDE, *tags], tags, strict=False)
    return sum(tag.startswith(INSIDE) and label_in(before) != label_in(tag) for before, tag in pairs)
