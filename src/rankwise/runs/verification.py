"""Every recorded hash of a run, compared with the file that it was recorded of: results, checkpoints and snapshots.

A run's own files (settings, manifest, data report) have no hash of their own outside of checkpoints; they must be
readable.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from rankwise.config.experiment import Experiment
from rankwise.errors import RankwiseError
from rankwise.runs.data_report import DATA_REPORT, DataReport
from rankwise.runs.directory import SETTINGS, RunDirectory
from rankwise.runs.integrity import compare_result
from rankwise.runs.own_files import read_json
from rankwise.runs.sealed import DamagedStep, check_file
from rankwise.runs.snapshot import RunSnapshot
from rankwise.runs.step_folders import StepFolders

FINISHED = "finished"


@dataclass(frozen=True)
class VerifiedRun:
    """`files` is the number of files whose hash was compared; `recorded` is False for results of versions without."""

    name: str
    files: int
    recorded: bool
    problems: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        return asdict(self)


def verify(run: RunDirectory) -> VerifiedRun:
    problems: list[str] = []
    files, recorded = 0, True
    for name, kind in ((SETTINGS, Experiment), (DATA_REPORT, DataReport)):
        try:
            read_json(run.folder / name, kind)
        except RankwiseError as error:
            problems.append(str(error))
    try:
        snapshot = RunSnapshot.of(run)
        if snapshot.manifest.status == FINISHED:
            integrity = compare_result(snapshot)
            problems += integrity.problems(run.folder)
            files, recorded = integrity.files, integrity.status != "not recorded"
    except RankwiseError as error:
        problems.append(str(error))
    for folders in (run.checkpoints, run.snapshots):
        for step in folders.named:
            compared, problem = _step(folders, step)
            files += compared
            if problem is not None:
                problems.append(problem)
    return VerifiedRun(run.folder.name, files, recorded, tuple(dict.fromkeys(problems)))


def _step(folders: StepFolders, step: int) -> tuple[int, str | None]:
    """Files compared in a step's folder, and the first that is not what was written."""
    compared = 0
    try:
        facts = folders.facts(step)
        for name in facts["files"]:
            check_file(folders.path(step), name, facts)
            compared += 1
    except DamagedStep as damage:
        if not os.path.lexists(folders.path(step)):  # a training that goes on has removed it
            return compared, None
        return compared, f"{damage.file} is damaged: {damage.why}. --resume passes over it."
    except RankwiseError as error:
        return compared, str(error)
    return compared, None
