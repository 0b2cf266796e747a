"""What shows in the cells of rows alone: unused columns, which are in neither the prompt nor the answer, counted for
each file and judged by content, and what is said of them; repeated headers, and labels of several kinds.

A column stops the training if most rows have text in it that differs between rows and is not in the prompt or answer,
such as a passage that the question is about. Text means three words or more. The texts of the row are removed from the
value before the comparison, so a column that repeats the rendered row does not count. Numbers, dates, paths, single
words, constants, categories and text that is already used are only reported. Memory is limited: at most a hundred
hashes of values are stored per column, and in a long file only every sixteenth row is judged, although all are counted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Any, Protocol

import numpy as np

from rankwise.config.base import shown
from rankwise.config.data import Rows
from rankwise.errors import did_you_mean, some
from rankwise.rows.forms.formats import ANSWER_FIELDS, FIELDS
from rankwise.rows.forms.proposals import REASONS, can_be_typed, ignoring, options_for
from rankwise.rows.forms.turns import is_json
from rankwise.rows.report.text_checks import holds_secret
from rankwise.rows.text.example import Example
from rankwise.runs.row_facts import UnusedColumn

ALL_JUDGED, THEN_EACH = 2000, 16
WORDS, LONG = 3, 20
"""Smallest number of words of a text, and of a long text."""
CATEGORIES = 100
PER_CATEGORY, PER_TEXT = 3, 50
"""Average repetitions from which short texts count as categories, and from which long texts do."""
KNOWN_SHARE = 0.8
"""Share of a text's words in the row's own texts from which it counts as already used."""
PART = 4
"""Shortest text of a row to look for; shorter ones occur in any text by chance."""
SECRET = "one that looks like a secret"
MOST = 20_000
"""Largest number of characters of a value to look at."""
PROMPT_FORMATS = ("prompt", "alpaca", "dolly", "input-output", "classification", "text")
"""Formats whose rows could be written with --prompt and --completion instead."""
BESIDE_TEXT = {
    "completion", "response", "answer", "answers", "output", "target", "summary", "sql", "translation", "fields",
    "json", "extracted", "extraction",
}  # fmt: skip
"""Columns that are an answer by their name, so that rows of `text` would be trained on without it."""
IS_ANSWER = "an answer, by its name"
CHOSEN = "--text and --label choose others"
ANSWERS = (*ANSWER_FIELDS, "output", "label")
ROW_HASH = 8
"""Bytes of a row's hash."""
_PATH = re.compile(r"(?:[a-z]:|\.{1,2}|~)?([\\/])[^\\/]+\1.*\S")
"""Matches a file name with folders."""
_WIDE = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Letters of scripts without spaces between words."""


@dataclass
class SpottedColumn:
    """What is known of one unused column of one file."""

    filled: int = 0
    example: str = ""
    texts: int = 0
    """Number of rows in which it has text that is not in the prompt or answer."""
    known: int = 0
    """Number of rows in which it has text that is."""
    long: int = 0
    writable: bool = True
    """Whether each of its values can be filled into a column text."""
    values: set[int] = field(default_factory=set)

    def stops(self, judged: int) -> bool:
        return 2 * self.texts > judged and self._differs

    @property
    def _differs(self) -> bool:
        different = len(self.values)
        if different < 2:
            return self.texts == 1
        if different > min(CATEGORIES, self.texts / PER_CATEGORY):
            return True
        return 2 * self.long > self.texts and different >= self.texts / PER_TEXT

    def why(self, judged: int) -> str:
        if self.stops(judged):
            return "text that is not in the prompt or the answer"
        if self.known > self.texts:
            return "text that is already in the prompt or the answer"
        if not self.texts:
            return "no text of several words"
        return "text in few rows" if 2 * self.texts <= judged else "few different values"


@dataclass
class Unused:
    """The unused columns of one file."""

    rows: int = 0
    judged: int = 0
    columns: dict[str, SpottedColumn] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)
    """All columns of the file's rows, in order."""

    def add(self, row: Mapping[str, Any], used: Iterable[str], examples: Sequence[Example], number: int) -> None:
        """`number` is that of the row in its file, from 1."""
        self.rows += 1
        self.names.update(dict.fromkeys(row))
        judges = number <= ALL_JUDGED or number % THEN_EACH == 0
        self.judged += judges
        parts = None
        aside = set(used)
        for name, value in row.items():
            if name in aside or not _filled(value):
                continue
            column = self.columns.setdefault(name, SpottedColumn())
            column.filled += 1
            column.example = column.example or (SECRET if holds_secret(f"{name}: {value}") else shown(value))
            column.writable = column.writable and _writable(value)
            text, counted = _text(value) if judges else ("", 0)
            if counted >= WORDS:
                parts = parts or _Parts.of(examples)
                _judge(column, text, isinstance(value, str), parts)


