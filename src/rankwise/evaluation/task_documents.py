"""What a task's rows ask, before any tokenizer: a question, the answer that is wanted, and choices where there are any.

A question is written from a row's columns by replacing {names} and nothing else, so the row's own braces are text.
"""

from __future__ import annotations

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
from rankwise.data.columnar import Record
from rankwise.data.files import records
from rankwise.data.sources import open_source, raw_records
from rankwise.data.turns import text_of
from rankwise.errors import DataError
from rankwise.evaluation.choices import COLUMN, choices_of, column_of_choices, written
from rankwise.evaluation.targets import LETTERS, Label, Place, are_texts
from rankwise.system.files import sha256_of

RIGHT = ("gold", "answer", "answerKey", "label")


@dataclass(frozen=True)
class Question:
    """`asked` has one text, or one for each choice where these differ in what comes before. `right` is a number of
    `choices`, and -1 where there are none. `alternatives` are further references beside `wanted`, and `labels` are all
    answers that occur, with their counts, where these are the choices."""

    where: str
    asked: tuple[str, ...]
    wanted: str
    choices: tuple[str, ...] = ()
    right: int = -1
    alternatives: tuple[str, ...] = ()
    labels: tuple[tuple[str, int], ...] = ()


def data_spec(task: TaskConfig) -> DataConfig:
    """How its rows are read; a task with `ask` reads them itself."""
    how = {name: getattr(task, name) for name in Reading.model_fields}
    return DataConfig(path=task.data, system=task.system, seed=task.seed, **how)


def questions(task: TaskConfig) -> list[Question]:
    """Of a task with `ask`. All rows that cannot be asked are told at once."""
    found, problems = [], []
    rows = list(_rows(task))
    by_text = are_texts(_labels(task, rows))
    for where, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            found.append(_whole(_question(task, where, row, by_text=by_text)))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems[:5]) + (f"\nand {len(problems) - 5:,} more" if len(problems) > 5 else ""))
    if not found:
        raise DataError(f"{task.data}: holds no rows.")
    every = _with_all_answers(task, found)
    return [every[at] for at in drawn(len(every), task)]


def identities(task: TaskConfig) -> dict[str, str]:
    """The files that its rows come from, by their SHA-256."""
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
    """Which of so many are asked, in their order: as reading draws rows for training."""
    if task.rows is None or task.rows >= count:
        return list(range(count))
    chosen = np.random.default_rng([task.seed, 1]).choice(count, task.rows, replace=False)
    return sorted(chosen.tolist())


def _labels(task: TaskConfig, rows: Sequence[Record]) -> list[Label]:
    """Of the rows that can be asked and that name one of several choices."""
    found = []
    for where, row in rows if task.chosen else ():
        if not isinstance(row, DataError):
            with suppress(DataError):  # told with the others
                found.append(_label(task, where, row))
    return [label for label in found if label.choices]


def _label(task: TaskConfig, where: str, row: dict[str, Any]) -> Label:
    assert task.ask is not None
    asked = _asked(task.ask, row, where)
    several = len(asked) > 1
    choices = tuple(asked) if several else choices_of(task, row, where)
    _refuse_unfit(task, choices, where)
    return Label(_right_value(task, row, where, shared=several), choices, where)


def _question(task: TaskConfig, where: str, row: dict[str, Any], *, by_text: bool) -> Question:
    assert task.ask is not None
    asked = _asked(task.ask, row, where)
    if not task.chosen:
        if task.answer is None:
            raise DataError(f'{where}: the task "{task.task}" says what to ask and not what is wanted; give answer.')
        wanted, *others = _references(task, row, where)
        return Question(where, tuple(asked), wanted, alternatives=tuple(others))
    label = _label(task, where, row)
    choices = label.choices
    if not choices:  # all answers that occur
        return Question(where, tuple(asked), str(label.value))
    right = label.right(by_text=by_text)
    _refuse_twice(task, choices, right, where)
    if len(asked) > 1:  # the choice is what comes before, and what follows is the same
        follows = written(_one_answer(task) or "", row, where)
        _refuse_unfit(task, (follows,), where)
        return Question(where, tuple(asked), follows, (follows,) * len(asked), right)
    if task.lettered:
        below = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
        letters = tuple(LETTERS[: len(choices)])
        question = f"{asked[0]}\n{below}\nAnswer:"
        return Question(where, (question,), letters[right], letters, right)
    return Question(where, tuple(asked), choices[right], choices, right)


def _whole(question: Question) -> Question:
    """Its texts are such as rows of a known form may have."""
    references = (question.wanted, *question.alternatives)
    parts = (("question", question.asked), ("choice", question.choices), ("wanted answer", references))
    for what, texts in parts:
        for text in texts:
            text_of(text, question.where, what, may_be_empty=True)
    return question


