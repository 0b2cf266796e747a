"""What an encoder reads of a row, and what is to be predicted for it: the number of its class, its number, the class of
each word, or the text that a decoder is to write.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rankwise.config.base import shown
from rankwise.errors import DataError, some
from rankwise.rows.text.example import Example, Message, TaggedWords
from rankwise.runs.row_facts import TargetFacts


def input_of(messages: Sequence[Message]) -> str:
    """The text of a conversation that is a single question."""
    if len(messages) != 1 or messages[0].role != "user":
        roles = ", ".join(message.role for message in messages)
        raise DataError(
            f"an encoder reads one text, and this is a conversation of {roles}. Write what it needs into a single "
            "prompt."
        )
    return messages[0].whole


def input_and_output(example: Example) -> tuple[str, str]:
    """DataError where a row is not one input with one output."""
    where = example.where
    if example.text is not None:
        raise DataError(f"{where}: is a plain text, and an input with its output is expected.")
    roles = [message.role for message in example.messages]
    if roles != ["user", "assistant"] or example.tools or example.messages[1].tool_calls:
        raise DataError(
            f"{where}: is a conversation ({', '.join(roles)}), and one input with one output is expected, without a "
            "system message or tools."
        )
    given, output = example.messages[0].whole, example.messages[1].content
    for name, text in (("input", given), ("output", output)):
        if not text.strip():
            raise DataError(f"{where}: the {name} is empty.")
    return given, output


_WHOLE = re.compile(r"-?[0-9]{1,18}\.0+")


def texts_of(example: Example) -> tuple[str, str]:
    """The text of a row and the second text beside it, which is often empty; DataError where there are others."""
    turns = example.messages
    if len(turns) not in (1, 2) or turns[0].role != "user" or example.tools:
        raise DataError(
            f"{example.where}: is {'plain text' if example.text is not None else 'a conversation'} without a label; a "
            "classifier needs the columns text and label, or those that its training names in data.columns.text and "
            "data.columns.label."
        )
    return turns[0].content, turns[0].context


def label_of(example: Example) -> str:
    if example.labels is not None:
        raise DataError(
            f"{example.where}: the label is {shown(list(example.labels))}, a list, where one name is expected. "
            "Write a list in every row, or set classification.targets to several."
        )
    if example.tagged is not None:
        raise DataError(
            f"{example.where}: has a tag for each word, and no label. Add --objective token-classification."
        )
    if len(example.messages) != 2:
        texts_of(example)
        raise DataError(f"{example.where}: has no label.")
    return example.messages[1].content.strip()


def tagged_in(example: Example) -> TaggedWords:
    if example.tagged is None:
        raise DataError(
            f"{example.where}: has no tags; token classification needs the columns tokens and tags, or text and spans, "
            "or those that are named in data.columns."
        )
    return example.tagged


def labels_of(example: Example) -> tuple[str, ...]:
    """All labels of a row; a single one where its label is no list."""
    return (label_of(example),) if example.labels is None else example.labels


def number_of(label: str) -> float | None:
    """None where a label is no finite number."""
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def without_zeros(label: str) -> str:
    """A whole number written with decimals as a whole number (1.0 becomes 1); any other label as it is."""
    return label.partition(".")[0] if _WHOLE.fullmatch(label) else label


@dataclass(frozen=True)
class RowTargets:
    """The targets of rows by their labels."""

    facts: TargetFacts

    def of_words(self, example: Example) -> list[int]:
        """The class of each word; DataError where the row has no tags, or one that is no class."""
        tags = tagged_in(example).tags
        if unknown := dict.fromkeys(tag for tag in tags if tag not in self._numbers):
            raise self._unseen(example, f"the tag {some(map(shown, unknown), 8)}", "tags")
        return [self._numbers[tag] for tag in tags]

    def _unseen(self, example: Example, what: str, classes: str = "classes") -> DataError:
        known = some(map(shown, self.facts.classes), 12)
        return DataError(
            f"{example.where}: {what} is in no training row; the {classes} are {known}. Correct it, or add training "
            "rows that have it."
        )

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        """The output of each class, by its name and, where no other class has it, by the name that other formats write:
        a table's column with a missing value has 1.0 where JSON has 1."""
        names = {name: at for at, name in enumerate(self.facts.classes)}
        return {without_zeros(name): at for name, at in names.items()} | names

    def target_of(self, example: Example) -> float | Sequence[float]:
        """The class or the number; of a row with several labels, 1 for each class that it has."""
        if self.facts.form != "several":
            return self.of(example)
        names = labels_of(example)
        if unknown := [name for name in names if name not in self.facts.classes]:
            raise self._unseen(example, f"the label {some(map(shown, unknown), 8)}")
        return [float(name in names) for name in self.facts.classes]

    def of(self, example: Example) -> float:
        """DataError where the row has no label, or one that is no class and no number."""
        label = label_of(example)
        if self.facts.classes and label not in self._numbers:
            label = without_zeros(label)
        if not self.facts.classes:
            value = number_of(label)
            if value is None:
                raise DataError(f"{example.where}: the label is {shown(label)}; a finite number is expected.")
            return value
        if label not in self._numbers:
            raise self._unseen(example, f"the label {shown(label)}")
        return float(self._numbers[label])
