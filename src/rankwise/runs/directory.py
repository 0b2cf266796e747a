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
from dataclasses import dataclass, field, replace
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
    """`lock` is there while this process has claimed the run; `files` are the run's own files as it last wrote them."""

    folder: Path
    lock: Lock | None = field(default=None, compare=False, repr=False)
    files: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def named(cls, name: str) -> Self:
        return cls(Path("runs") / name)

    @property
    def is_run(self) -> bool:
        """Whether the folder holds a run at all, finished or not."""
        names = (MANIFEST, SETTINGS)
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
        return self.folder / REFERENCE

    @property
    def checkpoints(self) -> StepFolders:
        return StepFolders(self.folder / "checkpoints")

    @property
    def steps_saved(self) -> list[int]:
        return self.checkpoints.steps

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints.path(step)

    @property
    def snapshots(self) -> StepFolders:
        return StepFolders(self.folder / "best")

    @property
    def steps_kept(self) -> list[int]:
        return self.snapshots.steps

    def snapshot(self, step: int) -> Path:
        return self.snapshots.path(step)

    def forget_steps(self) -> None:
        """What only a run that goes on has a use for."""
        self.check_lock()
        self.checkpoints.forget()
        self.snapshots.forget()
        self._remove(self.reference)

    @property
    def ways_on(self) -> str:
        """What to do with a run that is not finished."""
        saved = f"--resume to continue from step {self.steps_saved[-1]}, or " if self.steps_saved else ""
        return f"{saved}--restart to start it again from the first step"

    def write_manifest(self, manifest: Manifest) -> None:
        self._write(MANIFEST, with_hash(manifest.model_dump(mode="json")))

    def manifest(self) -> Manifest:
        return read_json(self.folder / MANIFEST, Manifest)

    def write_data_report(self, data_report: DataReport) -> None:
        self._write(DATA_REPORT, data_report.model_dump(mode="json"))

    def write_reference(self, value: Any) -> None:
        self._write(REFERENCE, value)

    @contextmanager
    def claimed(self, *, restart: bool, resume: bool = False) -> Iterator[RunDirectory]:
        """Hold the name for writing. A claim that wrote nothing leaves nothing."""
        lock = self._lock()
        run = replace(self, lock=lock, files={})
        try:
            if (manifest := self.folder / MANIFEST).is_file():
                run.files[MANIFEST] = manifest.read_bytes()
            run._check_free(restart=restart, resume=resume)
            yield run
        finally:
            with suppress(OSError):  # a folder of something else
                if not run._names() & {MANIFEST, *BEGINNING}:  # still locked, so nobody else can have begun here
                    lock.remove()
                    run.folder.rmdir()
            lock.release()

    @contextmanager
    def locked(self) -> Iterator[Lock]:
        """Keep every other writer out of a run that is there, whatever state it is in."""
        lock = self._lock()
        try:
            yield lock
        finally:
            lock.release()

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
        self._remove(self.metrics, *(self.folder / name for name in earlier), *self._left())
        try:
            self.manifest()
        except RunError:
            self._remove(self.folder / MANIFEST)
            self.files.clear()
        self.forget_steps()
        self._write(SETTINGS, settings)

    def go_on(self, step: int, files: Mapping[str, bytes]) -> list[str]:
        """Remove what an attempt left that came further than its checkpoint, and write the run's files as they were
        then, each where it is not so. Returns what was in the way."""
        self.check_lock()
        self.checkpoints.forget(but=[earlier for earlier in self.steps_saved if earlier <= step])
        self.snapshots.forget(but=[earlier for earlier in self.steps_kept if earlier <= step])
        self.forget_results()
        self._remove(*self._left())
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

    def _write_anew(self, files: Mapping[str, bytes]) -> list[str]:
        moved = list[str]()
        for name, content in files.items():
            path = self.folder / name
            if path.is_dir() and not path.is_symlink():
                moved.append(set_aside(path))
            if not _has(path, content):
                write_atomic(path, content)
        return moved

    def _write(self, name: str, value: Any) -> None:
        self.check_lock()
        content = json_bytes(value)
        write_atomic(self.folder / name, content)
        self.files[name] = content

    def _is_as_written(self) -> bool:
        """Whether the manifest is the one that this process wrote or came upon."""
        file, own = self.folder / MANIFEST, self.files.get(MANIFEST)
        return not os.path.lexists(file) if own is None else _has(file, own)

    def _left(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if _LEFT.fullmatch(path.name) or path.name == END_REQUEST]

    @staticmethod
    def _remove(*paths: Path) -> None:
        for left in paths:
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)

    def _names(self) -> set[str]:
        """What stands here to be seen: the lock and the temporary files of a killed process do not count."""
        return {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}

    def _check_free(self, *, restart: bool, resume: bool) -> None:
        state = self._state(restart=restart)
        if state is None:
            if resume:
                raise RunError(
                    f'run "{self.folder.name}" does not exist yet, so it cannot be resumed. Leave out --resume to '
                    "start it."
                )
        elif resume and not self.checkpoints.named:
            raise RunError(
                f'run "{self.folder.name}" has no checkpoint to resume from ({state}). '
                f"Use {self.ways_on}. training.checkpoint_minutes sets how often one is written."
            )
        elif not (restart or resume):
            raise RunError(
                f'run "{self.folder.name}" {state}. '
                f"Use another --run name, {'' if self.steps_saved else 'or '}{self.ways_on}."
            )

    def _state(self, *, restart: bool) -> str | None:
        """How a run stands, or None for a name that is free; a finished one is refused unless it is to begin again. A
        manifest that is missing or damaged
        is no obstacle where there are checkpoints, which a finished run has not."""
        left = self._names()
        try:
            if MANIFEST not in left:
                if left <= BEGINNING or (SETTINGS in left and left <= BEGINNING | STEPS):  # killed before it had begun
                    return None
                raise RunError(
                    f"{self.folder} contains {some(sorted(left), 4)} and is not a run. Use another --run name."
                )
            manifest = self.manifest()
        except RunError as error:
            if not self.steps_saved:
                raise
            return f"is not finished ({MANIFEST} is missing)" if MANIFEST not in left else f"is not finished ({error})"
        if manifest.status == "finished" and not restart:
            raise RunError(
                f'run "{self.folder.name}" is finished ({manifest.ended}) and is not overwritten. '
                "Use another --run name, or --restart to train it again, which removes its result."
            )
        return f"was started {manifest.started} and is not finished ({manifest.status})"

    def _lock(self) -> Lock:
        path = self.folder / ".lock"
        try:
            with told_when_full(self.folder):
                return Lock.with_folder(path)
        except BlockingIOError:
            raise RunBusyError(
                f'run "{self.folder.name}" is being written by process {owner_of(path)}. '
                "Use another --run name, or stop that process."
            ) from None


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


class FollowedRun(RunDirectory):
    """Whatever would change the folder does nothing; the first process does it."""

    @contextmanager
    def claimed(self, *, restart: bool, resume: bool = False) -> Iterator[RunDirectory]:
        yield self

    def check_lock(self) -> None: ...

    def begin(self, settings: JsonObject) -> None: ...

    def go_on(self, step: int, files: Mapping[str, bytes]) -> list[str]:
        return []

    def forget_results(self) -> None: ...

    def forget_steps(self) -> None: ...

    def _write(self, name: str, value: Any) -> None: ...
