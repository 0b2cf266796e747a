"""Every recorded hash of a run, compared with the file that it was recorded of.

Those of the result, the settings and the metrics log are in the manifest of a finished run. Evaluations, the data of
reports, checkpoints and snapshots have their own.

The manifest has no hash of its own outside of checkpoints, and neither have the settings of a run that is not finished;
they must be readable.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rankwise.config.experiment import Experiment
from rankwise.errors import RankwiseError, first_line
from rankwise.runs.data_report import DATA_REPORT, DataReport
from rankwise.runs.directory import SETTINGS, RunDirectory
from rankwise.runs.evaluations import FOLDER
from rankwise.runs.integrity import compare_result
from rankwise.runs.own_files import read_json
from rankwise.runs.sealed import DamagedStep, check_file, with_hash
from rankwise.runs.snapshot import RunSnapshot
from rankwise.runs.step_folders import StepFolders

FINISHED = "finished"
CHANGED = "is missing or is not what was written: it does not match its recorded hash."


@dataclass(frozen=True)
class VerifiedRun:
    """`files` is the number of files whose hash was compared; `recorded` is False for results of versions without."""

    name: str
    files: int
    recorded: bool
    problems: tuple[str, ...]
    left: tuple[str, ...] = ()
    """Folders in a finished run that a killed training was about to remove."""

    def summary(self) -> dict[str, Any]:
        return asdict(self)


def verify(run: RunDirectory) -> VerifiedRun:
    problems: list[str] = []
    files, recorded, left = 0, True, list[str]()
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
            known = snapshot.manifest.result_sha256 or {}
            problems += [f"{run.folder / name} {CHANGED}" for name in integrity.other if name in known]
            files, recorded = integrity.files, integrity.status != "not recorded"
            for folders in (run.checkpoints, run.snapshots):
                left += map(str, [*folders.left, *map(folders.path, folders.steps)])
    except RankwiseError as error:
        problems.append(str(error))
    for folders in (run.checkpoints, run.snapshots):
        for step in folders.named:
            compared, problem = _step(folders, step)
            files += compared
            if problem is not None:
                problems.append(problem)
    for file in sorted([*(run.folder / FOLDER).glob("*.json"), *run.folder.glob("report.json"),
                        *run.folder.glob("against-*.json")]):  # fmt: skip
        compared, problem = _with_own_hash(file)
        files += compared
        problems += problem
    return VerifiedRun(run.folder.name, files, recorded, tuple(dict.fromkeys(problems)), tuple(left))


def _with_own_hash(file: Path) -> tuple[bool, list[str]]:
    """Whether a file has a hash of itself, which earlier versions did not write, and what is wrong with it."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return False, [f"{file} cannot be read: {first_line(error)}."]
    if not isinstance(content, dict) or "sha256" not in content:
        return False, []
    return True, [] if content == with_hash(content) else [f"{file} {CHANGED}"]


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
