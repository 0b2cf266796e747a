"""List, show, rename and delete the runs of the current folder, without loading a model.

A run's name is part of its settings, evaluations and reports, and of the comparison reports of other runs. Renaming
updates all of them; the command that made the run stays in the manifest as it was typed.

A run may be logged to trackers afterwards: they get the records of its metrics log, as they would have while it
trained, and the evaluations that were made since.

What `train --from` and `plan --from` take over from an adapter before a model is loaded, its base and its settings, is
here too. Nothing of torch is imported unless there is an adapter to look at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rankwise.commands.report import report, write_page
from rankwise.config.experiment import Experiment, TrackingConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError, RankwiseError, TrackingError, first_line
from rankwise.runs.directory import CARD, RunDirectory, ask_to_end, find_run, open_any_run
from rankwise.runs.evaluations import FOLDER
from rankwise.runs.integrity import VerifiedRun, verify
from rankwise.runs.listing import RUNS, UNREADABLE, ListedRun, folder_bytes, listed, listed_runs, run_names
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.queue import Ended, Queue, Waiting, Working
from rankwise.runs.records import Callback, StatusMessage, silent
from rankwise.runs.snapshot import RunSnapshot
from rankwise.runs.upkeep import check_deletable, check_renamable, delete, entry, rename
from rankwise.system.extras import check_installed
from rankwise.system.files import sha256_of, write_atomic
from rankwise.tracking import Following

_Kind = TypeVar("_Kind", bound=Experiment)
SECONDS_TO_LOG = 600.0
BETWEEN = " \u00b7 "
"""Separates the names in the title of a comparison report."""


@dataclass(frozen=True)
class Runs:
    runs: list[ListedRun]


@dataclass(frozen=True)
class VerifiedRuns:
    runs: list[VerifiedRun]

    @property
    def is_undamaged(self) -> bool:
        return not any(run.problems for run in self.runs)

    def summary(self) -> dict[str, Any]:
        """What `rankwise runs verify --json` prints."""
        return {"whole": self.is_undamaged, "runs": self.runs}


@dataclass(frozen=True)
class ShownRun:
    """Details of one run. `parts` maps entries of its folder to their sizes; `snapshot` is None if unreadable."""

    run: ListedRun
    folder: Path
    parts: dict[str, int]
    evaluations: list[str]
    snapshot: RunSnapshot | None

    def summary(self) -> dict[str, Any]:
        """What `rankwise runs show --json` prints."""
        return {
            **vars(self.run), "folder": self.folder, "parts": self.parts, "evaluations": self.evaluations,
            "manifest": self.snapshot and self.snapshot.manifest,
        }  # fmt: skip


@dataclass(frozen=True)
class RenamedRun:
    old: str
    new: str
    pages: list[str] = field(default_factory=list)
    """Reports rewritten because they contained the old name."""


@dataclass(frozen=True)
class Deletion:
    """Runs that can be deleted, and the disk space this frees."""

    runs: list[RunDirectory]
    bytes: int

    @property
    def names(self) -> list[str]:
        return [run.folder.name for run in self.runs]

    def summary(self) -> dict[str, Any]:
        """What `rankwise runs delete --json` prints."""
        return {"deleted": self.names, "bytes": self.bytes}


def runs() -> Runs:
    return Runs(listed_runs())


def verify_runs(names: Sequence[str]) -> VerifiedRuns:
    """Compare all recorded hashes of these runs, or of all. What a killed training left in a finished run goes."""
    verified = VerifiedRuns([verify(entry(name)) for name in names or run_names()])
    for one in verified.runs:
        with suppress(RankwiseError, OSError):  # another process is at it, or the disk is read only
            if one.left and (run := entry(one.name)):
                with run.locked():
                    run.forget_steps()
    return verified


def show(name: str) -> ShownRun:
    run = entry(name)
    run_facts = listed(run.folder.name)
    snapshot = None if run_facts.status == UNREADABLE else RunSnapshot.of(run)
    parts = {path.name: _bytes(path) for path in sorted(run.folder.iterdir()) if not path.name.startswith(".")}
    evaluations = sorted(path.stem for path in (run.folder / FOLDER).glob("*.json"))
    return ShownRun(run_facts, run.folder, parts, evaluations, snapshot)


def _bytes(path: Path) -> int:
    try:
        return folder_bytes(path) if path.is_dir() else path.lstat().st_size
    except FileNotFoundError:  # a training has just removed it
        return 0


def rename_run(old: str, new: str, callback: Callback = silent) -> RenamedRun:
    # imported late, so that listing runs stays fast, and before anything is renamed: Ctrl-C ends an import of torch
    from rankwise.methods.model_card import retitled

    run = entry(old)
    check_renamable(run, new)
    before = run.folder.name
    renamed = rename(run, new)
    Queue().rename(before, new)
    _change_card(renamed, lambda card: retitled(card, new))
    pages = [str(renamed.page)] if renamed.page.exists() else []
    if pages:
        write_page(RunSnapshot.of(renamed), callback)
    return RenamedRun(before, new, pages + _compared_again(before, new, callback))


def _change_card(run: RunDirectory, changed: Callable[[str], str]) -> None:
    """The model card of the adapter, and its hash in the manifest, unless the card was edited."""
    snapshot = RunSnapshot.of(run)
    manifest, card = snapshot.manifest, snapshot.result / CARD
    name, recorded = card.relative_to(run.folder).as_posix(), manifest.result_sha256 or {}
    if name in recorded and card.is_file() and sha256_of(card) == recorded[name]:
        write_atomic(card, changed(card.read_text(encoding="utf-8")).encode())
        run.write_manifest(manifest.model_copy(update={"result_sha256": {**recorded, name: sha256_of(card)}}))


def _compared_again(old: str, new: str, callback: Callback) -> list[str]:
    """Rewrite the comparison reports that contain the run's old name."""
    rewritten = []
    for page in [page for name in run_names() for page in sorted((RUNS / name).glob("against-*.html"))]:
        names = _names_in(page.with_suffix(".json"))
        if old not in names:
            continue
        try:
            reported = report([new if name == old else name for name in names])
        except (RankwiseError, OSError) as error:
            callback(
                StatusMessage(
                    f'{page} still says "{old}" for the run "{new}"; it could not be rewritten: {first_line(error)}'
                )
            )
            continue
        rewritten.append(str(reported.page))
        if reported.page.name != page.name:
            page.unlink()
            page.with_suffix(".json").unlink()
    return rewritten