@dataclass(frozen=True)
class _Parts:
    """The texts that a row was made into, in lower case and with single spaces."""

    texts: tuple[str, ...]
    words: frozenset[str]

    @staticmethod
    def of(examples: Sequence[Example]) -> _Parts:
        used = {text for example in examples for text in (example.text or "", *example.alternatives)}
        used |= {text for one in examples for turn in one.messages for text in (turn.content, turn.context)}
        texts = sorted(filter(None, map(_plain, used)), key=len, reverse=True)
        return _Parts(tuple(texts), frozenset(word for text in texts for word in text.split()))


def _judge(column: SpottedColumn, text: str, single: bool, parts: _Parts) -> None:
    rest = text
    for part in parts.texts:
        if len(part) >= PART:
            rest = rest.replace(part, " ")
    again = len(text) - len(rest) > 0.3 * len(text)
    words = rest.split()
    unknown = sum(word not in parts.words for word in words)
    contained = any(text in part for part in parts.texts)
    contained |= len(parts.texts) > 1 and all(part in text for part in parts.texts)  # the whole row again
    if contained or (len(words) < WORDS and not _WIDE.search(rest)) or unknown <= (1 - KNOWN_SHARE) * len(words):
        column.known += 1
        return
    column.texts += 1
    column.long += not again and single and len(words) >= LONG
    if len(column.values) <= CATEGORIES:
        column.values.add(_number_of(rest if again else text))


def _text(value: Any) -> tuple[str, int]:
    """The text of a value, and its number of words. In a list of texts, numbers count as words too."""
    pieces = list(_pieces(value))
    text = _plain(" ".join(pieces))
    every = text.split()
    words = sum(len(pieces) > 1 or any(map(str.isalpha, word)) for word in every)
    if len(pieces) == 1 and ((len(every) < LONG and 2 * words <= len(every)) or _PATH.fullmatch(text)):
        return text, 0
    return text, max(words, len(_WIDE.findall(text[:100])) // 2)


def _number_of(text: str) -> int:
    """A number that stands for a text and, unlike Python's hash, is the same in every process."""
    return int.from_bytes(blake2b(text.encode(errors="backslashreplace"), digest_size=6).digest())


def _writable(value: Any) -> bool:
    every = value if isinstance(value, list) else [value]
    return all(isinstance(one, str | int | float) for one in every) or is_json(value)


def _pieces(value: Any, depth: int = 4) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict) and depth:
        for inside in islice(value.values() if isinstance(value, dict) else value, 50):
            yield from _pieces(inside, depth - 1)


def _plain(text: str) -> str:
    return " ".join(text[:MOST].casefold().split())


def _filled(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [], {})


class CountedSource(Protocol):
    """A source of rows that was read (rows/sources.py)."""

    source: Rows
    parts: list[Any]
    unused: dict[str, Unused]


def unused_columns(readings: Sequence[CountedSource]) -> tuple[UnusedColumn, ...]:
    """Facts about the unused columns of each source, over all its files."""
    facts: list[UnusedColumn] = []
    for reading in readings:
        files: dict[str, list[str]] = {}
        for file, unused in reading.unused.items():
            for name in unused.columns:
                files.setdefault(name, []).append(file)
        facts += [_fact(name, among, reading) for name, among in files.items()]
    return tuple(facts)


