"""What a run that is not finished goes on from: the newest checkpoint whose every file is what was written.

A checkpoint is a sealed folder (runs/own_files.py) with the training state and a copy of each of the run's own files as
they were then: settings, manifest, data report, metrics log and, for preference pairs, the reference. So one checkpoint
that is whole is enough, whatever happened to the others and to the run's own files. What is passed over, and what is
written anew, is said in one line each. Nothing is changed before the run goes on.

A manifest that can be read decides which checkpoints are of this run. Where it agrees with none of them, it is damaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from rankwise.config.base import Config
from rankwise.config.experiment import Experiment
from rankwise.errors import RunError
from rankwise.runs.data_report import DATA_REPORT, DataReport
from rankwise.runs.directory import REFERENCE, SETTINGS, ClaimedRun, RunDirectory
from rankwise.runs.manifest import Manifest
from rankwise.runs.own_files import MANIFEST, TENSORS, DamagedStep, check_file, read_json
from rankwise.system.files import json_bytes

METRICS = "metrics.jsonl"
RUN_FILES: dict[str, type[Config] | None] = {
    SETTINGS: Experiment,
    MANIFEST: Manifest,
    DATA_REPORT: DataReport,
    REFERENCE: None,
}
"""The run's own files beside its metrics log, and what they are read as."""
CHANGING = {
    "status", "ended", "problem", "resumed", "back_offs", "warnings", "results", "result_sha256", "settings_sha256",
}  # fmt: skip
"""The parts of a manifest that are written while the run goes on."""
_Kind = TypeVar("_Kind", bound=Config)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files match their hashes; one of an earlier version has no copies, and the run's own files
    stand for them."""

    run: RunDirectory
    step: int
    facts: dict[str, Any]

    @classmethod
    def verified(cls, run: RunDirectory, step: int) -> Checkpoint:
        """DamagedStep, or a RunError for another version, where it cannot be gone on from."""
        found = cls(run, step, run.checkpoints.facts(step))
        for name in {TENSORS, *found.facts["files"]}:
            check_file(found.folder, name, found.facts)
        _ = found.experiment, found.manifest, found.data_report
        return found

    @property
    def folder(self) -> Path:
        return self.run.checkpoints.path(self.step)

    @property
    def copies(self) -> list[str]:
        """The names of the run's own files that it has."""
        return [name for name in self.facts["files"] if name != TENSORS]

    def file(self, name: str) -> Path:
        return (self.folder if name in self.copies else self.run.folder) / name

    @cached_property
    def experiment(self) -> Experiment:
        """With the run's present name, which may have changed since."""
        return read_json(self.file(SETTINGS), Experiment).model_copy(update={"run": self.run.folder.name})

    @cached_property
    def manifest(self) -> Manifest:
        return read_json(self.file(MANIFEST), Manifest)

    @cached_property
    def data_report(self) -> DataReport:
        return read_json(self.file(DATA_REPORT), DataReport)


