"""Documents of a task, before tokenization: for each row a prompt, the target answer and any choices.

A prompt is made from a row's columns by replacing {names} and nothing else, so braces inside the row are plain text.

A label is resolved to one of the row's choices by text, number or letter. A label such as 1 can be a text or a number,
and the two readings may point to different choices. So all rows of a task are read in the same way. If all rows share
their choices, labels are texts as soon as one label is the text of a choice; if rows have their own choices, the
reading that fits more rows applies.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.config.base import shown
from rankwise.config.data import DataConfig, Reading
from rankwise.config.tasks import CHOSEN, TaskConfig
from rankwise.errors import DataError, did_you_mean, some
from rankwise.rows.files.columnar import Record
from rankwise.rows.files.files import records
from rankwise.rows.forms.columns import database_of
from rankwise.rows.forms.turns import text_of
from rankwise.rows.sources import open_source, raw_records
from rankwise.rows.text.example import Database
from rankwise.system.files import sha256_of
from rankwise.system.foreign_json import loads

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPELLED = {True: ("true", "yes"), False: ("false", "no")}


class ChoiceIndex(int):
    """An index into the choices that is already resolved."""


@dataclass(frozen=True)
class TaskLabel:
    value: Any
    choices: tuple[str, ...]
    where: str

    @property
    def text(self) -> int | None:
        """Index of the choice with this text; JSON's true matches "true", "True" and "yes"."""
        if isinstance(self.value, bool):
            spelled = SPELLED[self.value]
            return next((at for at, choice in enumerate(self.choices) if choice.lower() in spelled), None)
        text = str(self.value)
        return self.choices.index(text) if text in self.choices else None

    @property
    def index(self) -> int | None:
        """Index of the choice with this number, counted from 0, or this letter."""
        value = int(self.value) if isinstance(self.value, bool) else self.value
        if isinstance(value, str):
            digits = value.isascii() and value.isdigit() and len(value) < 9
            value = int(value) if digits else LETTERS.find(value) if len(value) == 1 else -1
        return value if isinstance(value, int) and 0 <= value < len(self.choices) else None

    def right(self, *, by_text: bool) -> int:
        found = self.text if by_text and not isinstance(self.value, ChoiceIndex) else self.index
        if found is None:
            texts = ", which other rows are labelled by" if by_text and self.index is not None else ""
            raise DataError(
                f"{self.where}: {shown(self.value)} is none of the {len(self.choices)} choices, by number, letter or "
                f"text{texts}."
            )
        return found


def are_texts(labels: Sequence[TaskLabel]) -> bool:
    """Decide whether the labels of a task are texts of choices. For rows with their own choices, take the reading that
    fits more rows, so that the exceptions are refused."""
    read = [label for label in labels if not isinstance(label.value, ChoiceIndex)]
    texts = sum(label.text is not None for label in read)
    if len({label.choices for label in read}) == 1:
        return texts > 0
    return texts >= sum(label.index is not None for label in read)


COLUMN = re.compile(r"\{([^{}]+)\}")


def filled_in(pattern: str, row: dict[str, Any], where: str) -> str:
    def filled(match: re.Match[str]) -> str:
        if match[1] not in row:
            raise DataError(
                f'{where}: has no column "{match[1]}".{did_you_mean(match[1], list(row))} Its columns are '
                f"{some(map(shown, row), 8)}."
            )
        value = row[match[1]]
        if value is None or isinstance(value, dict | list):
            raise DataError(f'{where}: "{match[1]}" is {shown(value)}, but must be a text or a number.')
        return str(value)

    return COLUMN.sub(filled, pattern)