def _fact(name: str, files: Sequence[str], reading: CountedSource) -> UnusedColumn:
    every = [(reading.unused[file], reading.unused[file].columns[name]) for file in files]
    stopping = [(unused, column) for unused, column in every if column.stops(unused.judged)]
    unused, column = (stopping or every)[0]
    filled, rows = sum(column.filled for _, column in every), sum(unused.rows for unused, _ in every)
    of_text = any(part.format == "text" and part.name in files for part in reading.parts)
    is_answer = of_text and 2 * filled > rows and _is_answer(name)
    chosen = {"text", "label"} <= reading.source.columns.keys()
    return UnusedColumn(
        column=name.encode(errors="backslashreplace").decode(),
        file=files[0] if len(files) == 1 else reading.source.path,
        filled=filled, rows=rows, example=column.example, stops=not chosen and (bool(stopping) or is_answer),
        why=CHOSEN if chosen else IS_ANSWER if is_answer else column.why(unused.judged),
    )  # fmt: skip


def _is_answer(name: str) -> bool:
    return name.casefold() in BESIDE_TEXT or name.casefold().startswith("answer_")


def sentences(facts: Sequence[UnusedColumn]) -> list[str]:
    """One for each file with unused columns that stop nothing."""
    files: dict[str, list[UnusedColumn]] = {}
    for fact in facts:
        if not fact.stops:
            files.setdefault(fact.file, []).append(fact)
    return [_sentence(file, columns) for file, columns in files.items()]


def _sentence(file: str, columns: Sequence[UnusedColumn]) -> str:
    first, *others = columns
    if others:
        named, why = some((shown(one.column) for one in columns), 8), dict.fromkeys(one.why for one in columns)
        return f"{file}: the columns {named} are not used ({'; '.join(why)})"
    return (
        f"{file}: the column {shown(first.column)} is not used; {first.filled:,} of {first.rows:,} rows have a "
        f"value, such as {first.example} ({first.why})"
    )


def problems(readings: Sequence[CountedSource], facts: Sequence[UnusedColumn]) -> list[str]:
    """Why training stops: unused columns with text, and ignored columns that do not exist."""
    stopping = list(dict.fromkeys(fact.column for fact in facts if fact.stops))
    ways = _way_to_use(readings, stopping) if stopping else ""
    them = "it" if len(stopping) == 1 else "them"
    stops = [
        f"{fact.file}: the column {shown(fact.column)} has {'values' if fact.why == IS_ANSWER else 'text'} in most "
        f"rows, such as {fact.example}, but is not used; {ways}leave {them} out with {ignoring(stopping)} "
        "(data.ignore_columns)."
        for fact in facts
        if fact.stops
    ]
    return [*stops, *_ignored_in_vain(readings)]


def _way_to_use(readings: Sequence[CountedSource], stopping: Sequence[str]) -> str:
    """How to use the columns, as part of a sentence; empty if the row format has no prompt."""
    for reading in readings:
        parts = {part.name: part.format for part in reading.parts}
        files = [name for name, unused in reading.unused.items() if not unused.columns.keys().isdisjoint(stopping)]
        if not files or (reading.source.prompt is None and parts[files[0]] not in PROMPT_FORMATS):
            continue
        writable = [name for name in stopping if _is_writable(name, reading)]
        if not writable:
            return "write its values as text into the file and use that, or "
        if reading.source.prompt is not None:
            return f"add {' '.join(f'{{{name}}}' for name in writable)} to --prompt (data.prompt), or "
        others = [name for name in stopping if name not in writable]
        flags = _flags(reading, reading.unused[files[0]], writable) + (f" {ignoring(others)}" if others else "")
        return f"use {'it' if len(stopping) == 1 else 'them'} with {flags}, or "
    return ""


