"""A classifier's rows as a task: accuracy, F1, calibration and others, or correlations of numbers, with intervals."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.errors import one_line
from rankwise.evaluation.class_details import RowView, class_details
from rankwise.evaluation.class_metrics import Scored, score_rows
from rankwise.evaluation.intervals import scores
from rankwise.images.thumbnails import thumbnail_of
from rankwise.models.loaded import LoadedModel
from rankwise.objectives.objective import Classifier
from rankwise.runs.evaluations import ModelScores, Sample
from rankwise.runs.records import Callback, ProgressUpdate, StatusMessage
from rankwise.text.tokenize import Tokens
from rankwise.text.tokenizer import HubTokenizer

LONGEST_TEXT = 300
"""Characters of a wrong row's text that are stored."""


@dataclass(frozen=True)
class ClassTask:
    """`about` names the rows, which have targets."""

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
        scored = score_rows(
            self.objective, model.module, self.rows,
            lambda done: callback(ProgressUpdate(f"Classifying with {who}", done, n, "rows")),
        )  # fmt: skip
        targets = scored.targets
        loss = "cross_entropy" if targets.classes else "mean_squared_error"
        calibration = {"calibration_error": scored.calibration} if targets.classes else {}
        rows = {**scored.rows, **calibration, loss: _losses(scored)}
        if targets.classes:
            number, count = Counter(scored.actual).most_common(1)[0]
            name = one_line(targets.classes[int(number)])
            callback(StatusMessage(f'the most frequent class, "{name}", is that of {count / n:.1%} of these rows'))
        details = class_details(scored, partial(self._show, model)) if targets.classes else None
        answers = [targets.classes[int(one)] if targets.classes else f"{one:.4g}" for one in scored.predicted]
        measured = {metric: scores(metric, sums) for metric, sums in rows.items()}
        seconds = time.perf_counter() - began
        return ModelScores(scores=measured, answers=answers, seconds=seconds, classification=details)

    def _show(self, model: LoadedModel, number: int, with_thumbnail: bool) -> RowView:
        """Show an image's row by its pixels, and any other row by its text."""
        row = self.rows[number]
        name = row.name or f"row {number + 1:,} of {self.about}"
        if row.image is not None:
            return RowView(name, thumbnail=thumbnail_of(row.image) if with_thumbnail else None)
        return RowView(name, text=beginning(row, model.tokenizer))

    def facts(self) -> tuple[int, str]:
        digest = sha256()
        for row in self.rows:
            digest.update(np.asarray([len(row.ids), *row.ids], "<i8").tobytes())
            digest.update(np.asarray([row.target], "<f8").tobytes())
            if row.image is not None:
                digest.update(np.ascontiguousarray(row.image).tobytes())
        return len(self.rows), digest.hexdigest()

    def samples(self, tuned: ModelScores, base: ModelScores | None) -> list[Sample]:
        """None: the rows are not kept as text."""
        return []


def beginning(row: Tokens, tokenizer: HubTokenizer) -> str:
    """Return the beginning of a row's text; a second text stands on a line of its own."""
    ids = np.asarray(row.ids)
    second = np.zeros(len(ids), bool) if row.token_type_ids is None else np.asarray(row.token_type_ids) == 1
    texts = [tokenizer.readable(part.tolist()) for part in (ids[~second], ids[second]) if len(part)]
    text = "\n".join(texts)
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def _losses(scored: Scored) -> list[list[float]]:
    """Of each row, without weights of classes: nats, or squared errors."""
    if not scored.targets.classes:
        return [[float(one), 1.0] for one in (scored.outputs[:, 0] - np.asarray(scored.actual)) ** 2]
    shares = scored.outputs[np.arange(len(scored.actual)), np.asarray(scored.actual, dtype=np.int64)]
    return [[float(one), 1.0] for one in -np.log(np.maximum(shares, 1e-300))]
