"""Trainings that wait for their turn: `runs/.queue/{waiting/NAME.json, started/NAME.json, logs/NAME.log, …}`.

A waiting run is one small file with its whole experiment, which appears complete or not at all. One worker, a process
of its own session, trains one run after the other, each in a process and a session of its own, and ends when none
waits. It is started by whoever adds a run. So a training outlives the page or the server that requested it, and any
process can read from the files alone what waits, what is trained and how it ended.

A training inherits a lock (`training.lock`) from its worker. Where the worker is killed, the training goes on, and the
next worker waits for that lock before it starts another: there is never more than one. (On Windows the worker holds
the lock, so a training that has lost its worker does not count.) After a worker has released its
own lock, it looks once more for a run that was added in its last moment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.config.base import Config, JsonObject
from rankwise.config.experiment import Experiment
from rankwise.errors import RankwiseError, RunError, did_you_mean, some
from rankwise.runs.directory import RunDirectory, writer_of
from rankwise.runs.listing import RUNS
from rankwise.runs.manifest import now
from rankwise.runs.own_files import is_run, read_json
from rankwise.system.files import json_bytes, make_folders, write_atomic, write_json, write_new
from rankwise.system.hub import NO_NETWORK
from rankwise.system.locks import Lock, owner_if_locked
from rankwise.system.processes import POSIX, began, start_detached

MOST = 1000
"""Runs that may wait."""
WORKER = ("-P", "-m", "rankwise", "queue", "work")
BETWEEN = 0.2
"""Seconds between two looks at a training that another worker started."""


class Waiting(Config):
    """A run that waits; `order` is when it was added, in nanoseconds."""

    run: str
    added: str
    order: int
    resume: bool = False
    restart: bool = False
    may_ask_hub: bool = True
    """Whether its training may look for names on the hub or the package index."""
    config: Experiment


class Working(Config):
    """The run that is trained. `process` is None for the moment in which it is started."""

    run: str
    started: str
    process: int | None = None
    began: float | None = None
    """When the system started the process."""


@dataclass(frozen=True)
class Ended:
    """How a training of the queue ended; `problem` is None where its run is finished."""

    run: str
    problem: str | None


@dataclass(frozen=True)
class Queue:
    """The queue of a runs folder, which is `runs` in the folder that trainings work in."""

    runs_folder: Path = RUNS

    @property
    def folder(self) -> Path:
        return self.runs_folder / ".queue"

    @property
    def worker_lock(self) -> Path:
        return self.folder / "worker.lock"

    @property
    def training_lock(self) -> Path:
        return self.folder / "training.lock"

    @property
    def present(self) -> Path:
        """What is trained."""
        return self.folder / "working.json"

    def entry(self, run: str) -> Path:
        return self.folder / "waiting" / f"{run}.json"

    def settings(self, run: str) -> Path:
        """The file that a training was started with."""
        return self.folder / "started" / f"{run}.json"

    def log(self, run: str) -> Path:
        """What a training prints."""
        return self.folder / "logs" / f"{run}.log"

    def outcome(self, run: str) -> Path:
        """The object that `train --json` prints at its end."""
        return self.folder / "logs" / f"{run}.json"

    def add(
        self, run: str, settings: JsonObject, *, resume: bool = False, restart: bool = False, may_ask_hub: bool = True
    ) -> Waiting:
        """Add a run, and start a worker if there is none. RunError where the name is taken, or nothing can be resumed.
        With `restart` an unfinished run begins again from its first step."""
        experiment = Experiment(**settings | {"run": run})  # a name is also a file's
        if self.trains(run):
            raise RunError(f'run "{run}" is being trained. Use another --run name.')
        directory = RunDirectory(self.runs_folder / run)
        if resume or os.path.lexists(directory.folder):  # to claim a name that is free would create its folder
            with directory.claimed(restart=restart, resume=resume):
                pass
        if len(self.waiting()) >= MOST:
            raise RunError(f"{MOST} runs wait in the queue, the most that may. Remove some with rankwise queue remove.")
        waiting = Waiting(
            run=run, added=now(), order=time.time_ns(), resume=resume, restart=restart, may_ask_hub=may_ask_hub,
            config=experiment,
        )  # fmt: skip
        for folder in ("waiting", "started", "logs"):
            make_folders(self.folder / folder)
        try:
            entry = waiting.model_dump(mode="json") | {"config": experiment.explicit}
            write_new(self.entry(run), json_bytes(entry))
        except FileExistsError:
            raise RunError(f'run "{run}" is already in the queue. Use another --run name.') from None
        self.start_worker()
        return waiting

    def waiting(self) -> list[Waiting]:
        """In the order in which they will be trained. A damaged entry is left out; the worker says what is wrong."""
        entries = list[Waiting]()
        for file in self.entries():
            with suppress(RunError):  # it may be started or removed just now
                entries.append(read_entry(file))
        return sorted(entries, key=lambda item: (item.order, item.run))

    def entries(self) -> list[Path]:
        """Files alone: what else lies there is nobody's training, and nothing could take it away."""
        found = sorted(self.entry("x").parent.glob("*.json"))
        return [file for file in found if not file.name.startswith(".") and file.is_file()]

    def remove(self, run: str) -> None:
        """Remove a run that waits."""
        try:
            if run not in {file.stem for file in self.entries()}:
                raise FileNotFoundError
            self.entry(run).unlink()
        except FileNotFoundError:
            names = [one.run for one in self.waiting()]
            listed = f" Waiting: {some(names)}." if names else " The queue is empty."
            raise RunError(f'run "{run}" does not wait in the queue.{did_you_mean(run, names)}{listed}') from None
        if self.trains(run):  # the worker had read it already
            raise RunError(f'run "{run}" has just started. Stop it with rankwise queue stop.')

    def forget(self, run: str) -> None:
        """Remove what is left of a training that has ended, after its run was deleted."""
        for file in (self.outcome(run), self.log(run), self.settings(run)):
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def rename(self, run: str, new: str) -> None:
        """What was printed goes with a run that is renamed."""
        self.forget(new)
        for before, after in ((self.outcome(run), self.outcome(new)), (self.log(run), self.log(new))):
            with suppress(OSError):  # a terminal trained it
                before.rename(after)
        self.forget(run)

    def working(self) -> Working | None:
        """The run that is trained, whoever started it from here."""
        if owner_if_locked(self.training_lock) is None:
            return None
        with suppress(RunError):
            return read_json(self.present, Working)
        return None

    def trains(self, run: str) -> bool:
        return (own := self.working()) is not None and own.run == run

    def stop(self, run: str) -> None:
        """Ask a training for what Ctrl-C does: it ends, and its run has the checkpoints that it wrote. The run may be
        of the queue or of a terminal on this machine."""
        own = self.working()
        number = own.process if own is not None and own.run == run else None
        if number is None:
            written_by = writer_of(RunDirectory(self.runs_folder / run))
            number = int(written_by) if written_by is not None and written_by.isdecimal() else None
        elif own is not None and own.began != began(number):
            number = None
        if number is None:
            raise RunError(f'run "{run}" is not being trained.')
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGINT if POSIX else signal.SIGTERM)  # Windows sends none to another console

    def ended(self, run: str) -> Ended | None:
        """How the last training of this name ended; None where the queue trained none, or it goes on."""
        file = self.outcome(run)
        if self.entry(run).exists() or not file.is_file():
            return None
        if self.trains(run):  # looked at last: an entry goes after its beginning
            return None
        printed = last_object(file)
        if printed is None:
            return Ended(run, f"its process was killed. What it printed: {self.log(run)}")
        return Ended(run, str(printed["error"]) if "error" in printed else None)

    def start_worker(self) -> None:
        """Start a worker, if a run waits and none works. A second worker would end at once."""
        if self.entries() and owner_if_locked(self.worker_lock) is None:
            with (self.folder / "worker.log").open("ab") as log:
                start_detached([sys.executable, *WORKER], out=log, log=log, folder=self.runs_folder.absolute().parent)