def _is_writable(name: str, reading: CountedSource) -> bool:
    among = [unused.columns[name] for unused in reading.unused.values() if name in unused.columns]
    return can_be_typed(name) and bool(among) and all(column.writable for column in among)


def _flags(reading: CountedSource, unused: Unused, writable: Sequence[str]) -> str:
    """The flags --prompt and --completion that use the columns, in the order of the file. Reasoning comes before the
    answer. Where the format has no answer, as `text`, it is the first column named like one, or else the last."""
    ours = {theirs: field for field, theirs in reading.source.columns.items()}
    fields = {name: ours.get(name, name) for name in unused.names if can_be_typed(name)}
    used = {name: known for name, known in fields.items() if name not in unused.columns and known in FIELDS}
    answer = next((name for name, known in used.items() if known in ANSWERS), None)
    answer = answer or next(filter(_is_answer, writable), writable[-1])
    reasons = [name for name in writable if name.casefold() in REASONS and name != answer]
    asks = {name for name, known in used.items() if known not in (*ANSWERS, "history")}.union(writable)
    return options_for([name for name in fields if name in asks - {*reasons, answer}], [*reasons, answer])


def _ignored_in_vain(readings: Sequence[CountedSource]) -> list[str]:
    names = dict.fromkeys(name for reading in readings for unused in reading.unused.values() for name in unused.names)
    ignored = dict.fromkeys(name for reading in readings for name in reading.source.ignore_columns)
    return [
        f'data.ignore_columns names "{name}", but no row has this column; the columns are {some(map(shown, names), 8)}.'
        f"{did_you_mean(name, names)}"
        for name in ignored
        if name not in names
    ]


@dataclass
class RawCounts:
    """What shows in the cells of rows alone, and is gone once they are read."""

    headers: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Rows with each kind of label."""
    first: dict[str, str] = field(default_factory=dict)
    hashes: bytearray = field(default_factory=bytearray)
    """A hash of each row, by which `rankwise verify` and `rankwise rebuild` name one that changed."""

    def add(self, row: Any, where: str, label: str) -> None:
        content = ""
        with suppress(TypeError, RecursionError):  # no row, or one that JSON cannot hold: all such are alike
            content = json.dumps(row, sort_keys=True, default=_content_of)
        self.hashes += blake2b(content.encode(), digest_size=ROW_HASH).digest()
        if not isinstance(row, dict):
            return
        name, value = next(iter(row.items()), ("", None))
        if isinstance(value, str) and name == value and all(value == name or not value for name, value in row.items()):
            self.headers += 1
            self.first.setdefault("headers", where)
        if label in row and (kind := _kind(row[label])):
            self.kinds[kind] += 1
            self.first.setdefault(kind, where)

    def add_image(self, content: bytes) -> None:
        """The image that the last row names is a part of it."""
        both = bytes(self.hashes[-ROW_HASH:]) + content
        self.hashes[-ROW_HASH:] = blake2b(both, digest_size=ROW_HASH).digest()

    def warnings(self, rows: int) -> Iterator[str]:
        if self.headers:
            yield (
                f"rows that repeat the names of the columns: {self.headers:,} of {rows:,}, such as "
                f"{self.first['headers']}. Files may have been joined together with their header lines. Delete these"
            )
        if len(self.kinds) > 1 and ("text" in self.kinds or "number with decimals" not in self.kinds):
            listed = some(f"{kind} ({count:,} rows, first {self.first[kind]})" for kind, count in self.kinds.items())
            yield f'labels are written in several ways, and 1, 1.0 and "1" are one label: {listed}'


def _content_of(value: Any) -> str:
    """Bytes and pixels by their hash; what else JSON does not know by its text."""
    return blake2b(bytes(value)).hexdigest() if isinstance(value, bytes | np.ndarray) else repr(value)


def _kind(label: Any) -> str | None:
    if isinstance(label, str):
        return "text"
    if isinstance(label, float):
        return "whole number as 1.0" if label.is_integer() else "number with decimals"
    return "whole number" if isinstance(label, int) and not isinstance(label, bool) else None
