"""Rows whose words have tags.

    {"tokens": [words], "tags": [names]}                            as CoNLL data sets have them; BIO or plain names
    {"text": text, "spans": [{"start": 0, "end": 4, "label": name}]}    in characters; the end is exclusive

The words of a text with spans are those of rows/text/example.py. A span must cover whole words: one that begins or ends
inside a word is widened to it, which is counted in the data report.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rankwise.config.base import shown
from rankwise.errors import DataError
from rankwise.rows.forms.columns import Row, require
from rankwise.rows.forms.turns import text_of
from rankwise.rows.text.example import (
    BEGIN,
    INSIDE,
    OUTSIDE,
    Example,
    Message,
    Range,
    Span,
    TaggedWords,
    joined,
    spans_of,
    words_of,
)
from rankwise.rows.text.text_encoding import is_unicode
from rankwise.system.foreign_json import loads

TAGGED_FORMATS = ("tokens", "spans")
REQUIRED, OPTIONAL = ("start", "end", "label"), ("text",)
"""Keys of a span. Its text, where it is given, must be what lies there."""


def has_tags(row: Row) -> bool:
    return "tags" in row and isinstance(list_in(row.get("tokens")), list)


def has_spans(row: Row) -> bool:
    return "text" in row and "spans" in row and (row["spans"] is None or isinstance(list_in(row["spans"]), list))


def tokens_example(row: Row, labels: tuple[str, ...], where: str) -> Example:
    require(row, where, "tokens", "tokens", "tags")
    words, tags = (_listed(row[name], name, where) for name in ("tokens", "tags"))
    if not words:
        raise DataError(f"{where}: the list of tokens is empty.")
    if len(words) != len(tags):
        raise DataError(f"{where}: there are {len(words):,} tokens and {len(tags):,} tags.")
    names = [_name(tag, labels, f"tag {number}", where) for number, tag in enumerate(tags, 1)]
    text, ranges = joined([text_of(word, where, f"token {number}") for number, word in enumerate(words, 1)])
    return _example(text, TaggedWords(ranges, tuple(names), is_split=True), where)


def spans_example(row: Row, labels: tuple[str, ...], where: str) -> Example:
    require(row, where, "spans", "text", "spans")
    text, items = text_of(row["text"], where, "text"), _listed(row["spans"], "spans", where)
    spans = [_span(item, f"span {number}", text, labels, where) for number, item in enumerate(items, 1)]
    spans.sort(key=lambda span: (span.first, span.stop))
    for one, other in pairwise(spans):
        if other.first < one.stop:
            raise DataError(f"{where}: the spans {_described(one)} and {_described(other)} overlap.")
    words = words_of(text)
    tags, widened = _tags(text, words, spans, where)
    return _example(text, TaggedWords(words, tags, widened), where)


def untagged(words_or_text: str | Sequence[str], where: str) -> Example:
    """A text, or its words, that is to be tagged."""
    text, words = (words_or_text, words_of(words_or_text)) if isinstance(words_or_text, str) else joined(words_or_text)
    tagged = TaggedWords(words, is_split=not isinstance(words_or_text, str))
    return Example((Message("user", text),), where, tagged=tagged)


def _example(text: str, tagged: TaggedWords, where: str) -> Example:
    """The answer is what the tags stand for, so that rows with the same text and other tags are no duplicates."""
    spans = [
        (tagged.words[span.first][0], tagged.words[span.stop - 1][1], span.label) for span in spans_of(tagged.tags)
    ]
    answer = ", ".join(f"{label}: {text[start:end]}" for start, end, label in spans)
    return Example((Message("user", text), Message("assistant", answer)), where, tagged=tagged)


def list_in(value: Any) -> Any:
    """A cell of a table holds a list as its JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _listed(value: Any, name: str, where: str) -> list[Any]:
    value = list_in(value)
    if not isinstance(value, list):
        hint = "; write [] where the text has none" if name == "spans" and value is None else ""
        raise DataError(f"{where}: the {name} are {shown(value)}; a list is expected{hint}.")
    return value


def _name(value: Any, labels: tuple[str, ...], what: str, where: str) -> str:
    """The tag or the label; a number by its name in `labels`."""
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < len(labels):
            return labels[value]
        known = f"data.labels has {len(labels)} names" if labels else "name the tags 0, 1, 2, … with data.labels"
        raise DataError(f"{where}: {what} is {value}, and a name is expected ({known}).")
    if not isinstance(value, str) or value.strip() in ("", BEGIN, INSIDE) or "\0" in value or not is_unicode(value):
        raise DataError(f"{where}: {what} is {shown(value)}, and a name is expected.")
    return value.strip()


def _span(item: Any, what: str, text: str, labels: tuple[str, ...], where: str) -> Span:
    if not isinstance(item, dict):
        raise DataError(f"{where}: {what} is {shown(item)}, and start, end and label are expected.")
    if missing := [key for key in REQUIRED if key not in item]:
        raise DataError(f"{where}: {what} has no {missing[0]}.")
    if unknown := [key for key in item if key not in (*REQUIRED, *OPTIONAL)]:
        raise DataError(
            f"{where}: {what} has the unknown key {shown(unknown[0])}; it may have start, end, label and text."
        )
    start, end, problem = item["start"], item["end"], ""
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in (start, end)):
        problem = f"goes from {shown(start)} to {shown(end)}, and whole numbers are expected"
    elif start >= end:
        nothing = "empty (the end is exclusive)" if start == end else "reversed"
        problem = f"begins at {start} and ends at {end}, so it is {nothing}"
    elif start < 0 or end > len(text):
        problem = f"goes from {start} to {end}, outside of the text of {len(text)} characters"
    elif item.get("text") not in (None, text[start:end]):
        problem = f"has the text {shown(item['text'])}, but {shown(text[start:end])} lies there"
    if problem:
        raise DataError(f"{where}: {what} {problem}.")
    return Span(start, end, _name(item["label"], labels, f"the label of {what}", where))


def _described(span: Span) -> str:
    return f"{span.first} to {span.stop} ({shown(span.label)})"


def _tags(
    text: str, words: Sequence[Range], spans: Sequence[Span], where: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tag of each word, and the texts of spans that were widened to whole words."""
    tags, widened = [OUTSIDE] * len(words), list[str]()
    for span in spans:
        covered = [at for at, (start, end) in enumerate(words) if start < span.stop and end > span.first]
        if not covered:
            raise DataError(f"{where}: the span {_described(span)} has no word.")
        if tags[covered[0]] != OUTSIDE:
            word = shown(text[slice(*words[covered[0]])])
            raise DataError(f"{where}: the span {_described(span)} shares the word {word} with the span before it.")
        tags[covered[0]] = BEGIN + span.label
        for at in covered[1:]:
            tags[at] = INSIDE + span.label
        own = text[span.first : span.stop]
        if (words[covered[0]][0], words[covered[-1]][1]) != _stripped(own, span.first):
            widened.append(own)
    return tuple(tags), tuple(widened)


def _stripped(text: str, start: int) -> Range:
    """Where a span lies without the white space around it."""
    begin = start + len(text) - len(text.lstrip())
    return begin, begin + len(text.strip())
