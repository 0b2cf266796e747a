"""How far to turn up what a run has learned: what it gains and what it forgets, at several strengths."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Unpack

from rankwise.base.loaded import LoadedModel
from rankwise.commands.report import write_page
from rankwise.config.adapters import check_strength
from rankwise.evaluation.forgetting import STRENGTHS, TaskLoss, strength_curve, text_elsewhere, with_ends
from rankwise.evaluation.likelihood import likelihoods
from rankwise.evaluation.subject import base_and_tuned, held_to_measure
from rankwise.evaluation.validation_rows import Measurable, rows_to_measure
from rankwise.inference.tuned_model import load_tuned
from rankwise.methods.artifact import Opening, open_artifact
from rankwise.rows.files.in_memory import path_of
from rankwise.runs.evaluations import STRENGTH, StrengthCurve, write_strength
from rankwise.runs.records import Callback, Event, ProgressUpdate, StatusMessage, silent
from rankwise.system.files import check_place

BLOCKS, MOST = 16, 100
"""How many blocks of text are measured by default, and how many documents at most. The model reads each of them once
for every strength."""


@dataclass(frozen=True)
class Strengths:
    run: str
    curve: StrengthCurve
    stored: bool = True
    """Whether it is stored: a run's is, and an adapter's folder stays as it is."""

    def summary(self) -> dict[str, Any]:
        """What `rankwise strength --json` prints."""
        return {"run": self.run} | self.curve.model_dump(mode="json", exclude={"format"})


def strength(
    run_name: str | os.PathLike[str], *, text: str | None = None, data: Any = None, blocks: int = BLOCKS,
    strengths: Sequence[float] = STRENGTHS, callback: Callback = silent, **opening: Unpack[Opening],
) -> Strengths:  # fmt: skip
    """Measure a run or an adapter folder at several strengths. A run's curve is stored in `runs/NAME/strength.json`.
    `text` is unrelated text to measure forgetting on (evaluation/text.py), `data` rows of the run's task; the default
    is its held-out rows."""
    for one in strengths:
        check_strength(one)
    artifact = open_artifact(run_name, callback, **opening)
    artifact.refuse("measured at strengths")
    if artifact.run is not None:
        check_place(artifact.folder / STRENGTH)
    spec = held_to_measure(artifact.model)
    asked = load_tuned(artifact, callback, config=spec)
    told = text_elsewhere(artifact, asked.model, text, blocks, callback)
    every = rows_to_measure(artifact, asked.model, None if data is None else path_of(data), callback)
    rows = every.spread(MOST)
    if rows is not every:
        callback(StatusMessage(f"measuring on {rows.about}"))
    curve = strength_curve(
        base_and_tuned(asked.trainable), asked.trainable.scaled,
        _task_loss(asked.model, rows, strengths, callback), told,
        task=rows.about, strengths=strengths, callback=callback,
    ).model_copy(update={"own_rows": rows.is_run_validation})  # fmt: skip
    if artifact.run is not None:
        write_strength(artifact.run.directory, curve)
        write_page(artifact.run, callback)
    return Strengths(str(artifact.folder), curve, stored=artifact.run is not None)


def _task_loss(model: LoadedModel, rows: Measurable, strengths: Sequence[float], callback: Callback) -> TaskLoss:
    passes, number = len(with_ends(strengths)), count()

    def losses() -> list[list[float]]:
        before = next(number)

        def heard(event: Event) -> None:
            """Report the progress of all passes together."""
            if isinstance(event, ProgressUpdate):
                event = replace(event, done=event.done + before * event.total, total=passes * event.total)
            callback(event)

        found = likelihoods(model.module, rows.documents, heard, "Measuring gain and forgetting")
        return [one.sums for one in found]

    return losses
