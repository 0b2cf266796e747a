"""A token classifier's rows as a task: precision, recall and F1 of spans, and the share of right tags, with intervals
over texts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rankwise.evaluation.class_details import figures_of
from rankwise.evaluation.row_task import Judged, RowTask, TaskKind
from rankwise.evaluation.span_metrics import ScoredTags, score_tags
from rankwise.models.loaded import LoadedModel
from rankwise.runs.measured import SetDetails, WrongSet
from rankwise.runs.records import Callback
from rankwise.text.tagged import Span
from rankwise.text.tokenize import Tokens
from rankwise.text.tokenizer import HubTokenizer

MOST_WRONG = 200
"""Texts with wrong spans that are stored."""


def _judge(task: RowTask, model: LoadedModel, report: Callable[[int], None], callback: Callback) -> Judged:
    scored = score_tags(task.objective, model.module, task.rows, report)
    answers = [
        ", ".join(_written(predicted, row, model.tokenizer))
        for (predicted, _), row in zip(scored.pairs, task.rows, strict=True)
    ]
    rows = {**scored.rows, "token_cross_entropy": scored.losses}
    return Judged(rows, answers, sets=_details(task, scored, model.tokenizer))


def _details(task: RowTask, scored: ScoredTags, tokenizer: HubTokenizer) -> SetDetails:
    pairs = scored.pairs
    numbers = [number for number, (predicted, actual) in enumerate(pairs) if predicted != actual]
    wrong = [_wrong(task, number, *pairs[number], tokenizer) for number in numbers[:MOST_WRONG]]
    types = figures_of(*scored.types)
    return SetDetails(of="spans", types=types, rows=len(task.rows), wrong_rows=len(numbers), wrong=wrong)


def _wrong(task: RowTask, number: int, predicted: set[Span], actual: set[Span], tokenizer: HubTokenizer) -> WrongSet:
    missed, wrong = (
        _written(spans, task.rows[number], tokenizer) for spans in (actual - predicted, predicted - actual)
    )
    return task.wrong_set(number, tokenizer, missed=missed, wrong=wrong)


def _written(spans: set[Span], row: Tokens, tokenizer: HubTokenizer) -> list[str]:
    """Type and text of each span: from the first token of its first word to before the next learned word."""
    begins = [*np.flatnonzero(np.asarray(row.loss_mask, bool)).tolist(), len(row.ids)]
    ids = [int(one) for one in row.ids]
    return [
        f"{span.label}: {tokenizer.readable(ids[begins[span.first] : begins[span.stop]]).strip()}"
        for span in sorted(spans, key=lambda span: (span.first, span.stop))
    ]


def _target_bytes(row: Tokens) -> bytes:
    """Which tokens begin a learned word, and their tags."""
    return np.asarray([row.loss_mask, row.tags], "<i8").tobytes()


SPANS = TaskKind(_judge, _target_bytes, activity="Tagging")
