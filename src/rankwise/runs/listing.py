"""The list of runs: one entry per folder of the runs folder, whatever its state.

A folder that is not a run, or whose files are damaged, has the status `unreadable`, and `problem` says why. A manifest
says `running` until its process ends. If that process was killed, the run's lock is free, and the status is
`interrupted`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rankwise.config.base import JsonObject
from rankwise.errors import RankwiseError, RunError, first_line
from rankwise.runs.directory import RunDirectory, writer_of
from rankwise.runs.manifest import Manifest
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.own_files import MANIFEST
from rankwise.runs.snapshot import RunSnapshot

RUNS = Path("runs")
UNREADABLE, STARTING = "unreadable", "starting"
Status = Literal["running", "finished", "failed", "interrupted", "unreadable"]


@dataclass(frozen=True)
class ListedRun:
    """One run. `rows`, `steps` and losses are None if not reached yet or unreadable."""

    name: str
    status: Status
    bytes: int
    problem: str | None = None
    model: str | None = None
    method: str | None = None
    rows: int | None = None
    steps: int | None = None
    loss: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    started: str | None = None
    ended: str | None = None
    rounds: int | None = None
    """Trainings that its result has had, this one included: 1 for a new adapter."""


def run_names() -> list[str]:
    """List the visible folders of the runs folder, sorted by name."""
    if not RUNS.is_dir():
        return []
    return sorted(path.name for path in RUNS.iterdir() if path.is_dir() and not path.name.startswith("."))


def listed_runs() -> list[ListedRun]:
    """List all runs: running ones first, then the most recently ended, unreadable ones last."""
    runs = [listed(name) for name in run_names()]
    runs.sort(key=lambda run: (run.status == "running", run.ended or run.started or ""), reverse=True)
    return runs


def listed(name: str) -> ListedRun:
    """Describe one folder without raising: anything wrong with it becomes its `problem`."""
    run = RunDirectory.named(name)
    size = folder_bytes(run.folder)
    try:
        _refuse_special(run)
        snapshot = RunSnapshot.of(run)
        manifest, experiment = snapshot.manifest, snapshot.experiment
    except (RankwiseError, OSError) as error:
        return ListedRun(name, UNREADABLE, size, first_line(error))
    facts: JsonObject = {
        "problem": manifest.problem, "model": manifest.base_model.name, "method": experiment.adapter.method,
        "rows": manifest.data.rows, "started": manifest.started, "ended": manifest.ended,
        "rounds": len(manifest.lineage) + 1,
    }  # fmt: skip
    return ListedRun(name, status_of(run, manifest), size, **facts, **_progress(run, manifest))


def _refuse_special(run: RunDirectory) -> None:
    """Refuse pipes and other special files, which could block reading for ever."""
    for file in (run.folder / "manifest.json", run.folder / "config.json", run.metrics):
        if file.exists() and not file.is_file():
            raise RunError(f"{file} is not a file.")


def status_of(run: RunDirectory, manifest: Manifest) -> Status:
    """That of the manifest, unless it says `running` and its process is gone."""
    return "interrupted" if manifest.status == "running" and writer_of(run) is None else manifest.status


def present_status(run: RunDirectory, recorded: Status) -> Status | Literal["starting"]:
    """`starting` where a process has the run, and its manifest is missing or of an earlier attempt: older than the
    lock. A finished run is none of these, although its process still writes the report, and other commands may lock
    it; nor is one that failed just now, whose process may still hand records to trackers."""
    begins = recorded not in ("running", "finished") and writer_of(run) is not None
    return STARTING if begins and not _ended_since_locked(run) else recorded


def _ended_since_locked(run: RunDirectory) -> bool:
    with suppress(OSError):
        return (run.folder / MANIFEST).stat().st_mtime_ns > (run.folder / ".lock").stat().st_mtime_ns
    return False


def _progress(run: RunDirectory, manifest: Manifest) -> JsonObject:
    """Return the results of a finished run, or else the latest values of its metrics log."""
    if manifest.results is not None:
        of = manifest.results
        return {
            "steps": of.steps, "loss": of.loss, "validation_loss": of.validation_loss_after,
            "validation_accuracy": of.validation_accuracy_after,
        }  # fmt: skip
    found: JsonObject = {}
    try:
        rows = read_metrics_log(run.metrics)
    except (OSError, RunError):
        return found
    for row in rows:
        kind = row.get("kind") if isinstance(row, dict) else None
        if kind == "step":
            found |= {"steps": row.get("step"), "loss": row.get("loss")}
        elif kind == "validation":
            found["validation_loss"] = row.get("loss")
        elif kind == "score" and row.get("metric") == "accuracy":
            found["validation_accuracy"] = row.get("value")
    return {key: value for key, value in found.items() if isinstance(value, int | float)}


def folder_bytes(folder: Path) -> int:
    """Sum the sizes of all files. Links count as themselves, not their targets."""
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.lstat(os.path.join(place, file)).st_size  # noqa: PTH118
            except OSError:  # removed in the meantime
                continue
    return total
