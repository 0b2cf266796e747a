"""Trainings that wait for their turn: `runs/.queue/{waiting/NAME.json, started/NAME.json, logs/NAME.log, …}`.

A waiting run is one small file with its whole experiment, which appears complete or not at all. One worker, a process
of its own session (runs/queue_worker.py), trains one run after the other, and ends when none waits. It is started by
whoever adds a run. So a training outlives the page or the server that requested it, and any process can read from the
files alone what waits, what is trained and how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.config.base import Config
from rankwise.config.experiment import Experiment
from rankwise.errors import RunError, did_you_mean, some
from rankwise.runs.directory import RunDirectory, writer_of
from rankwise.runs.listing import RUNS
from rankwise.runs.manifest import now
from rankwise.runs.own_files import read_json
from rankwise.system.files import json_bytes, make_folders, write_new
from rankwise.system.locks import owner_if_locked
from rankwise.system.processes import began, start_detached

MOST = 1000
"""Runs that may wait."""
WORKER = ("-P", "-m", "rankwise", "queue", "work")


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
        self, run: str, experiment: Experiment, *, resume: bool = False, restart: bool = False, may_ask_hub: bool = True
    ) -> Waiting:
        """Add a run, and start a worker if there is none. RunError where the name is taken, or nothing can be resumed.
        With `restart` an unfinished run begins again from its first step."""
        experiment = Experiment(**experiment.model_dump() | {"run": run})  # a name is also a file's
        if (own := self.working()) is not None and own.run == run:
            raise RunError(f'run "{run}" is being trained. Use another --run name.')
        with RunDirectory(self.runs_folder / run).claimed(restart=restart, resume=resume):
            pass
        if len(self.waiting()) >= MOST:
            raise RunError(f"{MOST} runs wait in the queue, the most that may. Remove some with rankwise queue remove.")
        waiting = Waiting(
            run=run, added=now(), order=time.time_ns(), resume=resume, restart=restart, may_ask_hub=may_ask_hub,
            config=experiment,
        )  # fmt: skip
        for file in (self.entry(run), self.settings(run), self.log(run)):
            make_folders(file.parent)
        try:
            write_new(self.entry(run), json_bytes(waiting.model_dump(mode="json")))
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
        return sorted(entries, key=lambda one: (one.order, one.run))

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
        if (own := self.working()) is not None and own.run == run:  # the worker had read it already
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
            os.kill(number, signal.SIGINT if sys.platform != "win32" else signal.CTRL_C_EVENT)

    def ended(self, run: str) -> Ended | None:
        """How the last training of this name ended; None where the queue trained none, or it goes on."""
        file = self.outcome(run)
        if self.entry(run).exists() or not file.is_file():
            return None
        if (own := self.working()) is not None and own.run == run:  # looked at last: an entry goes after its beginning
            return None
        printed = last_object(file)
        if printed is None:
            return Ended(run, f"its process was killed. What it printed: {self.log(run)}")
        return Ended(run, str(printed["error"]) if "error" in printed else None)

    def start_worker(self) -> bool:
        """Start a worker, if a run waits and none works. A second worker would end at once."""
        if not self.entries() or owner_if_locked(self.worker_lock) is not None:
            return False
        with (self.folder / "worker.log").open("ab") as log:
            start_detached([sys.executable, *WORKER], out=log, log=log, folder=self.runs_folder.absolute().parent)
        return True


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
