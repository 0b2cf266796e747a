"""A run opened for reading, however far it came: what was asked, what was recorded, and what was measured since.

Beside runs, an evaluation that stands alone in a file can be compared; both are candidates.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rankwise.run.directory import RunDirectory, open_any_run
from rankwise.run.evaluations import (
    Evaluation,
    Retention,
    StrengthCurve,
    evaluations_of,
    read_evaluation,
    read_strength,
)
from rankwise.run.journal import History, read_history
from rankwise.run.manifest import Manifest
from rankwise.run.receipt import RECEIPT, Receipt
from rankwise.spec.experiment import Experiment


@dataclass(frozen=True)
class OpenedRun:
    """`name` is that of its folder, which may have been copied; what it was begun as stands in the experiment."""

    name: str
    folder: Path
    experiment: Experiment
    manifest: Manifest
    receipt: Receipt | None
    history: History
    evaluations: dict[str, Evaluation]
    strength: StrengthCurve | None

    @property
    def retention(self) -> Retention | None:
        return retention_of(self.evaluations)


def retention_of(evaluations: dict[str, Evaluation]) -> Retention | None:
    """The first one that was measured: it is of the model and not of a task."""
    return next((one.retention for one in evaluations.values() if one.retention is not None), None)


def open_for_reading(name: str) -> OpenedRun:
    """By its name or its folder. Files that a run need not have may be missing; one that is damaged is an error."""
    run: RunDirectory = open_any_run(name)
    return OpenedRun(
        name=run.folder.resolve().name,
        folder=run.folder,
        experiment=run.experiment(),
        manifest=run.manifest(),
        receipt=run.receipt() if (run.folder / RECEIPT).exists() else None,
        history=read_history(run.metrics) if run.metrics.exists() else History(),
        evaluations=evaluations_of(run),
        strength=read_strength(run),
    )


@dataclass(frozen=True)
class Candidate:
    """What is compared with others: a run, or one evaluation alone."""

    name: str
    folder: Path
    evaluations: dict[str, Evaluation]
    run: OpenedRun | None = None

    @property
    def retention(self) -> Retention | None:
        return retention_of(self.evaluations)


def open_candidate(name: str) -> Candidate:
    """A run by its name or its folder, or an evaluation by its file."""
    if os.path.isfile(name):  # noqa: PTH113  Path.is_file raises where a name is too long
        evaluation = read_evaluation(Path(name))
        return Candidate(Path(name).stem, Path(name).parent, {evaluation.task: evaluation})
    run = open_for_reading(name)
    return Candidate(run.name, run.folder, run.evaluations, run)
