"""Rows that a classifier predicts, as a task: scores with intervals, and details of classes, labels and spans.

How predictions are judged is a value, a TaskKind:

CLASSES    accuracy, F1, calibration and others, or correlations of numbers
LABELS     rows with several labels each: micro and macro F1, and the share of rows that are right as a whole
SPANS      precision, recall and F1 of spans, and the share of right tags, over texts

A label is predicted where its probability is above THRESHOLD. The sums of its row are [right, predicted, actual], over
all labels for the micro F1 and for each label for the macro F1, which leaves out labels that occur nowhere.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.base.loaded import LoadedModel
from rankwise.errors import one_line
from rankwise.evaluation.class_metrics import (
    Scored,
    ScoredLabels,
    ScoredTags,
    best_constant,
    score_labels,
    score_rows,
    score_tags,
)
from rankwise.evaluation.intervals import measured_each, measured_share, scores
from rankwise.evaluation.metrics import (
    BINS,
    EDGES,
    Sums,
    bins_of,
    class_table,
    error_of_calibrated,
    f1_of_classes,
    figures_of_types,
    means,
)
from rankwise.objectives.objective import Classifier
from rankwise.objectives.predictions import THRESHOLD
from rankwise.rows.images.pictures import thumbnail_of
from rankwise.rows.text.example import Span
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.evaluations import ModelScores, Sample
from rankwise.runs.measured import CalibrationBin, ClassDetails, OneClass, SetDetails, WrongRow, WrongSet
from rankwise.runs.records import Callback, ProgressUpdate, StatusMessage

MOST_WRONG, THUMBNAILS = 500, 24
"""Wrong rows that are stored, and how many of them with a picture."""


@dataclass(frozen=True)
class RowView:
    """What a reader sees of a row."""

    name: str
    text: str | None = None
    thumbnail: str | None = None


Show = Callable[[int, bool], RowView]
"""Makes the view of the row with a number, and draws its thumbnail only if that is true."""


def class_details(scored: Scored, show: Show) -> ClassDetails:
    pairs = np.stack((np.asarray(scored.predicted), np.asarray(scored.actual)), 1).astype(np.int64)
    confusion = Counter((actual, predicted) for predicted, actual in pairs.tolist())
    confidences, hits = np.asarray(scored.calibration).T
    return ClassDetails(
        classes=_classes(scored.targets.classes, pairs),
        confusion=[(*pair, count) for pair, count in sorted(confusion.items())],
        calibration=_calibration(confidences, hits),
        calibrated_error=error_of_calibrated(confidences),
        wrong_rows=int((hits == 0).sum()),
        wrong=_wrong(scored, pairs, confidences, show),
    )


def _classes(names: tuple[str, ...], pairs: np.ndarray) -> list[OneClass]:
    actual, predicted = (np.bincount(pairs[:, side], minlength=len(names)) for side in (1, 0))
    right = np.bincount(pairs[pairs[:, 0] == pairs[:, 1], 0], minlength=len(names))
    each = measured_each(f1_of_classes, class_table(pairs.astype(np.float64)))
    f1 = dict(zip(np.unique(pairs).tolist(), each, strict=True))
    return [
        OneClass(
            name=name, rows=int(actual[at]), predicted=int(predicted[at]), f1=f1.get(at),
            precision=measured_share(int(right[at]), int(predicted[at])),
            recall=measured_share(int(right[at]), int(actual[at])),
        )
        for at, name in enumerate(names)
    ]  # fmt: skip


def figures_of(names: Sequence[str], table: Sums) -> list[OneClass]:
    """Figures of each name, from its sums [right, predicted, actual] in each row (N, 3 C)."""
    if not names:
        return []
    total, count = table.sum(0).astype(int), len(names)
    defined = np.flatnonzero(~np.isnan(figures_of_types(table.sum(0))))
    measured = measured_each(lambda sums: figures_of_types(sums)[..., defined], table)
    figures = dict(zip(defined.tolist(), measured, strict=True))
    return [
        OneClass(
            name=name, rows=total[3 * at + 2], predicted=total[3 * at + 1],
            precision=figures.get(at), recall=figures.get(count + at), f1=figures.get(2 * count + at),
        )
        for at, name in enumerate(names)
    ]  # fmt: skip


def _calibration(confidences: np.ndarray, hits: np.ndarray) -> list[CalibrationBin]:
    bins = bins_of(confidences)
    return [
        CalibrationBin(
            low=float(EDGES[at]), high=float(EDGES[at + 1]), rows=int(inside.sum()),
            confidence=min(1.0, float(confidences[inside].mean())), right=right,
        )
        for at in range(BINS)
        if (right := measured_share(int(hits[inside := bins == at].sum()), int(inside.sum()))) is not None
    ]  # fmt: skip


def _wrong(scored: Scored, pairs: np.ndarray, confidences: np.ndarray, show: Show) -> list[WrongRow]:
    """The most confident first; equally confident rows in their order."""
    numbers = np.flatnonzero(pairs[:, 0] != pairs[:, 1])
    numbers = numbers[np.argsort(-confidences[numbers], kind="stable")][:MOST_WRONG]
    names, rows = scored.targets.classes, list[WrongRow]()
    for rank, number in enumerate(numbers.tolist()):
        predicted, actual = pairs[number].tolist()
        rows.append(WrongRow(
            actual=names[actual], predicted=names[predicted],
            probability=min(1.0, float(confidences[number])),
            probability_of_actual=min(1.0, float(scored.outputs[number, actual])),
            **vars(show(number, rank < THUMBNAILS)),
        ))  # fmt: skip
    return rows


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


class WithoutAnswers:
    """What tasks share whose rows and answers are not kept as text, and of whose base nothing is cached."""

    labels = ()
    identity = None

    def samples(self, tuned: ModelScores, base: ModelScores | None) -> list[Sample]:
        return []


@dataclass(frozen=True)
class RowTask(WithoutAnswers):
    """`about` names the rows, which have targets."""

    kind: TaskKind
    name: str
    about: str
    objective: Classifier
    rows: Sequence[Tokens]
    left_out: int = 0

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

    def name_of(self, number: int) -> str:
        """Where the row with this number stands."""
        return self.rows[number].name or f"row {number + 1:,} of {self.about}"

    def wrong_set(self, number: int, tokenizer: HubTokenizer, *, missed: list[str], wrong: list[str]) -> WrongSet:
        text = beginning(self.objective.parts(self.rows[number]), tokenizer)
        return WrongSet(name=self.name_of(number), text=text, missed=missed, wrong=wrong)


def beginning(parts: Sequence[np.ndarray], tokenizer: HubTokenizer) -> str:
    """The beginning of a row's text; each part of it stands on a line of its own."""
    text = "\n".join(tokenizer.readable(part.tolist()) for part in parts if len(part))
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def _judge_classes(task: RowTask, model: LoadedModel, report: Callable[[int], None], callback: Callback) -> Judged:
    scored = score_rows(task.objective, model.module, task.rows, report)
    targets = scored.targets
    loss = "cross_entropy" if targets.classes else "mean_squared_error"
    calibration = {"calibration_error": scored.calibration} if targets.classes else {}
    if targets.classes:
        number, count = Counter(scored.actual).most_common(1)[0]
        name, share = one_line(targets.classes[int(number)]), count / len(task.rows)
        callback(StatusMessage(f'the most frequent class, "{name}", is that of {share:.1%} of these rows'))
    return Judged(
        rows={**scored.rows, **calibration, loss: _row_losses(scored)},
        answers=[targets.classes[int(one)] if targets.classes else f"{one:.4g}" for one in scored.predicted],
        classification=class_details(scored, partial(_view, task, model)) if targets.classes else None,
    )


