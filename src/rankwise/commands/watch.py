"""Follow runs that other processes train, from their folders alone, until they end.

A run has ended once its manifest is there and no process writes it. A name that has no run yet is waited for.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

from rankwise.config.experiment import RUN_NAME
from rankwise.errors import ConfigError, RankwiseError
from rankwise.runs.directory import RunDirectory, find_run, writer_of
from rankwise.runs.listing import run_names
from rankwise.runs.manifest import Manifest
from rankwise.runs.metrics_log import LogTail

SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_BETWEEN_STATES = 1.0
EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 130}
RECENT = 50
"""Steps whose mean duration tells how long the others take."""
State = Literal["waiting", "starting", "running", "finished", "failed", "interrupted"]


@dataclass
class WatchedRun:
    name: str
    state: State = "waiting"
    problem: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    """All records so far."""
    _tail: LogTail | None = None
    _looked: float = field(default=-SECONDS_BETWEEN_STATES)

    def look(self) -> Sequence[dict[str, Any]]:
        """The records since the last look, with the state as it is now."""
        if (run := find_run(self.name)) is None:
            return ()
        if self._tail is None or self._tail.path != run.metrics:
            self._tail = LogTail(run.metrics)
        if (now := time.monotonic()) - self._looked >= SECONDS_BETWEEN_STATES:
            self._looked = now
            self.state, self.problem = _state_of(run)  # before the records, so that none is missed at the end
        return self._new(self._tail)

    def _new(self, tail: LogTail) -> Sequence[dict[str, Any]]:
        """Records that a shortened log still has are not new."""
        anew, rows = tail.read()
        if not anew:
            self.rows += rows
            return rows
        before, self.rows = self.rows, rows
        same = next((at for at, pair in enumerate(zip(before, rows, strict=False)) if pair[0] != pair[1]), len(before))
        return rows[same:]

    @property
    def has_ended(self) -> bool:
        return self.state in EXIT_CODES

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.state]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["kind"] == kind]

    def curve(self, kind: str, name: str) -> list[float]:
        values = (row.get(name) for row in self.of_kind(kind))
        return [float(value) for value in values if is_number(value)]

    @property
    def seconds_left(self) -> float | None:
        steps = self.of_kind("step")
        if not steps or self.state != "running":
            return None
        seconds = [float(row["seconds"]) for row in steps[-RECENT:] if is_number(row.get("seconds"))]
        last, done = steps[-1].get("steps"), steps[-1].get("step")
        left = float(last) - float(done) if is_number(last) and is_number(done) else 0.0
        expected = sum(seconds) / len(seconds) * left if seconds else None
        return expected if is_number(expected) else None


def _state_of(run: RunDirectory) -> tuple[State, str | None]:
    is_written = writer_of(run) is not None
    try:
        manifest: Manifest = run.manifest()
    except (RankwiseError, OSError) as error:
        return ("starting", None) if is_written else ("failed", str(error))
    if is_written:  # a manifest that is not of this attempt says how the last one ended
        return ("running" if manifest.status in ("running", "finished") else "starting"), None
    return ("interrupted" if manifest.status == "running" else manifest.status), manifest.problem


def watched(names: Sequence[str]) -> list[WatchedRun]:
    """ConfigError for a name twice, for one that no run can get, or for none where no run is being written."""
    if not names:
        names = [name for name in run_names() if writer_of(RunDirectory.named(name)) is not None]
        if not names:
            raise ConfigError(["no run is being trained in this folder. Name a run to wait for or to show."])
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError([f'run "{twice[0]}" is named twice.'])
    if never := [name for name in names if find_run(name) is None and not _may_come(name)]:
        raise ConfigError([f'there is no run "{never[0][:80]}", and none can get this name, so it is not waited for.'])
    return [WatchedRun(name) for name in names]


def _may_come(name: str) -> bool:
    """A folder may be named too, as a shell completes it."""
    return re.fullmatch(RUN_NAME, Path(name).name) is not None


def is_number(value: object) -> TypeGuard[float]:
    """Whether it can be drawn, which not all can that stand in a damaged log."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def watch(runs: Sequence[WatchedRun]) -> Iterator[list[tuple[WatchedRun, Sequence[dict[str, Any]]]]]:
    """What is new of each run, several times a second, until all have ended."""
    while True:
        news = [(run, run.look()) for run in runs]
        yield news
        if all(run.has_ended for run in runs) and not any(rows for _, rows in news):
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def exit_code(runs: Sequence[WatchedRun]) -> int:
    """0 if all have finished, otherwise the code of the one that ended worst."""
    return max(run.exit_code for run in runs)
