"""Rows that a classifier predicts, as a task: what is the same for classes, numbers, sets of labels and spans.

How predictions are judged is a value, a TaskKind, which class_task.py, label_task.py and span_task.py make.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.evaluation.intervals import scores
from rankwise.models.loaded import LoadedModel
from rankwise.objectives.objective import Classifier
from rankwise.runs.evaluations import ModelScores, Sample
from rankwise.runs.measured import ClassDetails, SetDetails, WrongSet
from rankwise.runs.records import Callback, ProgressUpdate
from rankwise.text.tokenize import Tokens
from rankwise.text.tokenizer import HubTokenizer

LONGEST_TEXT = 300
"""Characters of a wrong row's text that are stored."""


@dataclass(frozen=True)
class Judged:
    """A model's predictions for all rows, against what is true."""

    rows: dict[str, list[list[float]]]
    """Each metric with its rows of sums."""
    answers: list[str]
    classification: ClassDetails | None = None
    sets: SetDetails | None = None


@dataclass(frozen=True)
class TaskKind:
    judge: Callable[[RowTask, LoadedModel, Callable[[int], None], Callback], Judged]
    """Told how many rows are done so far through the third argument."""
    target_bytes: Callable[[Tokens], bytes]
    """What a row's hash covers beside its ids."""
    activity: str = "Classifying"
    """Shown as the progress."""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RowTask:
    """`about` names the rows, which have targets."""

    kind: TaskKind
    name: str
    about: str
    objective: Classifier
    rows: Sequence[Tokens]
    left_out: int = 0
    labels: tuple[tuple[str, int], ...] = ()
    identity: str | None = None
    """No base is scored, so nothing is cached."""

    @property
    def data(self) -> str:
        return Path(self.about).name

    @property
    def settings(self) -> dict[str, Any]:
        classes = list(self.objective.targets.classes)
        return {"objective": self.objective.name, "classes": classes, **self.kind.settings}

    def score(self, model: LoadedModel, who: str, callback: Callback) -> ModelScores:
        began = time.perf_counter()

        def report(done: int) -> None:
            callback(ProgressUpdate(f"{self.kind.activity} with {who}", done, len(self.rows), "rows"))

        judged = self.kind.judge(self, model, report, callback)
        measured = {metric: scores(metric, sums) for metric, sums in judged.rows.items()}
        seconds = time.perf_counter() - began
        return ModelScores(
            scores=measured, answers=judged.answers, seconds=seconds,
            classification=judged.classification, sets=judged.sets,
        )  # fmt: skip

    def facts(self) -> tuple[int, str]:
        digest = sha256()
        for row in self.rows:
            digest.update(np.asarray([len(row.ids), *row.ids], "<i8").tobytes())
            digest.update(self.kind.target_bytes(row))
        return len(self.rows), digest.hexdigest()

    def samples(self, tuned: ModelScores, base: ModelScores | None) -> list[Sample]:
        """None: the rows are not kept as text."""
        return []

    def name_of(self, number: int) -> str:
        """Where the row with this number stands."""
        return self.rows[number].name or f"row {number + 1:,} of {self.about}"

    def wrong_set(self, number: int, tokenizer: HubTokenizer, *, missed: list[str], wrong: list[str]) -> WrongSet:
        text = beginning(self.rows[number], tokenizer)
        return WrongSet(name=self.name_of(number), text=text, missed=missed, wrong=wrong)


def beginning(row: Tokens, tokenizer: HubTokenizer) -> str:
    """Return the beginning of a row's text; a second text stands on a line of its own."""
    ids = np.asarray(row.ids)
    second = np.zeros(len(ids), bool) if row.token_type_ids is None else np.asarray(row.token_type_ids) == 1
    texts = [tokenizer.readable(part.tolist()) for part in (ids[~second], ids[second]) if len(part)]
    text = "\n".join(texts)
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
