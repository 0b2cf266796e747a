"""The routes of OpenAI's files and fine-tuning jobs; and the models that jobs have made, served as soon as finished.

POST, GET   /v1/files                                   GET, DELETE /v1/files/ID        GET /v1/files/ID/content
POST, GET   /v1/fine_tuning/jobs                        GET /v1/fine_tuning/jobs/ID     GET …/events, …/checkpoints
POST        /v1/fine_tuning/jobs/ID/cancel, /pause, /resume                             DELETE /v1/models/NAME

What happened to a job (…/events) is told by its run's own records: metrics of each step, validations, and how it ended.

Routes that read no body are plain functions, which starlette runs in a thread.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from rankwise.config.base import JsonObject
from rankwise.errors import RankwiseError, typed
from rankwise.runs.metrics_log import History
from rankwise.serving.bodies import BadRequest
from rankwise.serving.changes import Changes
from rankwise.serving.engine import Stopped
from rankwise.serving.reading import read_json_body
from rankwise.serving.served import Serving
from rankwise.serving.tuning.bodies import JobBody
from rankwise.serving.tuning.files import Content, Files, check_rows, filling, uploaded
from rankwise.serving.tuning.jobs import ENDED, Base, Job, Jobs, State, seconds_of
from rankwise.system.files import write_atomic


def events_of(job: Job, state: State, history: History, warning: str | None = None) -> list[JsonObject]:
    """The newest first."""
    events = list[JsonObject]()

    def add(at: int, message: str, level: str = "info", data: JsonObject | None = None) -> None:
        events.append({
            "object": "fine_tuning.job.event", "id": f"ftevent-{job.id[6:]}{len(events):06d}", "created_at": at,
            "level": level, "message": message, "type": "message" if data is None else "metrics", "data": data or {},
        })  # fmt: skip

    add(job.created_at, f"Created fine-tuning job: {job.id}")
    add(job.created_at, f"Files validated, moving job to queued state: {job.training_file}")
    began = (None if state.manifest is None else seconds_of(state.manifest.started)) or job.created_at
    if state.manifest is not None:
        add(began, "Fine-tuning job started")
        for text in state.manifest.warnings:
            add(began, text, "warn")
    losses = {one.step: one.loss for one in history.losses}
    elapsed = 0.0
    for step in history.steps:
        elapsed += _finite(step.seconds) or 0.0
        data = {"step": step.step, "total_steps": step.steps, "train_loss": _finite(step.loss)}
        message = f"Step {step.step}/{step.steps}: training loss={step.loss:.4f}"
        if (loss := losses.get(step.step)) is not None:
            message += f", validation loss={loss:.4f}"
            data["valid_loss"] = _finite(loss)
        if step.preference_accuracy is not None:
            data["train_preference_accuracy"] = _finite(step.preference_accuracy)
        add(began + int(elapsed), message, data=data)
    ended = state.ended_at or began + int(elapsed)
    if state.status == "succeeded":
        add(ended, f"New fine-tuned model created: {job.tuned}")
        add(ended, "The job has successfully completed")
        if warning is not None:
            add(ended, warning, "warn")
    elif state.status == "failed":
        add(ended, f"The job failed: {state.problem}", "error")
    elif state.status == "cancelled":
        add(job.cancelled_at or ended, "The job was cancelled")
    elif state.status == "paused":
        add(job.paused_at or ended, "The job was paused")
    return events[::-1]


def results_of(history: History) -> str:
    """The result file: a line for each step."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["step", "train_loss", "valid_loss"])
    losses = {one.step: one.loss for one in history.losses}
    for step in history.steps:
        table.writerow([step.step, f"{step.loss:.6f}", f"{losses[step.step]:.6f}" if step.step in losses else ""])
    return text.getvalue()


