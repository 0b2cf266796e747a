"""Server-sent events of a run: its records as they are written, and its state as it changes.

event  records   what is new in the metrics log, as columns of numbers, of which a browser gets so many at most; its id
                 is the position after it (runs/metrics_log.py)
       begin     the log begins anew: the page forgets what it drew
       state     status, problem and warnings, whenever one of them changes

Beside them stand the runs of the queue: those that wait, the one that is trained, and those that never began. A run is
only read, from its files, so it does not matter who trains it.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from rankwise.commands.runs import waiting_runs
from rankwise.config.base import JsonObject
from rankwise.config.experiment import RUN_NAME
from rankwise.errors import RankwiseError
from rankwise.reporting.sparkline import bucket_means
from rankwise.runs.directory import RunDirectory
from rankwise.runs.listing import STARTING, UNREADABLE, present_status, run_names, status_of
from rankwise.runs.manifest import Manifest
from rankwise.runs.metrics_log import LogTail
from rankwise.runs.own_files import MANIFEST
from rankwise.runs.queue import Ended, Queue, Waiting, Working
from rankwise.runs.records import rank_grid
from rankwise.runs.upkeep import entry
from rankwise.studio.settings_form import with_labels
from rankwise.studio.uploads import with_names

EVERY, IDLE = 3.0, 5.0
"""Seconds between two looks at a run that is trained, and at one that is not."""
HEARTBEAT = 15.0
"""Seconds after which something is sent in any case, so that a browser that has gone is noticed."""
AT_WORK = (STARTING, "running")
MOST_STEPS = 2500
"""Steps of one message; more are sent as means of neighbours."""
COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "tokens_per_second", "resident_bytes", "seconds")
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
    state, known = waiting_runs(), set(run_names())
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


@dataclass
class StateReader:
    """Reads a run's state; the manifest only where it has changed."""

    run: RunDirectory
    _seen: tuple[int, int] | None = None
    _manifest: Manifest | None = None

    def read(self) -> JsonObject:
        """Status `gone` where the folder was deleted or renamed."""
        if not self.run.folder.is_dir():
            status, problem = without_folder(self.run.folder.name)
            return {"status": status, "problem": problem, "warnings": []}
        try:
            facts = (self.run.folder / MANIFEST).stat()
            if (stamp := (facts.st_mtime_ns, facts.st_ino)) != self._seen:
                self._manifest, self._seen = self.run.manifest(), stamp
        except (OSError, RankwiseError) as error:
            status = present_status(self.run, UNREADABLE)
            return {"status": status, "problem": str(error) if status == UNREADABLE else None, "warnings": []}
        manifest = self._manifest
        assert manifest is not None, "it was read"
        status = present_status(self.run, status_of(self.run, manifest))
        problem = manifest.problem and with_names(manifest.problem)
        return {
            "status": status, "problem": problem and with_labels(problem),
            "warnings": [with_labels(with_names(one)) for one in manifest.warnings],
        }  # fmt: skip


async def events(request: Request) -> Response:
    run = await run_in_threadpool(known_run, request.path_params["name"])
    after = request.headers.get("last-event-id") or request.query_params.get("after", "")
    return StreamingResponse(
        _events(LogTail.after(run.metrics, after), StateReader(run)), media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )  # fmt: skip


async def _events(tail: LogTail, reader: StateReader) -> AsyncIterator[bytes]:
    before, silent = None, 0.0
    while True:
        anew, rows = await run_in_threadpool(tail.read)
        state = await run_in_threadpool(reader.read)
        parts = [event("begin", {}, tail.position)] if anew else []
        parts += [event("records", message(rows), tail.position)] if rows else []
        parts += [event("state", state)] if state != before else []
        before = state
        if state["status"] == GONE:
            yield b"".join(parts)
            return
        pause = EVERY if state["status"] in AT_WORK else IDLE
        silent = 0.0 if parts else silent + pause
        if parts or silent >= HEARTBEAT:
            silent = 0.0
            yield b"".join(parts) or b":\n\n"
        await asyncio.sleep(pause)


def event(kind: str, data: JsonObject, position: str | None = None) -> bytes:
    """JSON in ASCII, so that no text of a run can end a line of the stream."""
    number = "" if position is None else f"id: {position}\n"
    return f"{number}event: {kind}\ndata: {json.dumps(data, allow_nan=False)}\n\n".encode("ascii")


def message(rows: Sequence[JsonObject]) -> JsonObject:
    """The records as the page draws them: steps as columns, and the last of the rank allocations."""
    of = {kind: [row for row in rows if row.get("kind") == kind] for kind in ("step", "validation", "score", "ranks")}
    totals = [row["steps"] for row in of["step"] if _is_count(row.get("steps"))]
    return {
        "steps": _thinned([one for row in of["step"] if (one := _numbers(row, COLUMNS)) is not None]),
        "of": totals[-1] if totals else None,
        "validation": [one for row in of["validation"] if (one := _point(row, "loss")) is not None],
        "scores": [[str(row.get("metric"))[:60], *one] for row in of["score"]
                   if (one := _point(row, "value")) is not None],
        "ranks": _grid(of["ranks"][-1]) if of["ranks"] else None,
    }  # fmt: skip


def _point(row: JsonObject, value: str) -> list[float | None] | None:
    """A step and its value, where both are numbers."""
    numbers = _numbers(row, ("step", value))
    return None if numbers is None or None in numbers else numbers


def _numbers(row: JsonObject, columns: Sequence[str]) -> list[float | None] | None:
    """A value that is not finite is None; None for a row whose first value is no number."""
    values = [row.get(name) for name in columns]
    finite = [
        float(one) if isinstance(one, int | float) and abs(one) < 1e300 and math.isfinite(one) else None
        for one in values
    ]
    return None if finite[0] is None else finite


def _thinned(steps: list[list[float | None]]) -> list[list[float | None]]:
    """Means of neighbouring steps, by column; the number of a step is that of the last of its neighbours."""
    if len(steps) <= MOST_STEPS:
        return steps
    ends = [round((at + 1) * len(steps) / MOST_STEPS) - 1 for at in range(MOST_STEPS)]
    columns = [
        bucket_means([math.nan if one is None else one for one in column], MOST_STEPS)
        for column in zip(*steps, strict=True)
    ]
    columns[0] = [float(steps[end][0] or 0) for end in ends]
    return [[one if math.isfinite(one) else None for one in row] for row in zip(*columns, strict=True)]


def _grid(row: JsonObject) -> JsonObject | None:
    ranks = row.get("ranks")
    if not isinstance(ranks, dict) or not all(_is_count(one) for one in ranks.values()):
        return None
    blocks, kinds, cells = rank_grid(ranks)
    return {
        **{name: row[name] if _is_count(row.get(name)) else None for name in ("step", "budget", "of")},
        "unit": str(row.get("unit"))[:40],
        "final": row.get("final") is True, "blocks": blocks[:200], "kinds": kinds[:40],
        "cells": [[cells.get((block, kind)) for kind in kinds[:40]] for block in blocks[:200]],
    }  # fmt: skip


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**53
