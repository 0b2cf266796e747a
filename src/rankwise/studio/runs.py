"""The screen of all runs: a table to sort, filter, compare and delete from, and the runs that wait."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rankwise.commands.runs import delete_runs, deletion, show
from rankwise.errors import some
from rankwise.reporting.quantities import size
from rankwise.runs.listing import RUNS
from rankwise.runs.queue import Queue
from rankwise.studio import unused_uploads
from rankwise.studio.forms import read_form
from rankwise.studio.live import AT_WORK
from rankwise.studio.pages import moved, page
from rankwise.studio.queued import queued
from rankwise.studio.rows import COLUMNS, Order, in_order, rows
from rankwise.studio.screen import Screen
from rankwise.studio.unused_uploads import Unused

STATUSES = ("starting", "running", "finished", "interrupted", "failed", "unreadable")
RESULTS = {"adapter": "the adapter", "model": "the trained model", "checkpoints": "the checkpoints to go on from",
           "best": "the best weights so far", "metrics.jsonl": "the record of its steps",
           "evaluations": "its evaluations", "report.html": "its report"}  # fmt: skip
DESCENDING = ("size", "when")
"""Columns that are sorted with the largest value first, unless another order is chosen."""


@dataclass(frozen=True)
class Head:
    """A heading of the table: where it leads to, and how the table is sorted by it now."""

    label: str
    address: str
    order: Order | None


def table(request: Request) -> Response:
    query = request.query_params
    by = query.get("sort", "when") if query.get("sort") in COLUMNS else "when"
    order: Order = "ascending" if query.get("order", _first(by)) == "ascending" else "descending"
    words, status = query.get("words", "")[:200], query.get("status", "")
    every, waiting = rows(), queued()
    chosen = [row for row in every if row.matches(words) and status in ("", row.status)]
    return page(
        request, "runs.html", title="Runs", rows=in_order(chosen, by, order), count=len(every),
        heads=_heads(by, order, words, status), words=words, status=status, statuses=STATUSES, by=by, order=order,
        live=bool(waiting) or any(row.status in AT_WORK for row in every), queued=waiting,
        folder=_short(RUNS.absolute()), unused=_unused(),
    )  # fmt: skip


def _short(folder: Path) -> str:
    """With ~ for the user's own folder."""
    with suppress(ValueError, RuntimeError):
        return str(Path("~") / folder.relative_to(Path.home()))
    return str(folder)


def _unused() -> Unused | None:
    with suppress(OSError):
        return unused_uploads.unused()
    return None


def _heads(by: str, order: Order, words: str, status: str) -> list[Head]:
    heads = []
    for name in COLUMNS:
        turned = "ascending" if order == "descending" else "descending"
        query = {"sort": name, "order": turned if name == by else _first(name), "words": words, "status": status}
        address = f"/?{urlencode({key: value for key, value in query.items() if value})}"
        heads.append(Head(name, address, order if name == by else None))
    return heads


def _first(column: str) -> Order:
    return "descending" if column in DESCENDING else "ascending"


@dataclass(frozen=True)
class Leaving:
    """What is lost with a run."""

    name: str
    status: str
    bytes: int
    parts: Sequence[tuple[str, str, int]]
    """The entries of its folder: what it is, its name, and its bytes."""


def ask_to_delete(request: Request) -> Response:
    names = request.query_params.getlist("run")
    if not names:
        return moved("/", "No run is ticked. Tick the runs to delete.")
    planned = deletion(names)
    leaving = [_leaving(run.folder.name) for run in planned.runs]
    free = shutil.disk_usage(RUNS).free
    return page(request, "delete.html", title="Delete", section="/", leaving=leaving, bytes=planned.bytes, free=free)


def _leaving(name: str) -> Leaving:
    shown = show(name)
    parts = [(RESULTS.get(part, ""), part, many) for part, many in shown.parts.items()]
    return Leaving(name, shown.run.status, shown.run.bytes, sorted(parts, key=lambda one: (not one[0], -one[2])))


async def delete(request: Request) -> Response:
    form = await read_form(request)
    deleted = await run_in_threadpool(delete_runs, form.every("run"))
    return moved("/", f"Deleted {some(deleted.names)} and freed {size(deleted.bytes)}.")


async def remove_uploads(request: Request) -> Response:
    gone = await run_in_threadpool(unused_uploads.remove)
    return moved("/", f"Removed {len(gone.digests):,} uploads and freed {size(gone.bytes)}.")


async def remove(request: Request) -> Response:
    name = (await read_form(request)).text("run")
    await run_in_threadpool(Queue().remove, name)
    return moved("/", f"Removed {name} from the queue.")


SCREEN = Screen(
    [
        Route("/", table), Route("/delete", ask_to_delete), Route("/delete", delete, methods=["POST"]),
        Route("/queue/remove", remove, methods=["POST"]),
        Route("/uploads/remove", remove_uploads, methods=["POST"]),
    ],
    label="Runs",
)  # fmt: skip