def read_entry(file: Path) -> Waiting:
    """RunError where it is damaged, or is of another run than its name says."""
    entry = read_json(file, Waiting)
    if not entry.run == entry.config.run == file.stem:
        raise RunError(f'{file} is damaged: it is of run "{entry.run}".')
    return entry


def last_object(file: Path) -> dict[str, Any] | None:
    """The JSON object in the last line that is one."""
    with suppress(OSError, UnicodeDecodeError):
        for line in reversed(file.read_text(encoding="utf-8").splitlines()):
            with suppress(ValueError, RecursionError):
                if isinstance(value := json.loads(line), dict):
                    return value
    return None


Command = Callable[[Path, Waiting], Sequence[str]]
"""What trains a run by its settings file."""


def training(settings: Path, waiting: Waiting) -> Sequence[str]:
    words = [sys.executable, "-P", "-m", "rankwise", "train", str(settings.absolute()), "--json"]
    return [*words, *["--resume"] * waiting.resume, *["--restart"] * waiting.restart]


def work(queue: Queue, command: Command = training) -> None:
    """Train until nothing waits; returns at once where another worker works."""
    for name in ("SIGINT", "SIGHUP"):  # a training that would inherit an ignored signal could not be stopped
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, signal.SIG_DFL)
    stuck = set[Path]()
    while set(queue.entries()) - stuck:
        try:
            own = Lock.with_folder(queue.worker_lock)
        except BlockingIOError:
            return
        try:
            _wait(queue)
            while set(queue.entries()) - stuck:
                stuck = _next(queue, command)
        finally:
            own.release()


