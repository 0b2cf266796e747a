"""A run's folder: `runs/NAME/{config.json, data_report.json, manifest.json, metrics.jsonl, checkpoints/step-N/,
best/step-N/, adapter/, report.html, report.json}`, with `model/` for `adapter/` where the whole model learned.

What was learned appears whole or not at all, and the manifest says `finished` only after it has; then the checkpoints
go, and the snapshots of what was best so far (`best/`). A finished run is never overwritten; one that did not finish is
resumed or begun again only when asked. While it trains, a lock held by the system keeps a second process out, and is
gone with the process that held it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Any, Self

from rankwise.config.base import JsonObject
from rankwise.errors import RunBusyError, RunError, some
from rankwise.runs.data_report import DATA_REPORT, DataReport
from rankwise.runs.manifest import Manifest
from rankwise.runs.own_files import (
    MANIFEST,
    SETTINGS,
    StepFolders,
    find_folder,
    folder_of,
    read_json,
    set_aside,
    with_hash,
)
from rankwise.system.files import json_bytes, told_when_full, write_atomic
from rankwise.system.locks import Lock, owner_if_locked, owner_of

REPORTS = ("report.html", "report.json")
TRACKING = "tracking"
RESULTS = ("adapter", "model")
OF_RESULTS = ("evaluations", "strength.json")
"""What was measured of a result (runs/evaluations.py)."""
CARD = "README.md"
"""The model card, in the folder of a result."""
SIGNATURE = "model.sig"
"""The signature of a folder, in it, as `rankwise sign` writes it."""
REFERENCE = "reference.json"
END_REQUEST = ".end"  # that the training ends with a result (runs/directory.py)
BEGINNING = {SETTINGS, DATA_REPORT, REFERENCE}
"""What a run has before its first manifest."""
STEPS = {"checkpoints", "best"}
_LEFT = re.compile(r"\..+\.[0-9]+\.tmp")
"""What a killed process was writing."""


@dataclass(frozen=True)
class RunDirectory:
    """A run that this process reads, or changes while it holds the lock."""

    folder: Path

    @classmethod
    def named(cls, name: str) -> Self:
        return cls(Path("runs") / name)

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def page(self) -> Path:
        return self.folder / REPORTS[0]

    @property
    def checkpoints(self) -> StepFolders:
        return StepFolders(self.folder / "checkpoints")

    @property
    def steps_saved(self) -> list[int]:
        return self.checkpoints.steps

    @property
    def snapshots(self) -> StepFolders:
        return StepFolders(self.folder / "best")

    def forget_steps(self) -> None:
        """What only a run that goes on has a use for."""
        self.checkpoints.forget()
        self.snapshots.forget()
        _remove(self.folder / REFERENCE)

    def write(self, name: str, value: JsonObject | list[Any]) -> None:
        write_atomic(self.folder / name, json_bytes(value))

    def write_manifest(self, manifest: Manifest) -> None:
        self.write(MANIFEST, with_hash(manifest.model_dump(mode="json")))

    def manifest(self) -> Manifest:
        return read_json(self.folder / MANIFEST, Manifest)

    @contextmanager
    def claimed(self, *, restart: bool, resume: bool = False) -> Iterator[ClaimedRun]:
        """Hold the name for writing. A claim that wrote nothing leaves nothing."""
        with self.locked() as lock:
            run = ClaimedRun(self.folder, lock)
            try:
                if (manifest := self.folder / MANIFEST).is_file():
                    run.files[MANIFEST] = manifest.read_bytes()
                _check_free(run, restart=restart, resume=resume)
                yield run
            finally:
                with suppress(OSError):  # a folder of something else
                    if not _names(self.folder) & {MANIFEST, *BEGINNING}:  # nobody else can have begun here
                        lock.remove()
                        self.folder.rmdir()

    @contextmanager
    def locked(self) -> Iterator[Lock]:
        """Keep every other writer out of a run, whatever state it is in."""
        path = self.folder / ".lock"
        try:
            with told_when_full(self.folder):
                lock = Lock.with_folder(path)
        except BlockingIOError:
            raise RunBusyError(
                f'run "{self.folder.name}" is being written by process {owner_of(path)}. '
                "Use another --run name, or stop that process."
            ) from None
        try:
            yield lock
        finally:
            lock.release()


@dataclass(frozen=True)
class ClaimedRun(RunDirectory):
    """A run that this process trains, as long as it holds `lock`. `files` are the run's own files as it last wrote
    them."""

    lock: Lock | None = field(default=None, compare=False, repr=False)
    files: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)

    @property
    def reference(self) -> Path:
        """What a run over preference pairs compares with, until it is finished."""
        return self.folder / REFERENCE

    def check_lock(self) -> None:
        """RunBusyError where the lock of a claimed run is no longer ours, so that another process may be writing.

        A lock file that was only removed, as those do that clean up hidden files, is locked anew.
        """
        if self.lock is None or self.lock.is_there:
            return
        with suppress(OSError, RunError):
            if not os.path.lexists(self.lock.path) and self._is_as_written():
                self.lock.take_again()
                if self._is_as_written():  # nobody began and ended here in the meantime
                    return
        raise RunBusyError(
            f"{self.lock.path} was removed or replaced, so process {owner_of(self.lock.path)} may be writing run "
            f'"{self.folder.name}" as well. This process stopped and wrote nothing more.'
        )

    def write(self, name: str, value: JsonObject | list[Any]) -> None:
        self.check_lock()
        content = json_bytes(value)
        write_atomic(self.folder / name, content)
        self.files[name] = content

    def write_data_report(self, data_report: DataReport) -> None:
        self.write(DATA_REPORT, data_report.model_dump(mode="json"))

    def begin(self, settings: JsonObject) -> None:
        """Remove what an earlier attempt left, and write what was asked.

        At every moment the folder is free or an unfinished run, which can be begun again: the manifest of a finished
        run says first that it is not, the old manifest stays until the new one takes its place, and where it is
        damaged, the checkpoints go after it.
        """
        self.check_lock()
        with suppress(RunError):
            if (manifest := self.manifest()).status == "finished":
                self.write_manifest(manifest.model_copy(update={"status": "interrupted", "results": None}))
        self.forget_results()
        earlier = (DATA_REPORT, TRACKING, *REPORTS, *OF_RESULTS)
        _remove(self.metrics, *(self.folder / name for name in earlier), *_left(self.folder))
        try:
            self.manifest()
        except RunError:
            _remove(self.folder / MANIFEST)
            self.files.clear()
        self.forget_steps()
        self.write(SETTINGS, settings)

    def go_on(self, step: int, files: Mapping[str, bytes]) -> list[str]:
        """Remove what an attempt left that came further than its checkpoint, and write the run's files as they were
        then, each where it is not so. Returns what was in the way."""
        self.check_lock()
        for folders in (self.checkpoints, self.snapshots):
            folders.forget(but=[earlier for earlier in folders.steps if earlier <= step])
        self.forget_results()
        _remove(*_left(self.folder))
        moved = self._write_anew(files)
        self.files.update(files)
        return moved

    def write_lost(self) -> list[str]:
        """Write anew what is no longer what this process wrote when the run began, and say so."""
        self.check_lock()
        lost = {
            name: content
            for name, content in self.files.items()
            if name in (SETTINGS, DATA_REPORT) and not _has(self.folder / name, content)
        }
        anew = "was removed or changed while the run trained, and is written anew"
        return [f"{self.folder / name} {anew}" for name in lost] + self._write_anew(lost)

    def forget_results(self) -> None:
        _remove(*(self.folder / name for name in RESULTS))

    def forget_steps(self) -> None:
        self.check_lock()
        super().forget_steps()

    def _write_anew(self, files: Mapping[str, bytes]) -> list[str]:
        moved = list[str]()
        for name, content in files.items():
            path = self.folder / name
            if path.is_dir() and not path.is_symlink():
                moved.append(set_aside(path))
            if not _has(path, content):
                write_atomic(path, content)
        return moved

    def _is_as_written(self) -> bool:
        """Whether the manifest is the one that this process wrote or came upon."""
        file, own = self.folder / MANIFEST, self.files.get(MANIFEST)
        return not os.path.lexists(file) if own is None else _has(file, own)


class FollowedRun(ClaimedRun):
    """Whatever would change the folder does nothing; the first process does it."""

    @contextmanager
    def claimed(self, *, restart: bool, resume: bool = False) -> Iterator[ClaimedRun]:
        yield self

    def check_lock(self) -> None: ...

    def begin(self, settings: JsonObject) -> None: ...

    def go_on(self, step: int, files: Mapping[str, bytes]) -> list[str]:
        return []

    def forget_results(self) -> None: ...

    def forget_steps(self) -> None: ...

    def write(self, name: str, value: JsonObject | list[Any]) -> None: ...


def ways_on(run: RunDirectory) -> str:
    """What to do with a run that is not finished."""
    saved = f"--resume to continue from step {run.steps_saved[-1]}, or " if run.steps_saved else ""
    return f"{saved}--restart to start it again from the first step"


def _check_free(run: RunDirectory, *, restart: bool, resume: bool) -> None:
    name, state = run.folder.name, _state(run, restart=restart)
    if state is None:
        if resume:
            raise RunError(f'run "{name}" does not exist yet, so it cannot be resumed. Leave out --resume to start it.')
    elif resume and not run.checkpoints.named:
        raise RunError(
            f'run "{name}" has no checkpoint to resume from ({state}). '
            f"Use {ways_on(run)}. training.checkpoint_minutes sets how often one is written."
        )
    elif not (restart or resume):
        raise RunError(
            f'run "{name}" {state}. Use another --run name, {"" if run.steps_saved else "or "}{ways_on(run)}.'
        )


def _state(run: RunDirectory, *, restart: bool) -> str | None:
    """How a run stands, or None for a name that is free; a finished one is refused unless it is to begin again. A
    manifest that is missing or damaged is no obstacle where there are checkpoints, which a finished run has not."""
    left = _names(run.folder)
    try:
        if MANIFEST not in left:
            if left <= BEGINNING or (SETTINGS in left and left <= BEGINNING | STEPS):  # killed before it had begun
                return None
            raise RunError(f"{run.folder} contains {some(sorted(left), 4)} and is not a run. Use another --run name.")
        manifest = run.manifest()
    except RunError as error:
        if not run.steps_saved:
            raise
        return f"is not finished ({MANIFEST} is missing)" if MANIFEST not in left else f"is not finished ({error})"
    if manifest.status == "finished" and not restart:
        raise RunError(
            f'run "{run.folder.name}" is finished ({manifest.ended}) and is not overwritten. '
            "Use another --run name, or --restart to train it again, which removes its result."
        )
    return f"was started {manifest.started} and is not finished ({manifest.status})"


def _names(folder: Path) -> set[str]:
    """What stands here to be seen: the lock and the temporary files of a killed process do not count."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def _left(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _LEFT.fullmatch(path.name) or path.name == END_REQUEST]