def choices_of(task: TaskConfig, row: dict[str, Any], where: str) -> tuple[str, ...]:
    if isinstance(task.choices, tuple):
        return task.choices
    column = column_of_choices(task)
    if column is None:
        return _parted(task.choices or "", filled_in(task.choices or "", row, where), where)
    if column not in row:
        if task.choices is None:
            return ()
        raise DataError(
            f'{where}: has no column "{column}" of choices.{did_you_mean(column, list(row))} Its columns are '
            f"{some(map(shown, row), 8)}."
        )
    value = row[column]["text"] if isinstance(row[column], dict) and "text" in row[column] else row[column]
    if isinstance(value, str):
        value = _listed(value) or (_parted(task.choices, value, where) if _in_braces(task.choices) else value)
    if not isinstance(value, list | tuple) or len(value) < 2 or not all(isinstance(one, str) for one in value):
        raise DataError(
            f'{where}: "{column}" is {shown(value)}, but must be a list of two or more texts. In a CSV cell, write '
            f'JSON, ["first", "second"]; or write first; second and set choices: "{{{column}}}" in the task.'
        )
    return tuple(value)


def _in_braces(choices: object) -> bool:
    return isinstance(choices, str) and bool(COLUMN.search(choices))


def column_of_choices(task: TaskConfig) -> str | None:
    """Return the column that holds the choices, named with or without braces; None for a text made of several
    columns."""
    if not _in_braces(task.choices):
        return str(task.choices or "choices")
    alone = COLUMN.fullmatch(str(task.choices))
    return alone[1] if alone else None


def _parted(pattern: object, text: str, where: str) -> tuple[str, ...]:
    """Split choices at semicolons and drop duplicates."""
    parts = (part.strip() for part in text.split(";"))
    several = tuple(dict.fromkeys(part for part in parts if part))
    if len(several) < 2:
        raise DataError(
            f'{where}: "{pattern}" gives {some(map(shown, several)) or "none"}; two or more choices '
            "separated by semicolons are needed."
        )
    return several


def _listed(text: str) -> list[Any] | None:
    """Parse a cell that holds a JSON list; None if it does not."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


RIGHT = ("gold", "answer", "answerKey", "label")


@dataclass(frozen=True)
class TaskDocument:
    """One row of a task. `prompts` has one text, or one per choice if the text before the choices differs. `right` is
    an index into `choices`, or -1 without choices. `alternatives` are references beside `target`. If the choices are
    the answers that occur in the file, `labels` lists these with their counts."""

    where: str
    prompts: tuple[str, ...]
    target: str
    choices: tuple[str, ...] = ()
    right: int = -1
    alternatives: tuple[str, ...] = ()
    labels: tuple[tuple[str, int], ...] = ()
    database: Database | None = None


def data_spec(task: TaskConfig) -> DataConfig:
    """Return the settings for reading the task's rows; a task with `ask` reads them itself."""
    how = {name: getattr(task, name) for name in Reading.model_fields}
    return DataConfig(path=task.data, system=task.system, seed=task.seed, **how)


def task_documents(task: TaskConfig) -> list[TaskDocument]:
    """Make the documents of a task with `ask`. Problems with any rows are reported together."""
    documents, problems = [], []
    rows = list(_rows(task))
    by_text = are_texts(_labels(task, rows))
    for where, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            documents.append(_checked_document(_question(task, where, row, by_text=by_text)))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems[:5]) + (f"\nand {len(problems) - 5:,} more" if len(problems) > 5 else ""))
    if not documents:
        raise DataError(f"{task.data}: holds no rows.")
    every = _with_all_answers(task, documents)
    return [every[at] for at in drawn(len(every), task)]


def identities(task: TaskConfig) -> dict[str, str]:
    """Return the files that the task's rows come from, by SHA-256."""
    if task.header or task.running_text:
        return {sha256_of(Path(task.data)): task.data}
    spec = data_spec(task)
    return {part.identity(): part.name for part in open_source(spec, spec.all_sources[0]).parts}


def _rows(task: TaskConfig) -> Iterator[Record]:
    if task.header:
        yield from records(Path(task.data), header=list(task.header), source=task)
        return
    spec = data_spec(task)
    for part in open_source(spec, spec.all_sources[0]).parts:
        yield from raw_records(part)


