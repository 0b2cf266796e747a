"""Rows with several labels each as a task: micro and macro F1, and the share of rows that are right as a whole.

A label is predicted where its probability is above THRESHOLD. The sums of a row are [right, predicted, actual], over
all labels for the micro F1 and for each label for the macro F1 (confusion.py), which leaves out labels that occur
nowhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rankwise.errors import one_line
from rankwise.evaluation.class_details import figures_of
from rankwise.evaluation.class_task import ClassTask, beginning
from rankwise.evaluation.intervals import scores
from rankwise.inference.classify import THRESHOLD, outputs_of
from rankwise.models.loaded import LoadedModel
from rankwise.objectives.objective import Classifier
from rankwise.runs.evaluations import ModelScores
from rankwise.runs.records import Callback, ProgressUpdate
from rankwise.runs.set_details import SetDetails, WrongSet
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
    objective: Classifier, module: nn.Module, rows: Sequence[Tokens], done: Callable[[int], None] | None = None
) -> ScoredLabels:
    """Run the classifier over labelled rows; `done` is told how many there are so far."""
    actual = np.array([row.target for row in rows], np.float64).reshape(len(rows), -1) > 0
    return ScoredLabels(objective.targets.classes, outputs_of(objective, module, rows, done), actual)


class LabelTask(ClassTask):
    """The same for rows with several labels."""

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"threshold": THRESHOLD}

    def score(self, model: LoadedModel, who: str, callback: Callback) -> ModelScores:
        began, n = time.perf_counter(), len(self.rows)
        scored = score_labels(
            self.objective, model.module, self.rows,
            lambda done: callback(ProgressUpdate(f"Classifying with {who}", done, n, "rows")),
        )  # fmt: skip
        measured = {metric: scores(metric, sums) for metric, sums in scored.rows.items()}
        answers = [", ".join(map(one_line, scored.names(row))) for row in scored.predicted]
        seconds = time.perf_counter() - began
        return ModelScores(scores=measured, answers=answers, seconds=seconds, sets=self._details(scored, model))

    def _details(self, scored: ScoredLabels, model: LoadedModel) -> SetDetails:
        numbers = np.flatnonzero((scored.predicted != scored.actual).any(1)).tolist()
        wrong = [
            WrongSet(
                name=self.rows[at].name or f"row {at + 1:,} of {self.about}",
                text=beginning(self.rows[at], model.tokenizer),
                missed=scored.names(scored.actual[at] & ~scored.predicted[at]),
                wrong=scored.names(scored.predicted[at] & ~scored.actual[at]),
            )
            for at in numbers[:MOST_WRONG]
        ]
        types = figures_of(scored.classes, scored.table)
        return SetDetails(of="labels", types=types, rows=len(self.rows), wrong_rows=len(numbers), wrong=wrong)
