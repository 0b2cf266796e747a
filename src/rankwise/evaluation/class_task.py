"""A classifier's rows as a task: accuracy, F1, calibration and others, or correlations of numbers, with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np

from rankwise.errors import one_line
from rankwise.evaluation.class_details import RowView, class_details
from rankwise.evaluation.class_metrics import Scored, score_rows
from rankwise.evaluation.row_task import Judged, RowTask, TaskKind, beginning
from rankwise.images.thumbnails import thumbnail_of
from rankwise.models.loaded import LoadedModel
from rankwise.runs.records import Callback, StatusMessage
from rankwise.text.tokenize import Tokens


def _judge(task: RowTask, model: LoadedModel, report: Callable[[int], None], callback: Callback) -> Judged:
    scored = score_rows(task.objective, model.module, task.rows, report)
    targets = scored.targets
    loss = "cross_entropy" if targets.classes else "mean_squared_error"
    calibration = {"calibration_error": scored.calibration} if targets.classes else {}
    if targets.classes:
        number, count = Counter(scored.actual).most_common(1)[0]
        name, share = one_line(targets.classes[int(number)]), count / len(task.rows)
        callback(StatusMessage(f'the most frequent class, "{name}", is that of {share:.1%} of these rows'))
    return Judged(
        rows={**scored.rows, **calibration, loss: _losses(scored)},
        answers=[targets.classes[int(one)] if targets.classes else f"{one:.4g}" for one in scored.predicted],
        classification=class_details(scored, partial(_show, task, model)) if targets.classes else None,
    )


def _show(task: RowTask, model: LoadedModel, number: int, with_thumbnail: bool) -> RowView:
    """Show an image's row by its pixels, and any other row by its text."""
    row, name = task.rows[number], task.name_of(number)
    if row.image is not None:
        return RowView(name, thumbnail=thumbnail_of(row.image) if with_thumbnail else None)
    return RowView(name, text=beginning(row, model.tokenizer))


def _losses(scored: Scored) -> list[list[float]]:
    """Of each row, without weights of classes: nats, or squared errors."""
    if not scored.targets.classes:
        return [[float(one), 1.0] for one in (scored.outputs[:, 0] - np.asarray(scored.actual)) ** 2]
    shares = scored.outputs[np.arange(len(scored.actual)), np.asarray(scored.actual, dtype=np.int64)]
    return [[float(one), 1.0] for one in -np.log(np.maximum(shares, 1e-300))]


def target_bytes(row: Tokens) -> bytes:
    """The target of a whole row, and its pixels."""
    pixels = b"" if row.image is None else np.ascontiguousarray(row.image).tobytes()
    return np.asarray([row.target], "<f8").tobytes() + pixels


CLASSES = TaskKind(_judge, target_bytes)
