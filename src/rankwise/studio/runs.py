"""The screen of all runs: a table to sort, filter, compare and delete from, and the runs that wait."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rankwise.commands.runs import delete_runs, deletion, show
from rankwise.errors import RankwiseError, some
from rankwise.reporting.quantities import size
from rankwise.reporting.sparkline import bucket_means, sparkline
from rankwise.runs.directory import RunDirectory
from rankwise.runs.evaluations import evaluations_of
from rankwise.runs.listing import RUNS, STARTING, ListedRun, listed, present_status, run_names
from rankwise.runs.metrics_log import read_metrics_log
from rankwise.runs.queue import Queue
from rankwise.runs.snapshot import forgetting_of
from rankwise.studio import uploads
from rankwise.studio.live import AT_WORK, queued
from rankwise.studio.pages import Screen, drawing, moved, page, read_form
from rankwise.studio.samples import WAYS
from rankwise.studio.uploads import UnusedUploads

STATUSES = ("starting", "running", "finished", "interrupted", "failed", "unreadable")
RESULTS = {"adapter": "the adapter", "model": "the trained model", "checkpoints": "the checkpoints to go on from",
           "best": "the best weights so far", "metrics.jsonl": "the record of its steps",
           "evaluations": "its evaluations", "report.html": "its report"}  # fmt: skip
DESCENDING = ("size", "when")
"""Columns that are sorted with the largest value first, unless another order is chosen."""
MOST_LOSSES = 240
Order = Literal["ascending", "descending"]


@dataclass(frozen=True)
class RunRow:
    """`status` is `starting` where a process has the run and has written no manifest yet."""

    run: ListedRun
    status: str
    forgetting: float | None
    losses: Sequence[float]
    score: tuple[str, float] | None
    """The run's first metric on validation rows, and its last value."""

    @property
    def line(self) -> Any:
        return drawing(sparkline(self.losses))

    @property
    def when(self) -> str | None:
        return self.run.ended or self.run.started

    @property
    def loss(self) -> float | None:
        """On validation rows, where there are any."""
        return self.run.loss if self.run.validation_loss is None else self.run.validation_loss

    def matches(self, words: str) -> bool:
        texts = (self.run.name, self.run.model or "", self.run.method or "", self.status)
        return all(any(word in text.lower() for text in texts) for word in words.lower().split())


COLUMNS: dict[str, Callable[[RunRow], Any]] = {
    "name": lambda row: row.run.name.lower(),
    "status": lambda row: row.status,
    "model": lambda row: (row.run.model or "").lower(),
    "method": lambda row: row.run.method or "",
    "loss": lambda row: row.loss,
    "score": lambda row: row.score and row.score[1],
    "forgetting": lambda row: row.forgetting,
    "size": lambda row: row.run.bytes,
    "when": lambda row: row.when,
}
"""By which the table can be sorted: the heading, and its value in a row."""


def row_of(name: str) -> RunRow:
    run, directory = listed(name), RunDirectory.named(name)
    forgetting = None
    with suppress(RankwiseError, OSError):
        one = forgetting_of(evaluations_of(directory))
        forgetting = None if one is None or not math.isfinite(one.kl) else one.kl
    return RunRow(run, present_status(directory, run.status), forgetting, *course_of(directory.metrics))


def rows() -> list[RunRow]:
    return [row_of(name) for name in run_names()]


def in_order(chosen: Sequence[RunRow], by: str, order: Order) -> list[RunRow]:
    """Runs that are trained come first, and those without a value last."""
    value = COLUMNS[by]
    known = sorted((row for row in chosen if value(row) is not None), key=value, reverse=order == "descending")
    unknown = [row for row in chosen if value(row) is None]
    return sorted([*known, *unknown], key=lambda row: row.status not in ("running", STARTING))


def course_of(metrics: Path) -> tuple[Sequence[float], tuple[str, float] | None]:
    """The losses of the steps, as means where there are many, and the last value of the first metric; nothing where the
    log cannot be read."""
    try:
        facts = metrics.stat()
    except OSError:
        return (), None
    return _course(metrics.absolute(), facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=2000)
def _course(metrics: Path, changed: int, size: int) -> tuple[Sequence[float], tuple[str, float] | None]:
    try:
        records = [one for one in read_metrics_log(metrics) if isinstance(one, dict)]
    except (RankwiseError, OSError):
        return (), None
    scores = [one for one in records if one.get("kind") == "score"]
    values = _numbers(one.get("value") for one in scores if one.get("metric") == scores[0].get("metric"))
    score = (str(scores[0].get("metric"))[:60], values[-1]) if values else None
    losses = _numbers(one.get("loss") for one in records if one.get("kind") == "step")
    return bucket_means(losses, MOST_LOSSES), score


def _numbers(values: Iterable[Any]) -> list[float]:
    """The finite numbers among them."""
    return [float(one) for one in values if isinstance(one, int | float) and math.isfinite(one)]


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
        folder=_short(RUNS.absolute()), unused=_unused(), ways=WAYS,
    )  # fmt: skip


def _short(folder: Path) -> str:
    """With ~ for the user's own folder."""
    with suppress(ValueError, RuntimeError):
        return str(Path("~") / folder.relative_to(Path.home()))
    return str(folder)


def _unused() -> UnusedUploads | None:
    with suppress(OSError):
        return uploads.unused()
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
    return Leaving(name, shown.run.status, shown.run.bytes, sorted(parts, key=lambda item: (not item[0], -item[2])))


async def delete(request: Request) -> Response:
    form = await read_form(request)
    deleted = await run_in_threadpool(delete_runs, form.every("run"))
    return moved("/", f"Deleted {some(deleted.names)} and freed {size(deleted.bytes)}.")


def remove_uploads(request: Request) -> Response:
    gone = uploads.remove_unused()
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
