"""What a classifier says of texts: the probability of each class, or a number.

What a token classifier says of texts: the probability of each tag for each word, and the spans of its likeliest
tags.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rankwise.rows.text.encode_tags import text_of
from rankwise.rows.text.outcome import Outcome
from rankwise.rows.text.tagged import BEGIN, INSIDE, OUTSIDE, label_in, spans_of
from rankwise.rows.text.targets import tagged_in
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.row_facts import TargetFacts

Numbers = NDArray[np.float64]
Done = Callable[[int], None]
Outputs = Callable[[nn.Module, Sequence[Tokens], Done | None], Any]
"""What a classifier says of rows in their order, where several processes compute it."""
THRESHOLD = 0.5
"""Where a row may have several classes, the probability above which a class is predicted."""


def probability_column(name: str) -> str:
    """The column of a class's probability."""
    return f"probability_{name}"


@dataclass(frozen=True)
class Longest:
    """How many tokens a row to predict may have. As the rows of its run were, a longer text is cut or is a problem."""

    tokens: int
    cuts: bool

    @property
    def cut(self) -> int | None:
        """The length that longer texts are cut to; None where they are problems."""
        return self.tokens if self.cuts else None

    def add(self, outcome: Outcome, row: Tokens) -> None:
        """The encoded row, or that it is too long."""
        outcome.sequences = [row]
        if len(row.ids) > self.tokens:
            outcome.problem = (
                f"{outcome.example.where}: has {len(row.ids):,} tokens, and the run's longest row may have "
                f"{self.tokens:,} (data.max_length, and the model's context). Shorten the text."
            )


@dataclass(frozen=True)
class ClassShares:
    """`label` is the likeliest class; without classes, `value` is the predicted number."""

    label: str | None
    value: float | None
    probabilities: dict[str, float]
    """Of every class, which sum to 1 unless a row may have several."""
    labels: list[str] | None = None
    """Where a row may have several classes: those with a probability above THRESHOLD."""

    @classmethod
    def of(cls, targets: TargetFacts, outputs: Numbers) -> ClassShares:
        if not targets.classes:
            return cls(None, float(outputs[0]), {})
        shares = dict(zip(targets.classes, outputs.tolist(), strict=True))
        if targets.form == "several":
            return cls(None, None, shares, [name for name, share in shares.items() if share > THRESHOLD])
        return cls(targets.classes[int(outputs.argmax())], None, shares)

    @property
    def _chosen(self) -> str | list[str] | None:
        return self.label if self.labels is None else self.labels

    def as_columns(self, column: str) -> dict[str, Any]:
        """For a file of rows: the prediction in this column, and the probability of each class beside it."""
        shares = {probability_column(name): round(share, 6) for name, share in self.probabilities.items()}
        return {column: self.value if self._chosen is None else self._chosen, **shares}

    def as_values(self) -> dict[str, Any]:
        """For a Python program."""
        if self._chosen is None:
            return {"value": self.value}
        return {"label" if self.labels is None else "labels": self._chosen, "probabilities": self.probabilities}

    def as_shown(self) -> dict[str, Any]:
        """For a page."""
        shares = sorted(self.probabilities.items(), key=lambda one: -one[1])
        return {"labels": shares, "value": self.value, "chosen": self._chosen}


@dataclass(frozen=True)
class TaggedText:
    whole: str
    spans: list[dict[str, Any]]
    """With start, end, label, text and probability, which is the mean over the span's words of the probability of the
    predicted tag."""
    tags: list[str]
    """One for each word."""
    given: bool
    """Whether the words were given one by one."""

    def as_columns(self, column: str) -> dict[str, Any]:
        """The tags are beside the spans of words that were given."""
        return {column: self.spans, tags_column(column): self.tags} if self.given else {column: self.spans}

    def as_values(self) -> dict[str, Any]:
        return {"spans": self.spans, "tags": self.tags}

    def as_shown(self) -> dict[str, Any]:
        return {"spans": self.spans, "whole": self.whole}


Prediction = ClassShares | TaggedText
"""What a classifier says of one row."""


def tags_column(column: str) -> str:
    """The column of tags beside a column of spans."""
    return f"{column}_tags"


def tagged_text(targets: TargetFacts, outcome: Outcome, shares: Numbers) -> TaggedText:
    """`shares` (W, C) are the probabilities of the learned words. A word that is not learned has the tag of the word
    before it, whose first token it shares; and a word that was cut has none."""
    whole, words = text_of(outcome.example)
    tags, sure = [""] * len(words), np.full(len(words), np.nan)
    for number, row in zip(outcome.learned_words, shares, strict=True):
        tags[number], sure[number] = targets.classes[int(row.argmax())], row.max()
    for number in range(len(words)):
        cut = number >= len(words) - outcome.cut_words
        tags[number] = tags[number] or (OUTSIDE if cut or not number else _continued(tags[number - 1]))
    spans = [
        {
            "start": words[span.first][0], "end": words[span.stop - 1][1], "label": span.label,
            "text": whole[words[span.first][0] : words[span.stop - 1][1]],
            "probability": round(float(np.nanmean(sure[span.first : span.stop])), 6),
        }
        for span in spans_of(tags)
    ]  # fmt: skip
    return TaggedText(whole, spans, tags, tagged_in(outcome.example).given)


def _continued(tag: str) -> str:
    label = label_in(tag)
    return f"{INSIDE}{label}" if tag.startswith((BEGIN, INSIDE)) else tag