def _view(task: RowTask, model: LoadedModel, number: int, with_thumbnail: bool) -> RowView:
    """Show an image's row by its pixels, and any other row by its text."""
    row, name = task.rows[number], task.name_of(number)
    if row.image is not None:
        return RowView(name, thumbnail=thumbnail_of(row.image) if with_thumbnail else None)
    return RowView(name, text=beginning(task.objective.parts(row), model.tokenizer))


def _row_losses(scored: Scored) -> list[list[float]]:
    """Of each row, without weights of classes: nats, or squared errors."""
    if not scored.targets.classes:
        return means((scored.outputs[:, 0] - np.asarray(scored.actual)) ** 2)
    shares = scored.outputs[np.arange(len(scored.actual)), np.asarray(scored.actual, dtype=np.int64)]
    return means(-np.log(np.maximum(shares, 1e-300)))


def target_bytes(row: Tokens) -> bytes:
    """The target of a whole row, and its pixels."""
    pixels = b"" if row.image is None else np.ascontiguousarray(row.image).tobytes()
    return np.asarray([row.target], "<f8").tobytes() + pixels


CLASSES = TaskKind(_judge_classes, target_bytes)


def _judge_labels(task: RowTask, model: LoadedModel, report: Callable[[int], None], callback: Callback) -> Judged:
    scored = score_labels(task.objective, model.module, task.rows, report)
    if scored.actual.any():
        labels, score = best_constant(scored.actual)
        names, exact = ", ".join(map(one_line, scored.names(labels))), (scored.actual == labels).all(1).mean()
        callback(StatusMessage(
            f'the best constant answer, "{names}", has a micro F1 of {score:.3f} on these rows, and {exact:.1%} of '
            "them have just these labels"
        ))  # fmt: skip
    answers = [", ".join(map(one_line, scored.names(row))) for row in scored.predicted]
    return Judged(scored.rows, answers, sets=_label_details(task, scored, model))


