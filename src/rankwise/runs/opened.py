"""A run opened for reading, however far it came: what was asked, what was recorded, and what was measured since.

Beside runs, an evaluation that stands alone in a file can be compared; both are candidates.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rankwise.config.experiment import Experiment
from rankwise.runs.data_report import DATA_REPORT, DataReport
from rankwise.runs.directory import RunDirectory, open_any_run
from rankwise.runs.evaluations import (
    Evaluation,
    Forgetting,
    StrengthCurve,
    evaluations_of,
    read_evaluation,
    read_strength,
)
from rankwise.runs.manifest import Manifest
from rankwise.runs.metrics_log import History, read_history


@dataclass(frozen=True)
class OpenedRun:
    """`name` is that of its folder, which may have been copied; what it was begun as stands in the experiment."""

    name: str
    folder: Path
    experiment: Experiment
    manifest: Manifest
    data_report: DataReport | None
    history: History
    evaluations: dict[str, Evaluation]
    strength: StrengthCurve | None

    @property
    def forgetting(self) -> Forgetting | None:
        return forgetting_of(self.evaluations)


def forgettings_of(evaluations: dict[str, Evaluation]) -> dict[str, Forgetting]:
    """The last one measured on each text, by the text's hash; the latest comes last. It is of the model and not of a
    task, and may have been measured before the evaluation that it stands in."""
    found: dict[str, Forgetting] = {}
    kept = [known for one in evaluations.values() if (known := forgetting_in(one)) is not None]
    for one in sorted(kept, key=lambda one: one.created or ""):
        found.pop(one.sha256, None)
        found[one.sha256] = one
    return found


def forgetting_in(evaluation: Evaluation) -> Forgetting | None:
    """An older file says of the evaluation alone when it was made, and how the model was held."""
    kept = evaluation.forgetting
    if kept is None:
        return None
    dtype = kept.dtype or evaluation.settings.get("dtype")
    return kept.model_copy(update={"created": kept.created or evaluation.created, "dtype": dtype})


def forgetting_of(evaluations: dict[str, Evaluation]) -> Forgetting | None:
    """The last one measured, on whatever text."""
    return next(reversed(forgettings_of(evaluations).values()), None)


def open_for_reading(name: str) -> OpenedRun:
    """By its name or its folder. Files that a run need not have may be missing; one that is damaged is an error."""
    run: RunDirectory = open_any_run(name)
    return OpenedRun(
        name=run.folder.resolve().name,
        folder=run.folder,
        experiment=run.experiment(),
        manifest=run.manifest(),
        data_report=run.data_report() if (run.folder / DATA_REPORT).exists() else None,
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
    def forgetting(self) -> Forgetting | None:
        return forgetting_of(self.evaluations)

    @property
    def place(self) -> Path:
        whole = self.folder.resolve()
        return whole if self.run is not None else whole / self.name


def open_candidates(names: Sequence[str]) -> list[Candidate]:
    """No two of one name: those that share theirs are told by as much of their path as it takes, and one that is named
    twice by a number."""
    found = [open_candidate(name) for name in names]
    told = [_tail(one, [other for other in found if other.name == one.name]) for one in found]
    again = [told[:at].count(name) + 1 for at, name in enumerate(told)]
    return [
        replace(one, name=name if many == 1 else f"{name} ({many})")
        for one, name, many in zip(found, told, again, strict=True)
    ]


def _tail(one: Candidate, others: Sequence[Candidate]) -> str:
    """The end of its path, as short as tells it from that of each other."""
    places = {other.place for other in others}
    if len(places) == 1:
        return one.name
    longest = max(len(place.parts) for place in places)
    enough = next((n for n in range(1, longest) if len({place.parts[-n:] for place in places}) == len(places)), longest)
    return "/".join(one.place.parts[-enough:])


def open_candidate(name: str) -> Candidate:
    """A run by its name or its folder, or an evaluation by its file."""
    if os.path.isfile(name):  # noqa: PTH113  Path.is_file raises where a name is too long
        evaluation = read_evaluation(Path(name))
        return Candidate(Path(name).stem, Path(name).parent, {evaluation.task: evaluation})
    run = open_for_reading(name)
    return Candidate(run.name, run.folder, run.evaluations, run)