def drawn(count: int, task: TaskConfig) -> list[int]:
    """Choose which of so many rows are used, in order, by the same draw as for training data."""
    if task.rows is None or task.rows >= count:
        return list(range(count))
    chosen = np.random.default_rng([task.seed, 1]).choice(count, task.rows, replace=False)
    return sorted(chosen.tolist())


def _labels(task: TaskConfig, rows: Sequence[Record]) -> list[TaskLabel]:
    """Read the labels of all valid rows that have choices."""
    documents = []
    for where, row in rows if task.chosen else ():
        if not isinstance(row, DataError):
            with suppress(DataError):  # reported with the others
                documents.append(_label(task, where, row))
    return [label for label in documents if label.choices]


def _label(task: TaskConfig, where: str, row: dict[str, Any]) -> TaskLabel:
    assert task.ask is not None
    prompts = _prompts(task.ask, row, where)
    several = len(prompts) > 1
    choices = tuple(prompts) if several else choices_of(task, row, where)
    _refuse_unfit(task, choices, where)
    return TaskLabel(_right_value(task, row, where, shared=several), choices, where)


def _question(task: TaskConfig, where: str, row: dict[str, Any], *, by_text: bool) -> TaskDocument:
    assert task.ask is not None
    prompts = _prompts(task.ask, row, where)
    if not task.chosen:
        if task.answer is None:
            raise DataError(f'{where}: the task "{task.task}" has ask but no answer; set answer to the expected text.')
        target, *others = _references(task, row, where)
        folder = Path(task.data)
        database = database_of(row, folder if folder.is_dir() else folder.parent)
        return TaskDocument(where, tuple(prompts), target, alternatives=tuple(others), database=database)
    label = _label(task, where, row)
    choices = label.choices
    if not choices:  # the choices are all answers that occur
        return TaskDocument(where, tuple(prompts), str(label.value))
    right = label.right(by_text=by_text)
    _refuse_twice(task, choices, right, where)
    if len(prompts) > 1:  # the choices come first and share their continuation
        follows = filled_in(_one_answer(task) or "", row, where)
        _refuse_unfit(task, (follows,), where)
        return TaskDocument(where, tuple(prompts), follows, (follows,) * len(prompts), right)
    if task.lettered:
        below = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
        letters = tuple(LETTERS[: len(choices)])
        document = f"{prompts[0]}\n{below}\nAnswer:"
        return TaskDocument(where, (document,), letters[right], letters, right)
    return TaskDocument(where, tuple(prompts), choices[right], choices, right)


def _checked_document(document: TaskDocument) -> TaskDocument:
    """Check that all texts are allowed, as in rows of a known format."""
    references = (document.target, *document.alternatives)
    parts = (("question", document.prompts), ("choice", document.choices), ("reference answer", references))
    for what, texts in parts:
        for text in texts:
            text_of(text, document.where, what, may_be_empty=True)
    return document


def _refuse_unfit(task: TaskConfig, choices: tuple[str, ...], where: str) -> None:
    empty = next((number for number, choice in enumerate(choices, start=1) if not choice.strip()), None)
    if empty is not None:
        raise DataError(f"{where}: choice {empty} of {len(choices)} is empty, so it has no likelihood.")
    if task.lettered and len(choices) > len(LETTERS):
        raise DataError(f"{where}: has {len(choices)} choices, but letters exist for only {len(LETTERS)}.")


def _refuse_twice(task: TaskConfig, choices: tuple[str, ...], right: int, where: str) -> None:
    """Refuse a right choice that occurs twice, since equal texts are equally likely. Letters distinguish them, and
    wrong choices may repeat."""
    if not task.lettered and choices.count(choices[right]) > 1:
        raise DataError(f"{where}: the right choice {shown(choices[right])} occurs twice; choices must differ.")