def _label_details(task: RowTask, scored: ScoredLabels, model: LoadedModel) -> SetDetails:
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


LABELS = TaskKind(_judge_labels, target_bytes, settings={"threshold": THRESHOLD})


MOST_WRONG_TEXTS = 200
"""Texts with wrong spans that are stored."""


def _judge_spans(task: RowTask, model: LoadedModel, report: Callable[[int], None], callback: Callback) -> Judged:
    scored = score_tags(task.objective, model.module, task.rows, report)
    answers = [
        ", ".join(_spans_written(predicted, row, model.tokenizer))
        for (predicted, _), row in zip(scored.pairs, task.rows, strict=True)
    ]
    rows = {**scored.rows, "token_cross_entropy": scored.losses}
    return Judged(rows, answers, sets=_span_details(task, scored, model.tokenizer))


def _span_details(task: RowTask, scored: ScoredTags, tokenizer: HubTokenizer) -> SetDetails:
    pairs = scored.pairs
    numbers = [number for number, (predicted, actual) in enumerate(pairs) if predicted != actual]
    wrong = [_wrong_spans(task, number, *pairs[number], tokenizer) for number in numbers[:MOST_WRONG_TEXTS]]
    types = figures_of(*scored.types)
    return SetDetails(of="spans", types=types, rows=len(task.rows), wrong_rows=len(numbers), wrong=wrong)


def _wrong_spans(
    task: RowTask, number: int, predicted: set[Span], actual: set[Span], tokenizer: HubTokenizer
) -> WrongSet:
    missed, wrong = (
        _spans_written(spans, task.rows[number], tokenizer) for spans in (actual - predicted, predicted - actual)
    )
    return task.wrong_set(number, tokenizer, missed=missed, wrong=wrong)


def _spans_written(spans: set[Span], row: Tokens, tokenizer: HubTokenizer) -> list[str]:
    """Type and text of each span: from the first token of its first word to before the next learned word."""
    begins = [*np.flatnonzero(np.asarray(row.loss_mask, bool)).tolist(), len(row.ids)]
    ids = [int(one) for one in row.ids]
    return [
        f"{span.label}: {tokenizer.readable(ids[begins[span.first] : begins[span.stop]]).strip()}"
        for span in sorted(spans, key=lambda span: (span.first, span.stop))
    ]


def _tag_bytes(row: Tokens) -> bytes:
    """Which tokens begin a learned word, and their tags."""
    return np.asarray([row.loss_mask, row.tags], "<i8").tobytes()


SPANS = TaskKind(_judge_spans, _tag_bytes, activity="Tagging")