def _wait(queue: Queue) -> None:
    """For a training that a worker left that was killed; its entry goes, if that worker could not remove it."""
    while True:
        with suppress(BlockingIOError):
            lock = Lock.with_folder(queue.training_lock)
            break
        time.sleep(BETWEEN)
    try:
        left = read_json(queue.present, Working)
        if queue.outcome(left.run).read_bytes() or is_run(queue.runs_folder / left.run):
            queue.entry(left.run).unlink(missing_ok=True)
    except (RunError, OSError):  # there was none
        pass
    finally:
        queue.present.unlink(missing_ok=True)
        lock.release()


def _next(queue: Queue, command: Command) -> set[Path]:
    """Train the first run that waits, and wait for its end. Returns damaged entries that could not be removed."""
    stuck = _refuse_damaged(queue)
    if not (waiting := queue.waiting()):
        return stuck
    first = waiting[0]
    write_json(queue.settings(first.run), first.config.explicit)
    lock = Lock.with_folder(queue.training_lock)
    try:
        process = _start(queue, first, command, lock)
        if process is not None and not POSIX:  # nothing is inherited
            process.wait()
    finally:
        lock.release()
    if process is not None:
        process.wait()
    queue.present.unlink(missing_ok=True)
    return stuck


def _start(queue: Queue, first: Waiting, command: Command, lock: Lock) -> subprocess.Popen[bytes] | None:
    """The entry goes last, so that a worker that is killed here loses no run. None where it was removed just now."""
    working = Working(run=first.run, started=now())
    write_json(queue.present, working.model_dump(mode="json"))
    if not queue.entry(first.run).exists():
        return None
    with queue.outcome(first.run).open("wb") as out, queue.log(first.run).open("wb") as log:
        process = start_detached(
            command(queue.settings(first.run), first), out=out, log=log, folder=queue.runs_folder.absolute().parent,
            inherits=(lock.descriptor,), environment=None if first.may_ask_hub else NO_NETWORK,
        )  # fmt: skip
    known = {"process": process.pid, "began": began(process.pid)}
    write_json(queue.present, working.model_copy(update=known).model_dump(mode="json"))
    queue.entry(first.run).unlink(missing_ok=True)
    return process


def _refuse_damaged(queue: Queue) -> set[Path]:
    """An entry that cannot be read ends at once, with what is wrong with it, and stops no other. Returns those that
    stay, since the disk is full, or the folder cannot be written."""
    stuck = set[Path]()
    for file in queue.entries():
        try:
            read_entry(file)
        except RunError as error:
            if not file.is_file():  # removed just now
                continue
            try:
                write_atomic(queue.outcome(file.stem), json.dumps({"error": str(error)}).encode())
                file.unlink()
            except (OSError, RankwiseError):
                stuck.add(file)
    return stuck
