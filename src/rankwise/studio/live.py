"""Server-sent events of a run: its records as they are written, and its state as it changes.

event  records   what is new in the metrics log; its id is the position after it (runs/metrics_log.py)
       begin     the log begins anew: the page forgets what it drew
       state     status, problem and warnings, whenever one of them changes

The run is only read, from its files, so it does not matter who trains it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from rankwise.errors import RankwiseError
from rankwise.runs.directory import MANIFEST, RunDirectory
from rankwise.runs.listing import STARTING, UNREADABLE, present_status, status_of
from rankwise.runs.manifest import Manifest
from rankwise.runs.metrics_log import LogTail
from rankwise.studio.drawn_records import message
from rankwise.studio.queued import GONE, known_run, without_folder

EVERY, IDLE = 3.0, 5.0
"""Seconds between two looks at a run that is trained, and at one that is not."""
HEARTBEAT = 15.0
"""Seconds after which something is sent in any case, so that a browser that has gone is noticed."""
AT_WORK = (STARTING, "running")


@dataclass
class StateReader:
    """Reads a run's state; the manifest only where it has changed."""

    run: RunDirectory
    _seen: tuple[int, int] | None = None
    _manifest: Manifest | None = None

    def read(self) -> dict[str, Any]:
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
        return {"status": status, "problem": manifest.problem, "warnings": list(manifest.warnings)}


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


def event(kind: str, data: dict[str, Any], position: str | None = None) -> bytes:
    """JSON in ASCII, so that no text of a run can end a line of the stream."""
    number = "" if position is None else f"id: {position}\n"
    return f"{number}event: {kind}\ndata: {json.dumps(data, allow_nan=False)}\n\n".encode("ascii")
