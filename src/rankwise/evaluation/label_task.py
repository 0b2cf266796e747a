"""Rows with several labels each as a task: micro and macro F1, and the share of rows that are right as a whole.

A label is predicted where its probability is above THRESHOLD. The sums of a row are [right, predicted, actual], over
all labels for the micro F1 and for each label for the macro F1 (confusion.py), which leaves out labels that occur
nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rankwise.errors import one_line
from rankwise.evaluation.class_details import figures_of
from rankwise.evaluation.class_task import target_bytes
from rankwise.evaluation.row_task import Judged, RowTask, TaskKind
from rankwise.inference.classify import THRESHOLD, Done, Outputs, outputs_of
from rankwise.models.loaded import LoadedModel
from rankwise.objectives.objective import Classifier
from rankwise.runs.measured import SetDetails
from rankwise.runs.records import Callback, StatusMessage
from rankwise.text.tokenize import Tokens

MOST_WRONG = 500
"""Wrong rows that are stored."""


@dataclass(frozen=True)
class ScoredLabels:
    """A classifier's probabilities (N, C) for N rows, and which labels they have (N, C)."""

    classes: tuple[str, ...]
    outputs: NDArray[np.float64]
    actual: NDArray[np.bool_]

    @property
    def predicted(self) -> NDArray[np.bool_]:
        return self.outputs > THRESHOLD

    @property
    def table(self) -> NDArray[np.float64]:
        """(N, 3 C) sums of each label."""
        parts = np.stack((self.predicted & self.actual, self.predicted, self.actual), -1)
        return parts.reshape(len(self.actual), -1).astype(np.float64)

    @property
    def rows(self) -> dict[str, list[list[float]]]:
        """Each metric with its rows."""
        table = self.table
        micro = table.reshape(len(table), -1, 3).sum(1)
        exact = (self.predicted == self.actual).all(1)
        return {
            "micro_f1": micro.tolist(), "f1": table.tolist(), "exact_match": [[float(one), 1.0] for one in exact]
        }  # fmt: skip

    def names(self, which: NDArray[np.bool_]) -> list[str]:
        return [name for name, one in zip(self.classes, which.tolist(), strict=True) if one]


def score_labels(
    objective: Classifier, module: nn.Module, rows: Sequence[Tokens], done: Done | None = None,
    outputs: Outputs = outputs_of,
) -> ScoredLabels:  # fmt: skip
    """Run the classifier over labelled rows; `done` is told how many there are so far."""
    actual = np.array([row.target for row in rows], np.float64).reshape(len(rows), -1) > 0
    return ScoredLabels(objective.targets.classes, outputs(objective, module, rows, done), actual)


def best_constant(actual: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], float]:
    """The labels (C,) by which rows (N, C) with a label at least have the highest micro F1 if every row is given the
    same ones, and this F1: of k labels the k most frequent ones are right most often."""
    counts = actual.sum(0)
    order = np.argsort(-counts, kind="stable")
    scores = 2 * np.cumsum(counts[order]) / (len(actual) * np.arange(1, len(counts) + 1) + counts.sum())
    most = int(np.argmax(scores))
    return np.isin(np.arange(len(counts)), order[: most + 1]), float(scores[most])


def _judge(task: RowTask, model: LoadedModel, report: Callable[[int], None], callback: Callback) -> Judged:
    scored = score_labels(task.objective, model.module, task.rows, report)
    if scored.actual.any():
        labels, score = best_constant(scored.actual)
        names, exact = ", ".join(map(one_line, scored.names(labels))), (scored.actual == labels).all(1).mean()
        callback(StatusMessage(
            f'the best constant answer, "{names}", has a micro F1 of {score:.3f} on these rows, and {exact:.1%} of '
            "them have just these labels"
        ))  # fmt: skip
    answers = [", ".join(map(one_line, scored.names(row))) for row in scored.predicted]
    return Judged(scored.rows, answers, sets=_details(task, scored, model))


def _details(task: RowTask, scored: ScoredLabels, model: LoadedModel) -> SetDetails:
    numbers = np.flatnonzero((scored.predicted != scored.actual).any(1)).tolist()
    wrong = [
        task.wrong_set(
            at, model.tokenizer,
            missed=scored.names(scored.actual[at] & ~scored.predicted[at]),
            wrong=scored.names(scored.predicted[at] & ~scored.actual[at]),
        )
        for at in numbers[:MOST_WRONG]
    ]  # fmt: skip
    types = figures_of(scored.classes, scored.table)
    return SetDetails(of="labels", types=types, rows=len(task.rows), wrong_rows=len(numbers), wrong=wrong)


LABELS = TaskKind(_judge, target_bytes, settings={"threshold": THRESHOLD})
