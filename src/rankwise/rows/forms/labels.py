"""Labels of rows: the number of rows of each label, and spellings that probably mean the same label.

Rows in the classification format have labels. Other rows have labels too if their only answer is one of few distinct
texts. Labels that differ only in case, spaces, marks, Unicode form or a final .0 are different classes for the model,
which is usually a mistake in the data.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from sys import intern
from typing import Any
from unicodedata import normalize

from rankwise.config.base import shown
from rankwise.errors import DataError, some
from rankwise.rows.forms.turns import text_of
from rankwise.rows.text.example import Example
from rankwise.runs.row_facts import HoldOutFacts

MOST_DISTINCT = 50
ROWS_OF_EACH = 5
"""Smallest average number of rows per answer, for answers of other formats to count as labels."""
LONGEST = 200
MOST_LISTED = 100
_BETWEEN = re.compile(r"(?<=[^\W\d_])[-_]+(?=[^\W\d_])")
_FRACTION = re.compile(r"[+-]?\d*\.\d*[1-9]\d*")
RARE = 3
"""Times that a label is more frequent than one that can count as its misspelling."""
SHORTEST = 4
"""Smallest length of a label that can count as misspelled: "up" and "us" are two labels."""


@dataclass
class Labels:
    """Counts the labels of the rows of one source while they are read."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    """File and line of the first row with each label; `places` has those of the first three."""
    places: dict[str, list[str]] = field(default_factory=dict)
    named: bool = True
    """Whether every row was in the classification format."""
    none: bool = False
    """Whether a row had no label, or there were too many different answers."""
    of_rows: list[str] = field(default_factory=list)
    """The label of each row, unless there are none."""

    def add(self, row: Sequence[Example], *, classification: bool) -> str:
        """Count the row's label and return it; "" if it has none."""
        if self.none:
            return ""
        label, where = label_of(row), row[0].where
        self.named = self.named and classification
        if (
            label is None
            or ("." in label and _FRACTION.fullmatch(label) is not None)  # such as 3.8, of a scale
            or (not self.named and (len(label) > LONGEST or len(self.counts) > MOST_DISTINCT))
        ):
            return self._give_up()
        self.counts[label] += 1
        self.first.setdefault(label, where)
        if self.counts[label] <= 3:
            self.places.setdefault(label, []).append(where)
        self.of_rows.append(intern(label))
        return label

    def _give_up(self) -> str:
        self.none = True
        self.of_rows.clear()
        return ""

    @classmethod
    def joined(cls, parts: Iterable[Labels]) -> Labels:
        """The labels of several sources together."""
        merged = cls()
        for part in parts:
            if part:
                merged.counts += part.counts
                merged.first, merged.places = part.first | merged.first, part.places | merged.places
        return merged

    def __bool__(self) -> bool:
        """Whether the answers count as labels."""
        distinct = len(self.counts)
        few = 1 < distinct <= MOST_DISTINCT and self.counts.total() >= ROWS_OF_EACH * distinct
        return not self.none and distinct > 0 and (self.named or few)

    def remarks(self) -> list[str]:
        """Pairs of spellings that look like one label."""
        return [*self._same_but_for_spelling(), *self._rare_misspellings()] if self else []

    def without_rows(self, classes: Sequence[str]) -> list[str]:
        """A warning about classes that no usable row has: named in data.labels only, or of rows that are left out."""
        empty = [shown(name) for name in classes if self and not self.counts[name]]
        return [f"no row that can be used has one of these classes: {some(empty, 8)}"] if empty else []

    def never_trained(self, facts: HoldOutFacts | None) -> list[str]:
        """A warning about labels whose rows are all held out."""
        held_out = facts.labels or {} if facts is not None else {}
        lost = [shown(label) for label, count in held_out.items() if count == self.counts[label]]
        return (
            [f"all rows with these labels are validation rows, so training never sees them: {some(lost, 8)}"]
            if lost
            else []
        )

    def _same_but_for_spelling(self) -> Iterator[str]:
        folded: dict[str, list[str]] = {}
        for label, _ in self.counts.most_common():
            folded.setdefault(_folded(label), []).append(label)
        for spellings in folded.values():
            for other in spellings[1:]:
                alike = normalize("NFKC", other) == normalize("NFKC", spellings[0])
                pair = " and ".join(self._counted(label, ascii if alike else shown) for label in (other, spellings[0]))
                yield f"these labels differ only in case, spaces, marks, Unicode form or a final .0: {pair}"

    def _rare_misspellings(self) -> Iterator[str]:
        frequent = [label for label, count in self.counts.most_common(MOST_LISTED) if count >= ROWS_OF_EACH]
        for rare, count in self.counts.items():
            near = next((label for label in frequent if RARE * count <= self.counts[label]
                         and _one_letter_apart(_folded(rare), _folded(label))), None)  # fmt: skip
            if near is not None:
                yield (
                    f"a rare label differs by one letter from a frequent label: {self._counted(rare)} and "
                    f"{self._counted(near)}. If they are one, write it in one way"
                )

    def _counted(self, label: str, form: Callable[[str], str] = shown) -> str:
        count = self.counts[label]
        rows = f"{count:,} row{'s' if count > 1 else ''}"
        return f"{form(label)} ({rows}, first {', '.join(self.places[label])})"


