"""The routes of OpenAI's files and fine-tuning jobs.

POST, GET   /v1/files                                   GET, DELETE /v1/files/ID        GET /v1/files/ID/content
POST, GET   /v1/fine_tuning/jobs                        GET /v1/fine_tuning/jobs/ID     GET …/events, …/checkpoints
POST        /v1/fine_tuning/jobs/ID/cancel, /pause, /resume                             DELETE /v1/models/NAME
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from rankwise.serving.bodies import BadRequest
from rankwise.serving.reading import read_json_body
from rankwise.serving.tuning.bodies import JobBody
from rankwise.serving.tuning.events import as_json, checkpoints_of, events_of, history_of
from rankwise.serving.tuning.files import Files
from rankwise.serving.tuning.jobs import Job, matches
from rankwise.serving.tuning.offered import Offered
from rankwise.serving.tuning.rows import check_rows
from rankwise.serving.tuning.uploads import filling, uploaded

_METADATA = re.compile(r"metadata\[(.{1,64})\]")


@dataclass(frozen=True)
class FineTuning:
    offered: Offered
    files: Files

    def routes(self) -> list[Route]:
        job, file = "/v1/fine_tuning/jobs/{id}", "/v1/files/{id}"
        return [
            Route("/v1/files", self.upload, methods=["POST"]), Route("/v1/files", self.list_files),
            Route(file, self.file), Route(file, self.delete_file, methods=["DELETE"]),
            Route(f"{file}/content", self.content),
            Route("/v1/fine_tuning/jobs", self.create, methods=["POST"]), Route("/v1/fine_tuning/jobs", self.list_jobs),
            Route(job, self.job), Route(f"{job}/events", self.events), Route(f"{job}/checkpoints", self.checkpoints),
            *(Route(f"{job}/{how}", self._changing(how), methods=["POST"]) for how in ("cancel", "pause", "resume")),
            Route("/v1/models/{name:path}", self.delete_model, methods=["DELETE"]),
        ]  # fmt: skip

    async def upload(self, request: Request) -> Response:
        async with uploaded(request) as file:
            name, model = file.filename or "", self.offered.serving.model
            stored = await run_in_threadpool(
                self.files.add, name, "fine-tune", filling(file), lambda folder: check_rows(folder, name, model)
            )
        return JSONResponse(stored.as_json())

    async def list_files(self, request: Request) -> Response:
        query = _query(request, "after", "limit", "order", "purpose")
        every = await run_in_threadpool(self.files.every)
        if (order := query.get("order", "desc")) not in ("asc", "desc"):
            raise BadRequest(f"order is {order[:20]!r}; asc or desc is expected.", parameter="order")
        shown = [one.as_json() for one in (every if order == "desc" else every[::-1])]
        shown = [one for one in shown if query.get("purpose") in (None, one["purpose"])]
        return _page(shown, query, most=10_000, usual=10_000)

    async def file(self, request: Request) -> Response:
        return JSONResponse((await run_in_threadpool(self.files.get, request.path_params["id"])).as_json())

    async def content(self, request: Request) -> Response:
        path = await run_in_threadpool(self.files.content, request.path_params["id"])
        return FileResponse(path, media_type="application/octet-stream", headers={"X-Content-Type-Options": "nosniff"})

    async def delete_file(self, request: Request) -> Response:
        name = request.path_params["id"]

        def delete() -> None:
            self.files.get(name)
            if using := self.offered.jobs.using(name):
                raise BadRequest(f"job {using[0].id} still needs this file. Cancel it first.", status=409)
            self.files.delete(name)

        await run_in_threadpool(delete)
        return JSONResponse({"object": "file", "id": name, "deleted": True})

    async def create(self, request: Request) -> Response:
        body = await read_json_body(request, JobBody)

        def created() -> dict[str, Any]:
            return self._shown(self.offered.jobs.create(body, self.offered.base(body.model)))

        return JSONResponse(await run_in_threadpool(created))

    async def list_jobs(self, request: Request) -> Response:
        metadata = {
            match[1]: value for key, value in request.query_params.items() if (match := _METADATA.fullmatch(key))
        }
        query = _query(request, "after", "limit", *(f"metadata[{key}]" for key in metadata))

        def jobs() -> Response:
            every = [one for one in self.offered.jobs.every() if matches(one, metadata)]
            return _page(every, query, most=100, usual=20, show=self._shown)

        return await run_in_threadpool(jobs)

    async def job(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(lambda: self._shown(self._job(request))))

    async def events(self, request: Request) -> Response:
        query = _query(request, "after", "limit")

        def events() -> list[dict[str, Any]]:
            job, state = self.offered.look_at(self._job(request))
            return events_of(job, state, history_of(job, self.offered.jobs.queue), self.offered.warning(job))

        return _page(await run_in_threadpool(events), query, most=100, usual=20)

    async def checkpoints(self, request: Request) -> Response:
        query = _query(request, "after", "limit")

        def checkpoints() -> list[dict[str, Any]]:
            job, state = self.offered.look_at(self._job(request))
            return checkpoints_of(job, state, history_of(job, self.offered.jobs.queue))

        return _page(await run_in_threadpool(checkpoints), query, most=100, usual=10)

    async def delete_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        await run_in_threadpool(self.offered.delete, name)
        return JSONResponse({"object": "model", "id": name, "deleted": True})

    def _changing(self, how: str) -> Callable[[Request], Any]:
        async def change(request: Request) -> Response:
            def changed() -> dict[str, Any]:
                job, jobs = self._job(request), self.offered.jobs
                if how == "resume":
                    return self._shown(jobs.resume(job, self.offered.base(job.model)))
                return self._shown(jobs.cancel(job) if how == "cancel" else jobs.pause(job))

            return JSONResponse(await run_in_threadpool(changed))

        return change

    def _job(self, request: Request) -> Job:
        return self.offered.jobs.get(request.path_params["id"])

    def _shown(self, job: Job) -> dict[str, Any]:
        job, state = self.offered.look_at(job)
        return as_json(job, state, history_of(job, self.offered.jobs.queue) if state.status == "running" else None)


def _query(request: Request, *known: str) -> dict[str, str]:
    """The parameters of a list. BadRequest for any other."""
    given = dict(request.query_params)
    if unknown := [name for name in given if name not in known]:
        raise BadRequest(*(f"unknown parameter {name[:60]!r}." for name in unknown[:20]), parameter=unknown[0][:60])
    return given


def _page(
    every: Sequence[Any], query: dict[str, str], *, most: int, usual: int, show: Callable[[Any], Any] = lambda one: one
) -> Response:
    """A part of a list: `limit` of it, behind the one whose id is `after`."""
    limit = query.get("limit", str(usual))
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 7 and 1 <= int(limit) <= most):
        raise BadRequest(f"limit is {limit[:20]!r}; a number from 1 to {most:,} is expected.", parameter="limit")
    ids = [one["id"] if isinstance(one, dict) else one.id for one in every]
    after, first = query.get("after"), 0
    if after is not None:
        if after not in ids:
            raise BadRequest(f"nothing in this list has the id {after[:60]!r}.", parameter="after")
        first = ids.index(after) + 1
    page = [show(one) for one in every[first : first + int(limit)]]
    data = {"object": "list", "data": page, "has_more": first + len(page) < len(every)}
    return JSONResponse(
        data | {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    )
