"""A token classifier's rows as a task: precision, recall and F1 of spans, and the share of right tags, with intervals
over texts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.evaluation.class_details import figures_of
from rankwise.evaluation.class_task import beginning
from rankwise.evaluation.intervals import scores
from rankwise.evaluation.span_metrics import ScoredTags, score_tags
from rankwise.models.loaded import LoadedModel
from rankwise.objectives.objective import Classifier
from rankwise.runs.evaluations import ModelScores, Sample
from rankwise.runs.records import Callback, ProgressUpdate
from rankwise.runs.set_details import SetDetails, WrongSet
from rankwise.text.tagged import Span
from rankwise.text.tokenize import Tokens
from rankwise.text.tokenizer import HubTokenizer

MOST_WRONG = 200
"""Texts with wrong spans that are stored."""


@dataclass(frozen=True)
class SpanTask:
    """`about` names the rows, which have tags."""

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
        return {"objective": self.objective.name, "classes": list(self.objective.targets.classes)}

    def score(self, model: LoadedModel, who: str, callback: Callback) -> ModelScores:
        began, n = time.perf_counter(), len(self.rows)
        scored = score_tags(
            self.objective, model.module, self.rows,
            lambda done: callback(ProgressUpdate(f"Tagging with {who}", done, n, "rows")),
        )  # fmt: skip
        rows = {**scored.rows, "token_cross_entropy": scored.losses}
        measured = {metric: scores(metric, sums) for metric, sums in rows.items()}
        answers = [
            ", ".join(_written(sorted(predicted, key=_ends), row, model.tokenizer))
            for (predicted, _), row in zip(scored.pairs, self.rows, strict=True)
        ]
        details = self._details(scored, model.tokenizer)
        return ModelScores(scores=measured, answers=answers, seconds=time.perf_counter() - began, sets=details)

    def facts(self) -> tuple[int, str]:
        digest = sha256()
        for row in self.rows:
            digest.update(np.asarray([len(row.ids), *row.ids, *np.asarray(row.loss_mask)], "<i8").tobytes())
            digest.update(np.asarray(row.tags, "<i8").tobytes())
        return len(self.rows), digest.hexdigest()

    def samples(self, tuned: ModelScores, base: ModelScores | None) -> list[Sample]:
        """None: the rows are not kept as text."""
        return []

    def _details(self, scored: ScoredTags, tokenizer: HubTokenizer) -> SetDetails:
        wrong = [number for number, (predicted, actual) in enumerate(scored.pairs) if predicted != actual]
        listed = [self._wrong(number, *scored.pairs[number], tokenizer) for number in wrong[:MOST_WRONG]]
        return SetDetails(
            of="spans", types=figures_of(*scored.types), rows=len(self.rows), wrong_rows=len(wrong), wrong=listed
        )

    def _wrong(self, number: int, predicted: set[Span], actual: set[Span], tokenizer: HubTokenizer) -> WrongSet:
        row = self.rows[number]
        missed, wrong = (
            _written(sorted(spans, key=_ends), row, tokenizer) for spans in (actual - predicted, predicted - actual)
        )
        name = row.name or f"row {number + 1:,} of {self.about}"
        return WrongSet(name=name, text=beginning(row, tokenizer), missed=missed, wrong=wrong)


def _ends(span: Span) -> tuple[int, int]:
    return span.first, span.stop


def _written(spans: Sequence[Span], row: Tokens, tokenizer: HubTokenizer) -> list[str]:
    """Type and text of each span: from the first token of its first word to before the next learned word."""
    begins = [*np.flatnonzero(np.asarray(row.loss_mask, bool)).tolist(), len(row.ids)]
    ids = [int(one) for one in row.ids]
    return [
        f"{span.label}: {tokenizer.readable(ids[begins[span.first] : begins[span.stop]]).strip()}" for span in spans
    ]
