"""Encode a text, or a pair of texts, with the row's class or number as its only target.

A text becomes what the tokenizer makes of it, with the special tokens that its model expects: [CLS] text [SEP] pair
[SEP] of BERT, and two sentences joined by a blank line where a tokenizer has no separator. Control tokens that somebody
typed stay plain text. A row that is too long is left out, or with `truncate` the longer of its texts is cut.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rankwise.config.base import shown
from rankwise.config.data import DataConfig
from rankwise.errors import DataError, some
from rankwise.runs.data_report import TargetFacts
from rankwise.text.encode import Outcome
from rankwise.text.example import BREAK, Example
from rankwise.text.tokenize import Tokens
from rankwise.text.tokenizer import HubTokenizer

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
    if len(example.messages) != 2:
        texts_of(example)
        raise DataError(f"{example.where}: has no label.")
    return example.messages[1].content.strip()


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
class TextEncoder:
    tokenizer: HubTokenizer
    spec: DataConfig
    limit: int
    targets: TargetFacts

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        """The output of each class, by its name and, where no other class has it, by the name that other formats write:
        a table's column with a missing value has 1.0 where JSON has 1."""
        names = {name: at for at, name in enumerate(self.targets.classes)}
        return {without_zeros(name): at for name, at in names.items()} | names

    def encode(self, examples: Sequence[Example]) -> list[Outcome]:
        outcomes = [Outcome(example) for example in examples]
        usable: list[tuple[Outcome, tuple[str, str], float]] = []
        for outcome in outcomes:
            try:
                usable.append((outcome, texts_of(outcome.example), self._target(outcome.example)))
            except DataError as error:
                outcome.problem = str(error)
        encoded = encode_texts(self.tokenizer, [texts for _, texts, _ in usable])
        for (outcome, texts, target), tokens in zip(usable, encoded, strict=True):
            self._add(outcome, texts, tokens, target)
        return outcomes

    def _add(self, outcome: Outcome, texts: tuple[str, str], tokens: Tokens, target: float) -> None:
        outcome.lengths = [len(tokens.ids)]
        if len(tokens.ids) > self.limit:
            if self.spec.too_long != "truncate":
                outcome.too_long = 1
                return
            (tokens,) = encode_texts(self.tokenizer, [texts], self.limit)
            outcome.truncated = 1
        outcome.sequences = [Tokens(tokens.ids, tokens.loss_mask, token_type_ids=tokens.token_type_ids, target=target)]

    def _target(self, example: Example) -> float:
        label = label_of(example)
        if self.targets.classes and label not in self._numbers:
            label = without_zeros(label)
        if not self.targets.classes:
            value = number_of(label)
            if value is None:
                raise DataError(f"{example.where}: the label is {shown(label)}; a finite number is expected.")
            return value
        if label not in self._numbers:
            known = some(map(shown, self.targets.classes), 8)
            raise DataError(
                f"{example.where}: the label {shown(label)} is in no training row; the classes are {known}. Correct "
                "it, or add training rows of this class."
            )
        return float(self._numbers[label])


def encode_texts(tokenizer: HubTokenizer, texts: Sequence[tuple[str, str]], limit: int | None = None) -> list[Tokens]:
    """Texts without targets. With a `limit`, longer ones are cut to it."""
    encodings = tokenizer.encode_texts([(_without_breaks(text), _without_breaks(pair)) for text, pair in texts], limit)
    return [Tokens(ids, (False,) * len(ids), token_type_ids=types) for ids, types in encodings]


def _without_breaks(text: str) -> str:
    return text.replace(BREAK, "")