def _prompts(ask: str, row: dict[str, Any], where: str) -> list[str]:
    """Fill in the prompt. A prompt that is a single column with a list gives one prompt per choice."""
    alone = COLUMN.fullmatch(ask)
    value = row.get(alone[1]) if alone else None
    if isinstance(value, list) and len(value) > 1 and all(isinstance(one, str) for one in value):
        return value
    return [filled_in(ask, row, where)]


def _one_answer(task: TaskConfig) -> str | None:
    assert not isinstance(task.answer, tuple), "the task config allows several answers only for text metrics"
    return task.answer


def _references(task: TaskConfig, row: dict[str, Any], where: str) -> list[str]:
    """Return all reference texts: each pattern filled in, or every entry of a column with a list, without
    duplicates."""
    assert task.answer is not None
    patterns = task.answer if isinstance(task.answer, tuple) else (task.answer,)
    documents = [text for pattern in patterns for text in _each(pattern, row, where)]
    if len(documents) > 1 and "pearson" in task.score:
        raise DataError(
            f"{where}: has {len(documents)} references, but pearson compares with one number. Give one column."
        )
    return list(dict.fromkeys(documents))


def _each(pattern: str, row: dict[str, Any], where: str) -> list[str]:
    alone = COLUMN.fullmatch(pattern)
    held = row.get(alone[1]) if alone else None
    if not isinstance(held, list):
        return [filled_in(pattern, row, where)]
    if not held or not all(isinstance(one, str | int | float) for one in held):
        raise DataError(f"{where}: {pattern} is {shown(held)}, but must be a list of one or more reference texts.")
    return [str(one) for one in held]


def _right_value(task: TaskConfig, row: dict[str, Any], where: str, *, shared: bool) -> Any:
    answer = _one_answer(task)
    if answer is not None and not shared:
        alone = COLUMN.fullmatch(answer)
        return row[alone[1]] if alone and alone[1] in row else filled_in(answer, row, where)
    if column_of_choices(task) is None:
        return ChoiceIndex(0)  # the right choice comes first
    column = next((name for name in RIGHT if name in row), None)
    if column is None:
        raise DataError(f"{where}: none of the columns {', '.join(RIGHT)} says which choice is right; set answer.")
    held = row.get("choices")
    if isinstance(held, dict) and row[column] in held.get("label", ()):  # some rows of ARC use the labels 1, 2, 3
        return ChoiceIndex(held["label"].index(row[column]))
    return row[column]


def _with_all_answers(task: TaskConfig, documents: list[TaskDocument]) -> list[TaskDocument]:
    """Use all answers that occur as choices if the rows have no choices of their own."""
    if not task.chosen or all(document.choices for document in documents):
        return documents
    return between([(document, document.target) for document in documents], task)


def between(documents: list[tuple[TaskDocument, str]], task: TaskConfig) -> list[TaskDocument]:
    """Use all answers that occur as choices if they are few enough to be labels."""
    counts = Counter(target for _, target in documents)
    every = tuple(sorted(counts))
    empty = next((one.where for one, target in documents if not target.strip()), None)
    if empty is not None:
        raise DataError(f"{empty}: the answer is empty, so it has no likelihood.")
    if len(every) < 2 or len(every) > min(MOST_LABELS, max(2, len(documents) // 2)):
        score = next(score for score in task.score if score in CHOSEN)
        raise DataError(
            f"{task.data}: score: [{score}] needs choices. Its {len(documents):,} rows have {len(every):,} different "
            f"answers, which cannot be labels (2 to {MOST_LABELS}, and at most half as many as rows). Name the choices "
            "(choices:), or score what the model writes (score: [exact])."
        )
    labels = tuple(counts.most_common())
    return [
        TaskDocument(one.where, one.prompts, target, every, every.index(target), labels=labels)
        for one, target in documents
    ]


MOST_LABELS = 50