class Resumable:
    """A run that can go on: `checkpoint` is the newest that is whole, and `lines` say what was passed over."""

    def __init__(self, run: ClaimedRun) -> None:
        """RunError with all reasons where no checkpoint is whole."""
        self.run = run
        self.lines: list[str] = []
        self._candidates = self._undamaged()
        self.checkpoint = self._first()

    def older(self, why: DamagedStep) -> bool:
        """Go back to the next older checkpoint that is whole, if there is one."""
        following = next(self._candidates, None)
        if following is not None:
            self.lines.append(_passed_over(self.checkpoint.folder, why))
            self.checkpoint = following
        return following is not None

    @property
    def experiment(self) -> Experiment:
        """The run's own, with the name that it has there; else the checkpoint's."""
        own = _read(self.run.folder / SETTINGS, Experiment)
        return own if isinstance(own, Experiment) and self._fits(own) else self.checkpoint.experiment

    @property
    def manifest(self) -> Manifest:
        """The run's own, which tells more; else the checkpoint's."""
        own = _read(self.run.folder / MANIFEST, Manifest)
        return own if isinstance(own, Manifest) and self._fits(own) else self.checkpoint.manifest

    def restored(self) -> tuple[dict[str, bytes], list[str]]:
        """The files that the run goes on with, but for the metrics log, and a line for each that was damaged."""
        files, lines = dict[str, bytes](), list[str]()
        for name, kind in RUN_FILES.items():
            file, copy = self.run.folder / name, self.checkpoint.file(name)
            own = _content(file) if kind is None else _read(file, kind)
            if isinstance(own, str) and not os.path.lexists(file) and not copy.exists():
                continue  # a reference, where there are no pairs
            if name in self.checkpoint.copies and not self._fits(own):
                why = own if isinstance(own, str) else "it differs from its copy there"
                lines.append(f"{file} was damaged and is written anew from {self.checkpoint.folder.name}: {why}")
                present = json_bytes(self.experiment.model_dump(mode="json"))  # with the run's present name
                files[name] = present if name == SETTINGS else copy.read_bytes()
            else:
                files[name] = file.read_bytes()
        if METRICS in self.checkpoint.copies:
            own, copy = _content(self.run.metrics), self.checkpoint.file(METRICS).read_bytes()
            if not (isinstance(own, bytes) and own.startswith(copy)):
                why = own if isinstance(own, str) else f"it does not begin with the {len(copy):,} bytes there"
                lines.append(
                    f"{self.run.metrics} was damaged and is written anew from {self.checkpoint.folder.name}: {why}"
                )
        return files, lines

    def _fits(self, current: object) -> bool:
        """Whether one of the run's own files can be what became of its copy in the checkpoint."""
        match current:
            case Experiment():
                renamed = current.model_copy(update={"run": self.run.folder.name})
                return renamed == self.checkpoint.experiment
            case Manifest():
                return _goes_on(current, self.checkpoint)
            case DataReport():
                return current == self.checkpoint.data_report
            case bytes():
                return current == self.checkpoint.file(REFERENCE).read_bytes()
            case _:
                return False

    def _first(self) -> Checkpoint:
        """The newest of this run; the newest at all where the run's manifest is damaged or agrees with none."""
        own, others = _read(self.run.folder / MANIFEST, Manifest), list[Checkpoint]()
        for checkpoint in self._candidates:
            if not isinstance(own, Manifest) or _goes_on(own, checkpoint):
                self.lines += [
                    f"{_passed_over(other.folder)} it is of another run, or training went back from it"
                    for other in others
                ]
                return checkpoint
            others.append(checkpoint)
        if not others:
            listed = "".join(f"\n{line}" for line in self.lines)
            raise RunError(
                f'run "{self.run.folder.name}" has no checkpoint that is whole. Use --restart to start it again from '
                f"the first step.{listed}"
            )
        self._candidates = iter(others[1:])
        return others[0]

    def _undamaged(self) -> Iterator[Checkpoint]:
        """From the newest; what is not whole gets its line as it is passed over."""
        for step in reversed(self.run.checkpoints.named):
            try:
                yield Checkpoint.verified(self.run, step)
            except DamagedStep as error:
                self.lines.append(_passed_over(self.run.checkpoints.path(step), error))
            except (RunError, KeyError, TypeError) as error:
                self.lines.append(f"{_passed_over(self.run.checkpoints.path(step))} {error}")


def _passed_over(folder: Path, error: DamagedStep | None = None) -> str:
    """The file and the cause, in a line."""
    start = f"checkpoint {folder} was passed over:"
    if error is None:
        return start
    file = error.file.name if error.file.is_relative_to(folder) else error.file
    return f"{start} {file}: {error.why}"


def _goes_on(current: Manifest, checkpoint: Checkpoint) -> bool:
    """Whether a manifest can be what became of that of a checkpoint, which lies before all steps that it went back
    from since."""
    earlier = checkpoint.manifest
    first, then = (one.model_dump(mode="json") for one in (earlier, current))
    same = all(first[key] == then[key] for key in first.keys() - CHANGING)
    lists = ((current.resumed, earlier.resumed), (current.back_offs, earlier.back_offs))
    since = current.back_offs[len(earlier.back_offs) :]
    return (
        same
        and all(now[: len(before)] == before for now, before in lists)
        and all(checkpoint.step <= one.to for one in since)
    )


def _read(file: Path, kind: type[_Kind]) -> _Kind | str:
    """A file of the run, or what is wrong with it."""
    try:
        return read_json(file, kind)
    except RunError as error:
        return str(error)


def _content(file: Path) -> bytes | str:
    if not file.is_file():
        return "it is not a regular file" if os.path.lexists(file) else "it is missing"
    try:
        return file.read_bytes()
    except OSError as error:
        return error.strerror or type(error).__name__
