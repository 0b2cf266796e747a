"""A run as it was when it was read, however far it came: settings, manifest, and what was measured since.

Whoever reads a run reads it once, as a `RunSnapshot`, and passes that on; `RunDirectory` is for writing. Settings and
manifest are parsed at once, the rest when it is first needed; nothing changes afterwards. Beside runs, an evaluation
that stands alone in a file can be compared; both are candidates.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from rankwise.config.data import DataConfig
from rankwise.config.experiment import Experiment
from rankwise.errors import RunError
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
from rankwise.runs.own_files import data_here, read_experiment, read_json
from rankwise.runs.row_facts import ANSWERS, Learned


@dataclass(frozen=True)
class RunSnapshot:
    """`name` is that of its folder, which may have been copied; what it was begun as is in the experiment."""

    directory: RunDirectory
    experiment: Experiment
    manifest: Manifest

    @classmethod
    def read(cls, name: str) -> RunSnapshot:
        """A run by its name or its folder."""
        return cls.of(open_any_run(name))

    @classmethod
    def of(cls, directory: RunDirectory) -> RunSnapshot:
        """RunError where the settings or the manifest are damaged, or of an earlier version."""
        return cls(directory, read_experiment(directory.folder), directory.manifest())

    @classmethod
    def finished(cls, name: str) -> RunSnapshot:
        """One that has a result."""
        run = cls.read(name)
        if run.manifest.status != "finished":
            raise RunError(f'run "{name}" is not finished ({run.manifest.status}), so it has no result yet.')
        return run

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def folder(self) -> Path:
        return self.directory.folder

    @property
    def result(self) -> Path:
        """The folder of what was learned: an adapter, or a whole model."""
        return self.folder / self.experiment.adapter.artifact

    @cached_property
    def data_report(self) -> DataReport | None:
        """None where the file is missing, as long as nobody needs it."""
        return self.recorded_data if (self.folder / DATA_REPORT).exists() else None

    @cached_property
    def recorded_data(self) -> DataReport:
        """The data report of a run that must have one: RunError where it is missing."""
        return read_json(self.folder / DATA_REPORT, DataReport)

    @cached_property
    def history(self) -> History:
        metrics = self.directory.metrics
        return read_history(metrics) if metrics.exists() else History()

    @cached_property
    def evaluations(self) -> dict[str, Evaluation]:
        return evaluations_of(self.directory)

    @cached_property
    def strength(self) -> StrengthCurve | None:
        return read_strength(self.directory)

    @property
    def data_here(self) -> DataConfig:
        return data_here(self.experiment.data, self.folder)

    @property
    def learned(self) -> Learned:
        """What it learned of its rows."""
        return ANSWERS if self.data_report is None else self.data_report.learned

    @property
    def forgetting(self) -> Forgetting | None:
        return forgetting_of(self.evaluations)


def forgettings_of(evaluations: dict[str, Evaluation]) -> dict[str, Forgetting]:
    """The last one measured on each text, by the text's hash; the latest comes last. It is of the model and not of a
    task, and may have been measured before the evaluation that it stands in."""
    found: dict[str, Forgetting] = {}
    kept = [known for one in evaluations.values() if (known := forgetting_in(one)) is not None]
    for one in sorted(kept, key=lambda item: item.created or ""):
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


@dataclass(frozen=True)
class Candidate:
    """What is compared with others: a run, or one evaluation alone."""

    name: str
    folder: Path
    evaluations: dict[str, Evaluation]
    run: RunSnapshot | None = None

    @property
    def forgetting(self) -> Forgetting | None:
        return forgetting_of(self.evaluations)

    @property
    def path(self) -> Path:
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


def _tail(candidate: Candidate, namesakes: Sequence[Candidate]) -> str:
    """The end of its path, as short as tells it from that of each other."""
    places = {other.path for other in namesakes}
    if len(places) == 1:
        return candidate.name
    longest = max(len(place.parts) for place in places)
    enough = next((n for n in range(1, longest) if len({place.parts[-n:] for place in places}) == len(places)), longest)
    return "/".join(candidate.path.parts[-enough:])


def open_candidate(name: str) -> Candidate:
    """A run by its name or its folder, or an evaluation by its file."""
    if os.path.isfile(name):  # noqa: PTH113  Path.is_file raises where a name is too long
        evaluation = read_evaluation(Path(name))
        return Candidate(Path(name).stem, Path(name).parent, {evaluation.task: evaluation})
    run = RunSnapshot.read(name)
    return Candidate(run.name, run.folder, run.evaluations, run)
