"""Rows that a classifier predicts, as a task: scores with intervals, and details (class_metrics.py)."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.base.loaded import LoadedModel
from rankwise.config.data import DataConfig
from rankwise.evaluation.class_metrics import FORMS, RowView, Scored, score_rows
from rankwise.evaluation.intervals import scores
from rankwise.evaluation.metrics import ScoreFunction, rows_of_function
from rankwise.evaluation.task import WithoutAnswers
from rankwise.evaluation.validation_rows import as_written
from rankwise.objectives.objective import Objective
from rankwise.objectives.predictions import Longest
from rankwise.rows.images.pictures import thumbnail_of
from rankwise.rows.text.example import BREAK, Example, Span
from rankwise.rows.text.targets import tagged_in
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.evaluations import ModelScores
from rankwise.runs.records import Callback, ProgressUpdate, StatusMessage

LONGEST_TEXT = 300
"""Characters of a wrong row's text that are stored."""


@dataclass
class RowTask(WithoutAnswers):
    """`about` names the rows, which have targets."""

    name: str
    about: str
    objective: Objective
    rows: Sequence[Tokens]
    left_out: int = 0
    functions: Mapping[str, ScoreFunction] = field(default_factory=dict)
    """Score what is predicted by what is true, both as texts."""
    config: DataConfig | None = None
    """How the rows are read."""
    _references: list[str] | None = field(default=None, init=False)
    """What is true of each row, once a model was scored."""

    @cached_property
    def _examples(self) -> Mapping[str, Example]:
        """The rows by their names, as their files have them."""
        return as_written(self.rows, self.config)

    @property
    def data(self) -> str:
        return Path(self.about).name

    @property
    def form(self) -> type[Scored]:
        return FORMS[self.objective.predicting.targets.form]

    @property
    def settings(self) -> dict[str, Any]:
        classes = list(self.objective.predicting.targets.classes)
        functions = {"functions": list(self.functions)} if self.functions else {}
        return {"objective": self.objective.name, "classes": classes, **self.form.settings, **functions}

    def score(self, model: LoadedModel, who: str, callback: Callback) -> ModelScores:
        began = time.perf_counter()

        def report(done: int) -> None:
            callback(ProgressUpdate(f"{self.form.activity} with {who}", done, len(self.rows), "rows"))

        scored = score_rows(self.objective.predicting, model.module, self.rows, report)
        if scored.baseline is not None:
            callback(StatusMessage(scored.baseline))
        measured = {metric: scores(metric, sums) for metric, sums in (scored.rows | scored.losses).items()}
        spell = partial(self._spelled, model)
        self._references = wanted = scored.answers(spell, true=True)
        answers, details = scored.answers(spell), scored.details(self._view, spell)
        for name, function in self.functions.items():
            measured[name] = scores(name, rows_of_function(name, function, answers, [[one] for one in wanted]))
        return ModelScores(scores=measured, answers=answers, seconds=time.perf_counter() - began, **details)

    def facts(self) -> tuple[int, str]:
        digest = sha256()
        for row in self.rows:
            digest.update(np.asarray([len(row.ids), *row.ids], "<i8").tobytes())
            digest.update(self.form.target_bytes(row))
        return len(self.rows), digest.hexdigest()

    def items(self) -> list[dict[str, Any]]:
        assert self._references is not None, "a model was scored"
        views = (self._view(number, with_thumbnail=False, most=None) for number in range(len(self.rows)))
        return [{"where": view.name, "prompt": view.text, "reference": one}
                for view, one in zip(views, self._references, strict=True)]  # fmt: skip

    def _view(self, number: int, with_thumbnail: bool, most: int | None = LONGEST_TEXT) -> RowView:
        """Show an image's row by its pixels, and any other row by the beginning of its text; each part of it stands on
        a line of its own."""
        row = self.rows[number]
        name = row.name or f"row {number + 1:,} of {self.about}"
        if row.image is not None:
            return RowView(name, thumbnail=thumbnail_of(row.image) if with_thumbnail else None)
        parts = self.objective.predicting.inputs.texts(self._examples[name]) if name in self._examples else ()
        text = "\n".join(filter(None, parts)).replace(BREAK, "")
        return RowView(name, text if most is None or len(text) <= most else f"{text[: most - 1]}…")

    def _spelled(self, model: LoadedModel, number: int, spans: set[Span]) -> list[str]:
        """From a span's first word to before the next learned word."""
        example = self._examples[str(self.rows[number].name)]
        (outcome,) = self.objective.predicting.inputs.encoded(model, [example], Longest(sys.maxsize, cuts=False))
        text, words = example.messages[0].content, tagged_in(example).words
        begins = [*outcome.learned_words, len(words)]
        return [
            f"{span.label}: {text[words[begins[span.first]][0] : words[begins[span.stop] - 1][1]]}"
            for span in sorted(spans, key=lambda span: (span.first, span.stop))
        ]