def label_text(value: Any, labels: tuple[str, ...], where: str) -> str:
    """The label of a row in the classification format, by its name in `labels` where these are given."""
    if isinstance(value, float) and isfinite(value):  # written as in the file; tables make floats of whole numbers
        value = int(value) if value.is_integer() else repr(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: the label is {shown(value)}; a name or a finite number is expected.")
    if not labels:
        return text_of(value if isinstance(value, str) else shown(value), where, "label")
    short = isinstance(value, str) and len(value) < 10 and value.isdecimal()
    number = int(value) if isinstance(value, int) or short else None
    if number is not None and 0 <= number < len(labels):
        return labels[number]
    if value in labels:
        return str(value)
    raise DataError(f"{where}: the label {shown(value)} is not one of the {len(labels)} names in data.labels.")


def label_set(values: Sequence[Any], labels: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The names of a row whose label is a list, each once."""
    names = tuple(label_text(value, labels, where).strip() for value in values)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{where}: the label names {shown(twice[0])} twice.")
    return names


def list_problems(rows: Sequence[Sequence[Example]]) -> list[tuple[str, str]]:
    """Where rows have a list of labels, which is no answer that a language model could learn, and what to do."""
    return [
        (row[0].where, f"{row[0].where}: the label is {shown(list(row[0].labels))}, a list. Add --objective "
         "sequence-classification.") for row in rows if row[0].labels is not None
    ]  # fmt: skip


def label_of(row: Sequence[Example]) -> str | None:
    """The answer of a row that has exactly one."""
    if len(row) != 1 or row[0].text is not None or row[0].rejected:
        return None
    if row[0].tagged is not None or row[0].labels is not None:
        return None
    answers = [message for message in row[0].messages if message.role == "assistant"]
    return answers[0].content if len(answers) == 1 and not answers[0].tool_calls else None


def _folded(label: str) -> str:
    folded = normalize("NFKC", normalize("NFKC", label).casefold())
    return " ".join(_BETWEEN.sub(" ", folded).split()).removesuffix(".0").rstrip(".!")


def _one_letter_apart(first: str, other: str) -> bool:
    """Whether two labels differ by one missing, added or changed letter, or by two that are exchanged. A different
    digit is not a misspelling."""
    short, long = sorted((first, other), key=len)
    if first == other or len(short) < SHORTEST or len(long) - len(short) > 1:
        return False
    same = next((index for index, letter in enumerate(short) if letter != long[index]), len(short))
    differing = {*short[same : same + 1], *long[same : same + 1]}
    if any(letter.isdigit() for letter in differing):
        return False
    swapped = short[same + 1 : same + 2] + short[same : same + 1] + short[same + 2 :]
    return short[same + (len(short) == len(long)) :] == long[same + 1 :] or swapped == long[same:]