def checkpoints_of(job: Job, state: State, history: History) -> list[JsonObject]:
    """The model that a finished job selected, which is the only one that stays."""
    results = None if state.manifest is None else state.manifest.results
    if state.status != "succeeded" or results is None:
        return []
    step = results.kept_step or results.steps
    losses = {one.step: one.loss for one in history.steps}
    validation = _finite(results.validation_loss_after)
    metrics = {"step": step, "train_loss": _finite(losses.get(step, results.loss)), "valid_loss": validation,
               "full_valid_loss": validation}  # fmt: skip
    return [{
        "object": "fine_tuning.job.checkpoint", "id": f"ftckpt-{job.id[6:]}", "created_at": state.ended_at,
        "fine_tuned_model_checkpoint": job.tuned, "fine_tuning_job_id": job.id, "metrics": metrics, "step_number": step,
    }]  # fmt: skip


def as_json(job: Job, state: State, history: History | None) -> JsonObject:
    """The job as OpenAI's API shows it; the history is of a running one."""
    own = job.hyperparameters.model_dump()
    kind = "dpo" if job.dpo else "supervised"
    manifest = state.manifest
    done = state.status == "succeeded"
    tokens = int(manifest.data.tokens * own["n_epochs"]) if done and manifest is not None else None
    error = {"code": "training_failed", "message": state.problem, "param": None} if state.status == "failed" else None
    return {
        "object": "fine_tuning.job", "id": job.id, "created_at": job.created_at, "model": job.model,
        "fine_tuned_model": job.tuned if done else None, "finished_at": state.ended_at if done else None,
        "organization_id": "rankwise", "status": state.status, "training_file": job.training_file,
        "validation_file": job.validation_file, "hyperparameters": own, "trained_tokens": tokens,
        "result_files": [job.result_file] if job.result_file else [], "error": error, "seed": job.seed,
        "estimated_finish": _estimated(state, history), "integrations": [], "metadata": job.metadata,
        "method": {"type": kind, kind: {"hyperparameters": own}}, "user_provided_suffix": job.suffix,
    }  # fmt: skip


def _estimated(state: State, history: History | None) -> int | None:
    """By the steps so far."""
    if history is None or state.manifest is None or not history.steps:
        return None
    last, spent = history.steps[-1], sum(one.seconds for one in history.steps)
    began = seconds_of(state.manifest.started)
    return None if began is None or not math.isfinite(spent) else began + int(spent * last.steps / max(1, last.step))


def _finite(value: float | None) -> float | None:
    """JSON has no other numbers."""
    return value if value is not None and math.isfinite(value) else None


_METADATA = re.compile(r"metadata\[(.{1,64})\]")
BETWEEN = 1.0
"""Seconds between two looks at unfinished jobs."""
_log = logging.getLogger(__name__)


