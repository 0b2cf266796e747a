"""A run's folder: `runs/NAME/{config.json, data_report.json, manifest.json, metrics.jsonl, checkpoints/step-N/,
best/step-N/, adapter/, report.html, report.json}`, with `model/` for `adapter/` where the whole model learned.

What was learned appears whole or not at all, and the manifest says `finished` only after it has; then the checkpoints
go, and the snapshots of what was best so far (`best/`). A finished run is never overwritten; one that did not finish is
resumed or begun again only when asked. While it trains, a lock held by the system keeps a second process out, and is
gone with the process that held it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

from pydantic import ValidationError

from rankwise.config.base import Config
from rankwise.config.experiment import Experiment
from rankwise.errors import ConfigError, RunBusyError, RunError, did_you_mean, some
from rankwise.runs.data_report import DATA_REPORT, DataReport
from rankwise.runs.manifest import Manifest
from rankwise.system import locks
from rankwise.system.files import told_when_full, write_json

LARGEST_JSON = 10_000_000
REPORTS = ("report.html", "report.json")
SETTINGS = "config.json"
RESULTS = ("adapter", "model")
CARD = "README.md"
"""The model card, in the folder of a result."""
_STEP = re.compile(r"step-([1-9][0-9]{0,14})")
_Kind = TypeVar("_Kind", bound=Config)


@dataclass(frozen=True)
class RunDirectory:
    folder: Path

    @classmethod
    def named(cls, name: str) -> RunDirectory:
        return cls(Path("runs") / name)

    @property
    def is_run(self) -> bool:
        """Whether the folder holds a run at all, finished or not."""
        names = ("manifest.json", SETTINGS)
        return all(os.path.isfile(self.folder / name) for name in names)  # noqa: PTH113  is_file raises on long names

    def forget_results(self) -> None:
        self._remove(*(self.folder / name for name in RESULTS))

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def page(self) -> Path:
        return self.folder / REPORTS[0]

    @property
    def reference(self) -> Path:
        """What a run over preference pairs compares with, until it is finished."""
        return self.folder / "reference.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def steps_saved(self) -> list[int]:
        return _steps_in(self.checkpoints)

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"

    def forget_checkpoints(self, *, but: int | None = None) -> None:
        _forget_steps(self.checkpoints, {but})

    @property
    def snapshots(self) -> Path:
        return self.folder / "best"

    @property
    def steps_kept(self) -> list[int]:
        return _steps_in(self.snapshots)

    def snapshot(self, step: int) -> Path:
        return self.snapshots / f"step-{step}"

    def forget_snapshots(self, *, but: Collection[int] = ()) -> None:
        _forget_steps(self.snapshots, but)

    def forget_steps(self) -> None:
        """What only a run that goes on has a use for."""
        self.forget_checkpoints()
        self.forget_snapshots()
        self._remove(self.reference)

    @property
    def ways_on(self) -> str:
        """What to do with a run that is not finished."""
        saved = f"--resume to continue from step {self.steps_saved[-1]}, or " if self.steps_saved else ""
        return f"{saved}--restart to start it again from the first step"

    def write_manifest(self, manifest: Manifest) -> None:
        write_json(self.folder / "manifest.json", manifest.model_dump(mode="json"))

    def manifest(self) -> Manifest:
        return read_json(self.folder / "manifest.json", Manifest)

    def write_data_report(self, data_report: DataReport) -> None:
        write_json(self.folder / DATA_REPORT, data_report.model_dump(mode="json"))

    @contextmanager
    def claimed(self, *, restart: bool, resume: bool = False) -> Iterator[None]:
        """Hold the name for writing. A claim that wrote nothing leaves nothing."""
        lock = self._locked()
        try:
            self._check_free(restart=restart, resume=resume)
            yield
        finally:
            if not self._names() & {"manifest.json", SETTINGS}:  # still held, so nobody else can have begun here
                with suppress(OSError):  # a folder of something else; Windows removes no open file
                    (self.folder / ".lock").unlink(missing_ok=True)
                    self.folder.rmdir()
            os.close(lock)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other writer out of a run that is there, whatever state it is in."""
        lock = self._locked()
        try:
            yield
        finally:
            os.close(lock)

    def begin(self, experiment: Experiment) -> None:
        """Remove what an unfinished attempt left, and write what was asked.

        The manifest goes last: as long as it is there, this is a run, and can be begun again.
        """
        self.forget_steps()
        self.forget_results()
        reports = (self.folder / name for name in REPORTS)
        self._remove(self.folder / DATA_REPORT, self.metrics, *reports, *self.folder.glob(".*.tmp"))
        self._remove(self.folder / "manifest.json")
        write_json(self.folder / SETTINGS, experiment.model_dump(mode="json"))

    def go_on(self, step: int) -> None:
        """Remove what an attempt left that came further than its checkpoint."""
        self.forget_checkpoints(but=step)
        self.forget_snapshots(but=[kept for kept in self.steps_kept if kept <= step])
        self.forget_results()
        self._remove(*self.folder.glob(".*.tmp"))

    @staticmethod
    def _remove(*paths: Path) -> None:
        for left in paths:
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)

    def _names(self) -> set[str]:
        """What stands here to be seen: the lock and the temporary files of a killed process do not count."""
        return {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}

    def _check_free(self, *, restart: bool, resume: bool) -> None:
        left = self._names()
        if "manifest.json" not in left:
            if left - {SETTINGS}:
                raise RunError(
                    f"{self.folder} contains {some(sorted(left), 4)} and is not a run. Use another --run name."
                )
            if resume:
                raise RunError(
                    f'run "{self.folder.name}" does not exist yet, so it cannot be resumed. Leave out --resume to '
                    "start it."
                )
            return
        manifest = self.manifest()
        if manifest.status == "finished":
            raise RunError(
                f'run "{self.folder.name}" is finished ({manifest.ended}) and is not overwritten. '
                "Use another --run name."
            )
        if resume and not self.steps_saved:
            raise RunError(
                f'run "{self.folder.name}" has no checkpoint to resume from ({manifest.status}). '
                f"Use {self.ways_on}. training.checkpoint_steps sets how often a checkpoint is written."
            )
        if not (restart or resume):
            raise RunError(
                f'run "{self.folder.name}" was started {manifest.started} and is not finished ({manifest.status}). '
                f"Use another --run name, {'' if self.steps_saved else 'or '}{self.ways_on}."
            )

    def _locked(self) -> int:
        """The open lock file, held. A lock that its last owner removed while we waited for it is no lock."""
        while True:
            with told_when_full(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._hold(lock)
            except BaseException:
                os.close(lock)
                raise
            if os.fstat(lock).st_nlink > 0:
                return lock
            os.close(lock)

    def _hold(self, lock: int) -> None:
        if not locks.lock(lock):
            raise RunBusyError(
                f'run "{self.folder.name}" is being written by process {locks.owner_of(lock)}. '
                "Use another --run name, or stop that process."
            )


def _steps_in(folder: Path) -> list[int]:
    """In order; what else lies in the folder is not ours."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(name[1]) for path in found if (name := _STEP.fullmatch(path.name)))


def _forget_steps(folder: Path, but: Collection[int | None]) -> None:
    for step in _steps_in(folder):
        if step not in but:
            shutil.rmtree(folder / f"step-{step}")
    for left in folder.glob(".step-*.tmp"):
        shutil.rmtree(left)
    with suppress(OSError):  # one is kept
        folder.rmdir()


def find_run(name: str) -> RunDirectory | None:
    """A run, finished or not, by its name or its folder."""
    for run in (RunDirectory.named(name), RunDirectory(Path(name))):
        if os.path.isfile(run.folder / "manifest.json"):  # noqa: PTH113  is_file raises where a name is too long
            return run
    return None


def open_any_run(name: str) -> RunDirectory:
    """One that must be there, finished or not."""
    run = find_run(name)
    if run is not None:
        return run
    known = sorted(path.parent.name for path in Path("runs").glob("*/manifest.json"))
    listed = f" Runs here: {some(known)}." if known else " There are no runs in this folder yet."
    raise RunError(f'there is no run "{name}".{did_you_mean(name, known)}{listed}')


def read_json(path: Path, kind: type[_Kind], largest: int = LARGEST_JSON) -> _Kind:
    """One of a run's own files, or a RunError that names what is wrong with it."""
    try:
        there = path.stat()
        if not S_ISREG(there.st_mode):  # a pipe would be waited for
            raise RunError(f"{path} is not a regular file.")
        if there.st_size > largest:
            raise RunError(f"{path} has {there.st_size:,} bytes; a run's own file is never that large.")
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RunError(f"{path} is missing: this folder is not a complete run.") from None
    except (ValueError, TypeError, RecursionError, ValidationError, OSError) as error:
        if isinstance(error, RunError):
            raise
        detail = error.problems[0] if isinstance(error, ConfigError) else type(error).__name__
        raise RunError(f"{path} is damaged or was written by another version: {detail}") from None
