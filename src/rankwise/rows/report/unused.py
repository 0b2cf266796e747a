"""Unused columns, which are in neither the prompt nor the answer: counted for each file, and judged by content.

A column stops the training if most rows have text in it that differs between rows and is not in the prompt or answer,
such as a passage that the question is about. Text means three words or more. The texts of the row are removed from the
value before the comparison, so a column that repeats the rendered row does not count. Numbers, dates, paths, single
words, constants, categories and text that is already used are only reported. Memory is limited: at most a hundred
hashes of values are stored per column, and in a long file only every sixteenth row is judged, although all are counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Any

from rankwise.config.base import shown
from rankwise.rows.forms.turns import is_json
from rankwise.rows.report.text_checks import holds_secret
from rankwise.rows.text.example import Example

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