def _names_in(data: Path) -> list[str]:
    try:
        title = json.loads(data.read_text(encoding="utf-8"))["title"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return title.split(BETWEEN) if isinstance(title, str) else []


def end_run(name: str) -> None:
    """Ask a training to end with the step that it is at, and to save its result."""
    ask_to_end(entry(name))


def deletion(names: Sequence[str]) -> Deletion:
    """Check that all runs can be deleted, without changing anything."""
    chosen = list({run.folder.name: run for run in map(entry, names)}.values())
    check_deletable(chosen)
    return Deletion(chosen, sum(folder_bytes(run.folder) for run in chosen))


def delete_runs(names: Sequence[str]) -> Deletion:
    """Delete all runs, or none if one cannot be deleted."""
    planned = deletion(names)
    for run in planned.runs:
        delete(run)
        Queue().forget(run.folder.name)
    return planned


@dataclass(frozen=True)
class LoggedRun:
    run: RunDirectory
    config: TrackingConfig
    records: int
    """Lines of the metrics log."""

    def summary(self) -> dict[str, Any]:
        """What `rankwise runs log --json` prints."""
        return {"run": self.run.folder, **self.config.model_dump(mode="json"), "records": self.records}


def log_run(name: str, config: TrackingConfig) -> LoggedRun:
    """TrackingError where a tracker cannot take the records, after the others have."""
    if not config.log_to:
        raise ConfigError(["--to names no tracker."])
    check_installed(config.log_to)
    run = open_any_run(name)
    problems: list[str] = []
    with run.locked():
        records = len(read_metrics_log(run.metrics))
        Following(run, config.log_to, config.project, problems.append).end(SECONDS_TO_LOG)
    if problems:
        raise TrackingError("\n".join(problems))
    return LoggedRun(run, config, records)


@dataclass(frozen=True)
class QueueState:
    working: Working | None
    waiting: list[Waiting]
    ended: list[Ended]
    """Trainings that the queue started and that ended without finishing."""

    def summary(self) -> dict[str, Any]:
        """What `rankwise queue --json` prints."""
        return {
            "working": self.working,
            "waiting": [one.model_dump(mode="json", include={"run", "added", "resume"}) for one in self.waiting],
            "failed": self.ended,
        }

    def lines(self) -> list[str]:
        lines = [] if self.working is None else [f"{self.working.run}  running since {self.working.started}"]
        lines += [f"{one.run}  waiting since {one.added}" for one in self.waiting]
        lines += [f"{one.run}  ended: {one.problem}" for one in self.ended]
        return lines or ["No training waits."]


def waiting_runs() -> QueueState:
    queue = Queue()
    queue.start_worker()
    names = sorted(file.stem for file in (queue.folder / "logs").glob("*.log"))
    ended = [one for one in map(queue.ended, names) if one is not None and one.problem is not None]
    return QueueState(queue.working(), queue.waiting(), ended)


def base_of_start(start_from: str, run: Any = None) -> ModelConfig:
    """The base model of the adapter that a new training begins with. `run` is the training's own name."""
    from rankwise.methods.starting import base_named_by

    return base_named_by(start_from)


def base_of_run(start_from: str, run: Any = None) -> ModelConfig:
    """The base model of a training that is resumed, as its run recorded it, since the adapter that it began with may be
    gone; without such a run, the base model of `start_from`."""
    begun = find_run(run) if isinstance(run, str) else None
    return base_of_start(start_from) if begun is None else RunSnapshot.of(begun).experiment.model


def as_continued(planned: _Kind) -> _Kind:
    """The settings with those of the adapter in `adapter.start_from`, or as they are where none is named."""
    if planned.adapter.start_from is None:
        return planned
    from rankwise.methods.starting import planned_with

    return planned.model_copy(update={"adapter": planned_with(planned.adapter)})