def _refuse_unfit(task: TaskConfig, choices: tuple[str, ...], where: str) -> None:
    empty = next((number for number, choice in enumerate(choices, start=1) if not choice.strip()), None)
    if empty is not None:
        raise DataError(f"{where}: the choice {empty} of {len(choices)} is empty; nobody can tell how likely that is.")
    if task.lettered and len(choices) > len(LETTERS):
        raise DataError(f"{where}: has {len(choices)} choices, and there are letters for {len(LETTERS)}.")


def _refuse_twice(task: TaskConfig, choices: tuple[str, ...], right: int, where: str) -> None:
    """Two that are alike are as likely. Letters part them, and of wrong ones none needs to be the likelier."""
    if not task.lettered and choices.count(choices[right]) > 1:
        raise DataError(
            f"{where}: the choice {shown(choices[right])}, which is right, is there twice; each has to be another."
        )


def _asked(ask: str, row: dict[str, Any], where: str) -> list[str]:
    """A question that is one column which holds several is asked in several ways."""
    alone = COLUMN.fullmatch(ask)
    value = row.get(alone[1]) if alone else None
    if isinstance(value, list) and len(value) > 1 and all(isinstance(one, str) for one in value):
        return value
    return [written(ask, row, where)]


def _one_answer(task: TaskConfig) -> str | None:
    assert not isinstance(task.answer, tuple), "the spec allows several for text metrics alone"
    return task.answer


def _references(task: TaskConfig, row: dict[str, Any], where: str) -> list[str]:
    """Each pattern's text, or the texts of a column that holds a list; each once."""
    assert task.answer is not None
    patterns = task.answer if isinstance(task.answer, tuple) else (task.answer,)
    found = [text for pattern in patterns for text in _each(pattern, row, where)]
    if len(found) > 1 and "pearson" in task.score:
        raise DataError(f"{where}: has {len(found)} references, and pearson compares with one number. Give one column.")
    return list(dict.fromkeys(found))


def _each(pattern: str, row: dict[str, Any], where: str) -> list[str]:
    alone = COLUMN.fullmatch(pattern)
    held = row.get(alone[1]) if alone else None
    if not isinstance(held, list):
        return [written(pattern, row, where)]
    if not held or not all(isinstance(one, str | int | float) for one in held):
        raise DataError(f"{where}: {pattern} holds {shown(held)}, and a list of one or more reference texts is wanted.")
    return [str(one) for one in held]


def _right_value(task: TaskConfig, row: dict[str, Any], where: str, *, shared: bool) -> Any:
    answer = _one_answer(task)
    if answer is not None and not shared:
        alone = COLUMN.fullmatch(answer)
        return row[alone[1]] if alone and alone[1] in row else written(answer, row, where)
    if column_of_choices(task) is None:
        return Place(0)  # the right one is written first
    column = next((name for name in RIGHT if name in row), None)
    if column is None:
        raise DataError(f"{where}: which choice is right stands in none of {', '.join(RIGHT)}; say it with answer.")
    held = row.get("choices")
    if isinstance(held, dict) and row[column] in held.get("label", ()):  # ARC numbers some rows by 1, 2, 3
        return Place(held["label"].index(row[column]))
    return row[column]


def _with_all_answers(task: TaskConfig, found: list[Question]) -> list[Question]:
    """Rows that bring no choices of their own choose between all answers that occur."""
    if not task.chosen or all(question.choices for question in found):
        return found
    return between([(question, question.wanted) for question in found], task)


def between(found: list[tuple[Question, str]], task: TaskConfig) -> list[Question]:
    """All answers that occur are the choices, where they are few enough to be labels."""
    counts = Counter(wanted for _, wanted in found)
    every = tuple(sorted(counts))
    empty = next((one.where for one, wanted in found if not wanted.strip()), None)
    if empty is not None:
        raise DataError(f"{empty}: the answer is empty; nobody can tell how likely that is.")
    if len(every) < 2 or len(every) > min(MOST_LABELS, max(2, len(found) // 2)):
        score = next(score for score in task.score if score in CHOSEN)
        raise DataError(
            f"{task.data}: score: [{score}] needs choices. Its {len(found):,} rows have {len(every):,} different "
            f"answers, which cannot be labels (2 to {MOST_LABELS}, and at most half as many as rows). Name the choices "
            "(choices:), or score what the model writes (score: [exact])."
        )
    labels = tuple(counts.most_common())
    return [Question(one.where, one.asked, wanted, every, every.index(wanted), labels=labels) for one, wanted in found]


MOST_LABELS = 50
