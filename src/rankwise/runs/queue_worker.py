"""The worker of the queue: it starts one training after the other, each in a process and a session of its own.

A training inherits a lock (`training.lock`) from its worker. Where the worker is killed, the training goes on, and the
next worker waits for that lock before it starts another: there is never more than one. After a worker has released its
own lock, it looks once more for a run that was added in its last moment.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rankwise.errors import RankwiseError, RunError
from rankwise.runs.directory import RunDirectory
from rankwise.runs.manifest import now
from rankwise.runs.own_files import read_json
from rankwise.runs.queue import Queue, Waiting, Working, read_entry
from rankwise.system.files import write_atomic, write_json
from rankwise.system.hub import NO_NETWORK
from rankwise.system.locks import Lock
from rankwise.system.processes import began, start_detached

BETWEEN = 0.2
"""Seconds between two looks at a training that another worker started."""
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
        folder = queue.runs_folder / left.run
        if queue.outcome(left.run).read_bytes() or RunDirectory(folder).is_run:
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
    write_json(queue.settings(first.run), first.config.model_dump(mode="json"))
    lock = Lock.with_folder(queue.training_lock)
    try:
        process = _start(queue, first, command, lock)
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