class Offered:
    """Looks after jobs in a thread of its own: it starts a worker where runs wait and none works, as after a crash, and
    serves what is finished."""

    def __init__(self, serving: Serving, changes: Changes, jobs: Jobs) -> None:
        self.serving, self.jobs = serving, jobs
        self._changes = changes
        self._settling = threading.RLock()
        self._finished: dict[str, str | None] = {}
        """Ended jobs that were handled, and why the model of one is not served."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="rankwise-jobs", daemon=True)

    def start(self) -> None:
        """What is finished already is served before the first request."""
        self.settle()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def settle(self) -> None:
        self.jobs.queue.start_worker()
        unsettled = [name for name in self.jobs.stored.ids() if name not in self._finished]
        jobs = list[Job]()
        for name in unsettled:
            with suppress(BadRequest):  # damaged
                jobs.append(self.jobs.stored.get(name))
        for job in sorted(jobs, key=lambda item: item.created_at, reverse=True):
            self.look_at(job)

    def look_at(self, job: Job) -> tuple[Job, State]:
        """The job as it stands. Its model answers before the job is reported as succeeded."""
        with self._settling:
            state = self.jobs.state(job)
            if state.status in ENDED and job.id not in self._finished:
                self._finished[job.id] = None
                if state.status == "succeeded":
                    self._finish(job)
            return self.jobs.stored.get(job.id), state

    def warning(self, job: Job) -> str | None:
        return self._finished.get(job.id)

    def base(self, name: str) -> Base:
        """What a job trains that names this model. BadRequest (404) where it is none that can be trained."""
        model, served = self.serving.model, self.serving.models.get(name)
        if served is not None and served.adapter is None:
            return Base(model.config, model.width)
        if served is not None and (made := self.jobs.that_made(name)) is not None:
            return Base(model.config, model.width, made.run)
        known = ", ".join(one.name for one in self.serving.models.values() if one.adapter is None)
        raise BadRequest(
            f"no model {name[:80]!r} can be trained here. The base is called {known}; rankwise serve --alias adds "
            "names.", status=404, parameter="model",
        )  # fmt: skip

    def delete(self, name: str) -> None:
        """BadRequest where no job made this model. Its run stays."""
        with self._settling:
            job = self.jobs.that_made(name)
            if job is None or job.model_deleted:
                raise BadRequest(
                    f"no fine-tuning job of this server made {name[:80]!r}.", status=404, parameter="model"
                )
            self.jobs.change(job, model_deleted=True)
            with suppress(BadRequest):  # it was not loaded
                self._changes.unload(name)

    def _finish(self, job: Job) -> None:
        if job.result_file is None:
            text = results_of(self.jobs.history(job)).encode()
            stored = self.jobs.files.add(
                f"results-{job.id}.csv", "fine-tune-results", lambda path: write_atomic(path, text),
                lambda folder: Content(),
            )  # fmt: skip
            self.jobs.change(job, result_file=stored.id)
        if not job.model_deleted and job.tuned not in self.serving.models:
            try:
                self._changes.load(job.tuned, self.jobs.run_of(job).folder)
            except (RankwiseError, OSError) as error:  # its files may be gone
                self._finished[job.id] = f"The model is not served: {typed(error)}"

    def _follow(self) -> None:
        while not self._stop.wait(BETWEEN):
            try:
                self.settle()
            except Stopped:
                return
            except Exception as error:  # a full disk, say: the next look may do better
                _log.error("fine-tuning jobs could not be looked at", exc_info=error)


def tuning_routes(offered: Offered) -> list[Route]:
    return [*FileRoutes(offered).routes(), *JobRoutes(offered).routes()]


@dataclass(frozen=True)
class FileRoutes:
    offered: Offered

    @property
    def files(self) -> Files:
        return self.offered.jobs.files

    def routes(self) -> list[Route]:
        file = "/v1/files/{id}"
        return [
            Route("/v1/files", self.upload, methods=["POST"]), Route("/v1/files", self.list_files),
            Route(file, self.file), Route(file, self.delete_file, methods=["DELETE"]),
            Route(f"{file}/content", self.content),
        ]  # fmt: skip

    async def upload(self, request: Request) -> Response:
        async with uploaded(request) as file:
            name, model = file.filename or "", self.offered.serving.model
            stored = await run_in_threadpool(
                self.files.add, name, "fine-tune", filling(file), lambda folder: check_rows(folder, name, model)
            )
        return JSONResponse(stored.as_json())

    def list_files(self, request: Request) -> Response:
        order, purpose = request.query_params.get("order", "desc"), request.query_params.get("purpose")
        if order not in ("asc", "desc"):
            raise BadRequest(f"order is {order[:20]!r}; asc or desc is expected.", parameter="order")
        shown = [one.as_json() for one in self.files.every()][:: 1 if order == "desc" else -1]
        shown = [one for one in shown if purpose in (None, one["purpose"])]
        return _page(request, shown, "order", "purpose", most=10_000, usual=10_000)

    def file(self, request: Request) -> Response:
        return JSONResponse(self.files.get(request.path_params["id"]).as_json())

    def content(self, request: Request) -> Response:
        path = self.files.content(request.path_params["id"])
        return FileResponse(path, media_type="application/octet-stream", headers={"X-Content-Type-Options": "nosniff"})

    def delete_file(self, request: Request) -> Response:
        name = self.files.get(request.path_params["id"]).id
        if using := self.offered.jobs.using(name):
            raise BadRequest(f"job {using[0].id} still needs this file. Cancel it first.", status=409)
        self.files.delete(name)
        return JSONResponse({"object": "file", "id": name, "deleted": True})


@dataclass(frozen=True)
class JobRoutes:
    offered: Offered

    def routes(self) -> list[Route]:
        job = "/v1/fine_tuning/jobs/{id}"
        return [
            Route("/v1/fine_tuning/jobs", self.create, methods=["POST"]), Route("/v1/fine_tuning/jobs", self.list_jobs),
            Route(job, self.job), Route(f"{job}/events", self.events), Route(f"{job}/checkpoints", self.checkpoints),
            Route(f"{job}/cancel", self.cancel, methods=["POST"]), Route(f"{job}/pause", self.pause, methods=["POST"]),
            Route(f"{job}/resume", self.resume, methods=["POST"]),
            Route("/v1/models/{name:path}", self.delete_model, methods=["DELETE"]),
        ]  # fmt: skip

    async def create(self, request: Request) -> Response:
        body = await read_json_body(request, JobBody)

        def created() -> dict[str, Any]:
            return _shown(self.offered, self.offered.jobs.create(body, self.offered.base(body.model)))

        return JSONResponse(await run_in_threadpool(created))

    def list_jobs(self, request: Request) -> Response:
        metadata = {
            match[1]: value for key, value in request.query_params.items() if (match := _METADATA.fullmatch(key))
        }
        every = [one for one in self.offered.jobs.stored.every() if metadata.items() <= (one.metadata or {}).items()]
        return _page(request, every, *(f"metadata[{key}]" for key in metadata), show=partial(_shown, self.offered))

    def job(self, request: Request) -> Response:
        return JSONResponse(_shown(self.offered, self._job(request)))

    def events(self, request: Request) -> Response:
        job, state, history = self._looked_at(request)
        return _page(request, events_of(job, state, history, self.offered.warning(job)))

    def checkpoints(self, request: Request) -> Response:
        return _page(request, checkpoints_of(*self._looked_at(request)), usual=10)

    def cancel(self, request: Request) -> Response:
        return JSONResponse(_shown(self.offered, self.offered.jobs.cancel(self._job(request))))

    def pause(self, request: Request) -> Response:
        return JSONResponse(_shown(self.offered, self.offered.jobs.pause(self._job(request))))

    def resume(self, request: Request) -> Response:
        job = self._job(request)
        return JSONResponse(_shown(self.offered, self.offered.jobs.resume(job, self.offered.base(job.model))))

    def delete_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.offered.delete(name)
        return JSONResponse({"object": "model", "id": name, "deleted": True})

    def _looked_at(self, request: Request) -> tuple[Job, State, History]:
        job, state = self.offered.look_at(self._job(request))
        return job, state, self.offered.jobs.history(job)

    def _job(self, request: Request) -> Job:
        return self.offered.jobs.stored.get(request.path_params["id"])


def _shown(offered: Offered, job: Job) -> JsonObject:
    job, state = offered.look_at(job)
    return as_json(job, state, offered.jobs.history(job) if state.status == "running" else None)


def _page(
    request: Request, every: Sequence[Any], *known: str, most: int = 100, usual: int = 20,
    show: Callable[[Any], Any] = lambda item: item,
) -> Response:  # fmt: skip
    """A part of a list: `limit` of it, behind the one whose id is `after`. BadRequest for any other parameter that is
    not known."""
    query = request.query_params
    if unknown := [name for name in query if name not in ("after", "limit", *known)]:
        raise BadRequest(*(f"unknown parameter {name[:60]!r}." for name in unknown[:20]), parameter=unknown[0][:60])
    limit, after, first = query.get("limit", str(usual)), query.get("after"), 0
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 7 and 1 <= int(limit) <= most):
        raise BadRequest(f"limit is {limit[:20]!r}; a number from 1 to {most:,} is expected.", parameter="limit")
    ids = [one["id"] if isinstance(one, dict) else one.id for one in every]
    if after is not None:
        if after not in ids:
            raise BadRequest(f"nothing in this list has the id {after[:60]!r}.", parameter="after")
        first = ids.index(after) + 1
    page = [show(one) for one in every[first : first + int(limit)]]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return JSONResponse({"object": "list", "data": page, "has_more": first + len(page) < len(every)} | ends)
