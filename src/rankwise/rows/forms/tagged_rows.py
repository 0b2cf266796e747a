"""Rows whose words have tags.

    {"tokens": [words], "tags": [names]}                            as CoNLL data sets have them; BIO or plain names
    {"text": text, "spans": [{"start": 0, "end": 4, "label": name}]}    in characters; the end is exclusive

The words of a text with spans are those of rows/text/example.py. A span must cover whole words: one that begins or ends
inside a word is widened to it, which is counted in the data report. Everything that is wrong with a row is said in one
sentence.
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
from rankwise.system.strict_json import loads

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
    problems = [] if words else ["the list of tokens is empty"]
    problems += _bad_words(words)
    if len(words) != len(tags):
        problems.append(f"there are {len(words):,} tokens and {len(tags):,} tags")
    names = [_name(tag, labels, f"tag {number}", problems) for number, tag in enumerate(tags, 1)]
    _refuse(problems, where)
    text, ranges = joined([text_of(word, where, "token") for word in words])
    return _example(text, TaggedWords(ranges, tuple(names), given=True), where)


def spans_example(row: Row, labels: tuple[str, ...], where: str) -> Example:
    require(row, where, "spans", "text", "spans")
    text, problems = text_of(row["text"], where, "text"), list[str]()
    spans = [
        span
        for number, item in enumerate(_listed(row["spans"], "spans", where), 1)
        if (span := _span(item, number, text, labels, problems)) is not None
    ]
    spans.sort(key=lambda span: (span.first, span.stop))
    problems += [
        f"the spans {_described(one)} and {_described(other)} overlap"
        for one, other in pairwise(spans) if other.first < one.stop
    ]  # fmt: skip
    _refuse(problems, where)
    words = words_of(text)
    tags, widened = _tags(text, words, spans, problems)
    _refuse(problems, where)
    return _example(text, TaggedWords(words, tags, widened), where)


def untagged(given: str | Sequence[str], where: str) -> Example:
    """A text, or its words, that is to be tagged."""
    text, words = (given, words_of(given)) if isinstance(given, str) else joined(given)
    tagged = TaggedWords(words, given=not isinstance(given, str))
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


def _bad_words(words: Sequence[Any]) -> list[str]:
    problems = []
    for number, word in enumerate(words, 1):
        if not isinstance(word, str):
            problems.append(f"token {number} is {shown(word)}, and text is expected")
        elif not word.strip():
            problems.append(f"token {number} is empty")
    return problems


def _name(value: Any, labels: tuple[str, ...], what: str, problems: list[str]) -> str:
    """The tag or the label; a number by its name in `labels`."""
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < len(labels):
            return labels[value]
        known = f"data.labels has {len(labels)} names" if labels else "name the tags 0, 1, 2, … with data.labels"
        problems.append(f"{what} is {value}, and a name is expected ({known})")
    elif not isinstance(value, str) or value.strip() in ("", BEGIN, INSIDE) or "\0" in value or not is_unicode(value):
        problems.append(f"{what} is {shown(value)}, and a name is expected")
    else:
        return value.strip()
    return OUTSIDE


def _span(item: Any, number: int, text: str, labels: tuple[str, ...], problems: list[str]) -> Span | None:
    """None where something is wrong with it, which is added to the problems."""
    if not isinstance(item, dict):
        problems.append(f"span {number} is {shown(item)}, and start, end and label are expected")
        return None
    known, before = (*REQUIRED, *OPTIONAL), len(problems)
    problems += [f"span {number} has no {key}" for key in REQUIRED if key not in item]
    problems += [
        f"span {number} has the unknown key {shown(key)}; it may have start, end, label and text"
        for key in item if key not in known
    ]  # fmt: skip
    if len(problems) > before:
        return None
    start, end = item["start"], item["end"]
    label = _name(item["label"], labels, f"the label of span {number}", problems)
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in (start, end)):
        problems.append(f"span {number} goes from {shown(start)} to {shown(end)}, and whole numbers are expected")
    elif start >= end:
        problems.append(f"span {number} begins at {start} and ends at {end}, so it is {_nothing(start, end)}")
    elif start < 0 or end > len(text):
        problems.append(f"span {number} goes from {start} to {end}, outside of the text of {len(text)} characters")
    elif item.get("text") not in (None, text[start:end]):
        problems.append(f"the text of span {number} is {shown(item['text'])}, but {shown(text[start:end])} lies there")
    return Span(start, end, label) if len(problems) == before else None


def _nothing(start: int, end: int) -> str:
    return "empty (the end is exclusive)" if start == end else "reversed"


def _described(span: Span) -> str:
    return f"{span.first} to {span.stop} ({shown(span.label)})"


def _tags(
    text: str, words: Sequence[Range], spans: Sequence[Span], problems: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tag of each word, and the texts of spans that were widened to whole words."""
    tags, widened = [OUTSIDE] * len(words), list[str]()
    for span in spans:
        covered = [at for at, (start, end) in enumerate(words) if start < span.stop and end > span.first]
        if not covered:
            problems.append(f"the span {_described(span)} has no word")
            continue
        if tags[covered[0]] != OUTSIDE:
            word = text[slice(*words[covered[0]])]
            problems.append(f"the span {_described(span)} shares the word {shown(word)} with the span before it")
        tags[covered[0]] = BEGIN + span.label
        for at in covered[1:]:
            tags[at] = INSIDE + span.label
        own = text[span.first : span.stop]
        if (words[covered[0]][0], words[covered[-1]][1]) != _stripped(own, span.first):
            widened.append(own)
    return tuple(tags), tuple(widened)


def _stripped(own: str, start: int) -> Range:
    """Where a span lies without the white space around it."""
    begin = start + len(own) - len(own.lstrip())
    return begin, begin + len(own.strip())


def _refuse(problems: Sequence[str], where: str) -> None:
    if problems:
        raise DataError(f"{where}: {'; '.join(problems)}.")
