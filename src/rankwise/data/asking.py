"""What a row asks, whether or not it brings an answer: for rows that are to be answered, not learned.

A row is read as training reads it. Where its answer is missing or empty, one stands in for it while it is read, and the
last answer, a stand-in or not, is left out of what is asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rankwise.config.column_text import column_text
from rankwise.config.data import Rows
from rankwise.data.columns import Row, renamed
from rankwise.data.formats import ANSWERED, SIGNS
from rankwise.data.hub import Part
from rankwise.data.sources import Reading
from rankwise.errors import DataError
from rankwise.text.example import Example

STAND_IN = "?"
ANSWERS: Mapping[str, tuple[str, ...]] = {
    "prompt": ANSWERED, "alpaca": ("output",), "dolly": ("response",), "classification": ("label",),
}  # fmt: skip
"""The fields that may hold an answer, by the form of the row; the first is the one that is filled."""
TURNS = {"messages": "messages", "sharegpt": "conversations"}


def question_of(reading: Reading, part: Part, where: str, row: Any, form: str | None) -> Example:
    """Its last message is the question. `form` is the one that the run's rows had, where that is known: a row that has
    it with an answer is taken for one of it. Others are known by their own keys."""
    if isinstance(row, DataError):
        raise row
    part.format = None  # of each row anew: one may have an answer and the next none
    examples = reading.examples(part, where, with_answer(row, reading.source, form, where))
    if len(examples) != 1:
        raise DataError(f"{where}: has {len(examples)} questions; a row must have exactly one.")
    [example] = examples
    if example.text is not None:
        raise DataError(
            f"{where}: is plain text without a question. Give the question with --prompt; --prompt '{{text}}' asks the "
            "text itself."
        )
    return Example(example.messages[:-1], where, example.tools)


def with_answer(row: Row, source: Rows, form: str | None, where: str) -> Row:
    if source.completion is not None:
        return row | {name: STAND_IN for name in column_text(source.completion).columns if _is_empty(row.get(name))}
    given = source.format if source.format != "auto" else form
    forms = [given] if given in SIGNS else []
    for one in [*forms, *(other for other in (*ANSWERS, *TURNS) if other != "classification")]:
        filled = _filled(row, source, one)
        try:
            fits = SIGNS[one](renamed(filled, source.columns, where))
        except DataError:  # a column that is no answer's is missing: told when the row is read
            fits = False
        if fits:
            return filled
    return row


def _filled(row: Row, source: Rows, form: str) -> Row:
    if form in TURNS:
        column = source.columns.get(TURNS[form], TURNS[form])
        return row | {column: _closed(row[column])} if column in row else row
    fields = ANSWERS.get(form, ())
    names = [source.columns[field] for field in fields if field in source.columns] or list(fields)
    if not names or not all(_is_empty(row.get(name)) for name in names):
        return row
    stand_in = source.labels[0] if form == "classification" and source.labels else STAND_IN
    return row | {next((name for name in names if name in row), names[0]): stand_in}


def _is_empty(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _closed(turns: Any) -> Any:
    """A conversation with an answer at its end. What is no conversation is told when it is read."""
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # as tables hold them
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            return turns
    last = turns[-1] if isinstance(turns, list) and turns else None
    if not isinstance(last, dict) or last.get("role", last.get("from")) in ("assistant", "gpt", "chatgpt", "model"):
        return turns
    return [*turns, {"role": "assistant", "content": STAND_IN}]
