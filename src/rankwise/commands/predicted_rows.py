"""The rows of a file that are answered, classified or tagged, and what a classifier says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rankwise.errors import DataError
from rankwise.inference.classify import Prediction, TaggedText
from rankwise.inference.decoding import Answer
from rankwise.inference.tuned_model import TunedModel
from rankwise.runs.records import Callback, ProgressUpdate
from rankwise.text.example import Example
from rankwise.text.targets import texts_of
from rankwise.text.tokenize import Tokens

PROBLEM = "error"
AT_ONCE = 512
"""Rows of a classifier that are encoded at once; images of more would fill the memory."""


@dataclass
class Row:
    """One of the file: what it holds, what it asks, and what became of it."""

    where: str
    columns: dict[str, Any]
    question: Example | None = None
    ids: list[int] = field(default_factory=list)
    answer: Answer | None = None
    texts: tuple[str, str] = ("", "")
    """What a classifier reads: a text, and a second one or nothing."""
    prediction: Prediction | TaggedText | None = None
    """Of a classifier, in place of an answer."""
    problem: str | None = None

    def written(self, column: str) -> dict[str, Any]:
        """Its columns with the answer, or with what is wrong."""
        if self.prediction is not None:
            return self.columns | self.prediction.as_columns(column)
        if self.answer is not None:
            return self.columns | {column: self.answer.text}
        return self.columns | {column: None, PROBLEM: self.problem}


def classify(rows: Sequence[Row], tuned: TunedModel, callback: Callback) -> None:
    """Give each row that can be read its prediction, or its problem."""
    questions = [row for row in rows if row.question is not None and row.problem is None]
    of_part, activity = (_tag, "Tagging") if tuned.tags_words else (_classify, "Classifying")
    for begin in range(0, len(questions), AT_ONCE):
        report = partial(_report_progress, callback, activity, begin, len(questions))
        of_part(questions[begin : begin + AT_ONCE], tuned, report)


def _report_progress(callback: Callback, activity: str, before: int, rows: int, done: int) -> None:
    callback(ProgressUpdate(activity, before + done, rows, "rows"))


def _classify(rows: Sequence[Row], tuned: TunedModel, report: Callable[[int], None]) -> None:
    encoded = _encoded_images(rows, tuned) if tuned.reads_images else _encoded_texts(rows, tuned)
    fitting = [(row, tokens) for row, tokens in encoded if row.problem is None]
    classified = tuned.classify([tokens for _, tokens in fitting], report)
    for (row, _), prediction in zip(fitting, classified, strict=True):
        row.prediction = prediction


def _tag(rows: Sequence[Row], tuned: TunedModel, report: Callable[[int], None]) -> None:
    tagged, problems = tuned.tag([row.question for row in rows if row.question is not None], report)
    for at, row in enumerate(rows):
        row.prediction = tagged.get(at)
        row.problem = problems.get(at)


def _encoded_texts(rows: Sequence[Row], tuned: TunedModel) -> list[tuple[Row, Tokens]]:
    for row in rows:
        assert row.question is not None, "only these are encoded"
        try:
            row.texts = texts_of(row.question)
        except DataError as error:
            row.problem = str(error)
    usable = [row for row in rows if row.problem is None]
    encoded, problems = tuned.rows_of([row.texts for row in usable])
    for at, why in problems.items():
        usable[at].problem = f"{usable[at].where}: {why}"
    return list(zip(usable, encoded, strict=True))


def _encoded_images(rows: Sequence[Row], tuned: TunedModel) -> list[tuple[Row, Tokens]]:
    encoded, problems = tuned.image_rows_of([row.question for row in rows if row.question is not None])
    for at, why in problems.items():
        rows[at].problem = why
    return list(zip(rows, encoded, strict=True))
