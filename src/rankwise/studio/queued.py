"""Runs of the queue, as the screens show them: those that wait, the one that is trained, and those that never began."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.commands.queue import listed
from rankwise.config.experiment import RUN_NAME
from rankwise.runs.directory import RunDirectory
from rankwise.runs.listing import STARTING, run_names
from rankwise.runs.queue import Ended, Queue, Waiting, Working
from rankwise.runs.upkeep import entry

WAITING, FAILED, GONE = "waiting", "failed", "gone"


@dataclass(frozen=True)
class Queued:
    """`refused` are trainings that ended before they had a folder, so that no row of the table says why."""

    working: Working | None
    waiting: Sequence[Waiting]
    refused: Sequence[Ended]

    def __bool__(self) -> bool:
        return bool(self.waiting or self.refused)


def queued() -> Queued:
    """Also starts the worker where one was killed and a run waits."""
    state, known = listed(), set(run_names())
    return Queued(state.working, state.waiting, [one for one in state.ended if one.run not in known])


def known_run(name: str) -> RunDirectory:
    """A run of the folder or of the queue; RunError where it is neither."""
    if name not in run_names() and is_queued(name):
        return RunDirectory.named(name)
    return entry(name)


def is_queued(name: str) -> bool:
    return without_folder(name)[0] != GONE


def without_folder(name: str) -> tuple[str, str | None]:
    """The status of a run that has no folder, and its problem."""
    queue = Queue()
    if name in {file.stem for file in queue.entries()}:
        return WAITING, None
    if (working := queue.working()) is not None and working.run == name:
        return STARTING, None
    if not re.fullmatch(RUN_NAME, name):  # it is a file's name in the queue
        return GONE, None
    ended = queue.ended(name)
    return (GONE, None) if ended is None else (FAILED, ended.problem)
