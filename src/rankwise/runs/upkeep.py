"""Renaming and deleting runs: everything is checked before anything changes, and only folders of the runs folder are
touched.

Runs that another process is writing are refused, and so are runs that contain the base model of other runs. Links are
never followed. A folder is renamed before it is deleted, so that no process sees half of a run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.config.base import OF_NAMES
from rankwise.config.experiment import RUN_NAME
from rankwise.errors import RunBusyError, RunError, did_you_mean, some
from rankwise.runs.directory import RunDirectory, writer_of
from rankwise.runs.evaluations import evaluation_folder
from rankwise.runs.listing import RUNS, run_names
from rankwise.runs.own_files import with_hash
from rankwise.runs.queue import Queue
from rankwise.runs.snapshot import RunSnapshot
from rankwise.system.files import move, told_when_full, write_json

OF_A_RUN = ("manifest.json", "config.json", "data_report.json")


def entry(name: str) -> RunDirectory:
    """Find a run of the runs folder by its name, or by `runs/NAME` as a shell completes it."""
    path = Path(name.replace("\0", ""))  # which no name of a file has
    bare = path.name if len(path.parts) > 1 and path.parent.resolve() == RUNS.resolve() else name
    if bare not in run_names():
        known = run_names()
        listed = f" Runs here: {some(known)}." if known else f" There are no runs in {RUNS.absolute()}."
        raise RunError(f'there is no run "{name}" in {RUNS}/.{did_you_mean(name, known)}{listed}')
    return RunDirectory.named(bare)


def check_deletable(runs: Sequence[RunDirectory]) -> None:
    """Refuse the deletion with all reasons at once."""
    problems = [problem for run in runs if (problem := _undeletable(run)) is not None]
    leaving = {run.folder.name for run in runs}
    for run in runs:
        staying = [name for name in dependents(run) if name not in leaving]
        if staying:
            problems.append(
                f'run "{run.folder.name}" contains the base model of {some(staying)}. '
                "Delete these runs too, or keep all of them."
            )
    _refuse_busy(runs)
    _refuse_queued(runs)
    if problems:
        raise RunError("\n".join(problems))


def _undeletable(run: RunDirectory) -> str | None:
    if run.folder.is_symlink():
        return f"{run.folder} is a link to {os.readlink(run.folder)}, and links are not followed. Remove it yourself."  # noqa: PTH115
    if not any((run.folder / name).exists() for name in OF_A_RUN):
        return f"{run.folder} is not a run: it has none of {', '.join(OF_A_RUN)}. Remove it yourself."
    return None


def _refuse_busy(runs: Sequence[RunDirectory]) -> None:
    busy = [(run.folder.name, process) for run in runs if (process := writer_of(run)) is not None]
    if busy:
        name, process = busy[0]
        raise RunBusyError(f'run "{name}" is being written by process {process}. Wait until it ends, or stop it.')


def _refuse_queued(runs: Sequence[RunDirectory]) -> None:
    """A training that is to go on, or is started just now, would not find its run."""
    queue = Queue()
    waiting, working = {file.stem for file in queue.entries()}, queue.working()
    for run in runs:
        name = run.folder.name
        if name in waiting:
            raise RunError(f'run "{name}" waits in the queue. Take it out first: rankwise queue remove {name}')
        if working is not None and working.run == name:
            raise RunBusyError(f'run "{name}" is being started by the queue. Wait until it ends, or stop it.')


def delete(run: RunDirectory) -> None:
    """Delete a run that `check_deletable` has accepted."""
    with run.locked() as lock:
        leaving = run.folder.with_name(f".{run.folder.name}.{os.getpid()}.tmp")
        with told_when_full(run.folder):
            lock.loosen()
            move(run.folder, leaving)
    with told_when_full(leaving):
        shutil.rmtree(leaving)


def dependents(run: RunDirectory) -> list[str]:
    """List runs whose base model is inside this run. Unreadable runs count as having none."""
    inside, found = run.folder.resolve(), []
    for name in run_names():
        other = RunDirectory.named(name)
        try:
            model = Path(RunSnapshot.of(other).experiment.model.name).resolve()
        except (ValueError, OSError):  # also a name that no path can have
            continue
        if name != run.folder.name and (model == inside or inside in model.parents):
            found.append(name)
    return found


def check_renamable(run: RunDirectory, new: str) -> None:
    if run.folder.is_symlink():
        raise RunError(f"{run.folder} is a link to {os.readlink(run.folder)}, and links are not followed.")  # noqa: PTH115
    if not re.fullmatch(RUN_NAME, new):
        raise RunError(f'"{new[:80]}" cannot be the name of a run, which has {OF_NAMES}.')
    if os.path.lexists(RUNS / new):
        raise RunError(f"{RUNS / new} already exists. Choose another name.")
    if based := dependents(run):
        raise RunError(
            f'run "{run.folder.name}" contains the base model of {some(based)}, which would not find it under '
            "another name. It was not renamed."
        )
    _refuse_busy([run])
    _refuse_queued([run])
    if Queue().entry(new).exists():
        raise RunError(f'a run "{new}" waits in the queue. Choose another name.')
    evaluation_folder(run)
    RunSnapshot.of(run)  # a run with unreadable settings cannot be renamed in them


def rename(run: RunDirectory, new: str) -> RunDirectory:
    """Rename a run that `check_renamable` has accepted: first the folder, then the name in each of its files."""
    renamed, old = RunDirectory.named(new), run.folder.name
    with run.locked() as lock:
        with told_when_full(renamed.folder):
            lock.loosen()
            move(run.folder, renamed.folder)
        _replace(renamed.folder / "config.json", "run", new)
        for file in sorted(evaluation_folder(renamed).glob("*.json")):
            _replace(file, "model", new, old)
    return renamed


def _replace(file: Path, key: str, new: str, old: str | None = None) -> None:
    """Replace one value of a JSON object, if `old` is given only where it matches. Unreadable files stay unchanged."""
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(content, dict) and (old is None or content.get(key) == old):
        was_whole, content = content == with_hash(content), content | {key: new}
        write_json(file, with_hash(content) if was_whole else content)