def _remove(*paths: Path) -> None:
    for left in paths:
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)


def _has(path: Path, content: bytes) -> bool:
    """Whether a regular file has this content."""
    try:
        return S_ISREG(os.lstat(path).st_mode) and path.read_bytes() == content
    except OSError:
        return False


def find_run(name: str) -> RunDirectory | None:
    """A run, finished or not, by its name or its folder."""
    folder = find_folder(name)
    return None if folder is None else RunDirectory(folder)


def open_any_run(name: str) -> RunDirectory:
    """One that must be there, finished or not."""
    return RunDirectory(folder_of(name))


def writer_of(run: RunDirectory) -> str | None:
    """The number of the process that is writing the run, "unknown" if it left none, or None."""
    return owner_if_locked(run.folder / ".lock")


BY_REQUEST = "by request"
"""Why the training ended, in the run's results."""


def ask_to_end(run: RunDirectory) -> None:
    """RunError where nobody trains, or where several processes do, which cannot see the request at the same step."""
    name = run.folder.name
    if writer_of(run) is None:
        raise RunError(f'run "{name}" is not being trained, so it cannot be ended.')
    manifest = run.manifest()
    if manifest.status != "running":
        raise RunError(f'run "{name}" has already ended its steps ({manifest.status}).')
    if manifest.machine.get("processes", 1) > 1:
        raise RunError(f'run "{name}" is trained by several processes, which cannot be ended early with a result.')
    write_atomic(run.folder / END_REQUEST, b"")


def is_asked_to_end(run: RunDirectory) -> bool:
    return (run.folder / END_REQUEST).exists()


def forget_end_request(run: RunDirectory) -> None:
    (run.folder / END_REQUEST).unlink(missing_ok=True)
