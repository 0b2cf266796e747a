"""The routes of the server, and how a request waits for the engine's thread.

GET  /health            whether answers are being written; needs no key
GET  /metrics           counts for Prometheus
GET  /v1/models         the base and each adapter
POST /v1/chat/completions, /v1/completions
GET  /openapi.json      the requests' schema
POST /v1/load_lora_adapter, /v1/unload_lora_adapter     where it is allowed, as in vLLM
/v1/files, /v1/fine_tuning/jobs                         where it is allowed (tuning/routes.py)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from rankwise import __version__
from rankwise.config.base import Config, JsonObject
from rankwise.errors import TYPED, ResourceError, typed
from rankwise.inference.decoding import Piece
from rankwise.serving.bodies import BadRequest, ChatBody, CompletionBody, Generation, Switch
from rankwise.serving.changes import NAME, Changes
from rankwise.serving.engine import STOPPED, Engine, Full, Pending, Stopped
from rankwise.serving.guards import Guard, problem, refusal
from rankwise.serving.questions import Question, chat_question, completion_question, served_by
from rankwise.serving.reading import read_json_body
from rankwise.serving.replies import DONE, Choice, Reply, event
from rankwise.serving.served import Serving
from rankwise.serving.tuning.bodies import JobBody
from rankwise.serving.tuning.routes import FineTuning

Pieces = asyncio.Queue[tuple[int, Piece]]
Name = Annotated[str, Field(pattern=NAME)]
STREAMED = ("application/json", "text/event-stream")
ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
REFUSED = {
    "400": "something in the request is wrong; the message says what", "401": "the key is missing or wrong",
    "403": "the host or the origin is not allowed", "404": "no such model, file or job",
    "408": "the body came too slowly", "409": "it is in use", "413": "the body is too large",
    "415": "the body is of another type", "429": "too many requests are waiting; Retry-After has the seconds",
}  # fmt: skip


class LoadBody(Config):
    lora_name: Name
    lora_path: str = Field(min_length=1, max_length=4096)
    """A folder or file below the one that adapters may be loaded from."""
    load_inplace: Switch = False
    """Whether it takes the name of an adapter that is served."""


class UnloadBody(Config):
    lora_name: Name


def loading_routes(changes: Changes) -> list[Route]:
    async def load(request: Request) -> Response:
        body = await read_json_body(request, LoadBody)
        await run_in_threadpool(changes.load_below, body.lora_name, body.lora_path, replace=body.load_inplace)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload(request: Request) -> Response:
        body = await read_json_body(request, UnloadBody)
        await run_in_threadpool(changes.unload, body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    if changes.folder is None:
        return []
    return [
        Route("/v1/load_lora_adapter", load, methods=["POST"]),
        Route("/v1/unload_lora_adapter", unload, methods=["POST"]),
    ]


@dataclass(frozen=True)
class Server:
    """`most` are the tokens of an answer that asks for no number."""

    serving: Serving
    engine: Engine
    most: int
    changes: Changes | None = None
    """Where adapters may be loaded and removed."""
    tuning: FineTuning | None = None
    """Where files may be uploaded and trained on."""

    def app(self, *, key: str | None, host: str, origins: tuple[str, ...] = ()) -> Starlette:
        """A browser asks without the key whether a page may ask, so that comes before the Guard."""
        routes = [
            Route("/health", self.health), Route("/metrics", self.metrics), Route("/openapi.json", self.openapi),
            Route("/v1/models", self.models), Route("/v1/models/{name:path}", self.one_model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            *(loading_routes(self.changes) if self.changes is not None else ()),
            *(self.tuning.routes() if self.tuning is not None else ()),
        ]  # fmt: skip
        allowed = {"allow_origins": origins, "allow_methods": ("GET", "POST", "DELETE"), "allow_headers": ("*",)}
        pages = [Middleware(CORSMiddleware, **allowed, expose_headers=("Retry-After",))] if origins else []
        return Starlette(
            routes=routes,
            middleware=[*pages, Middleware(Guard, key=key, host=host, origins=origins)],  # pyright: ignore[reportArgumentType]
            exception_handlers=HANDLERS,  # pyright: ignore[reportArgumentType]
        )

    async def health(self, request: Request) -> Response:
        alive = self.engine.is_alive
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        counts = vars(self.engine.counts)
        lines = [
            f"# TYPE rankwise_{name}_total counter\nrankwise_{name}_total {value}" for name, value in counts.items()
        ]
        for name, value in (("waiting", self.engine.waiting), ("running", self.engine.running)):
            lines.append(f"# TYPE rankwise_answers_{name} gauge\nrankwise_answers_{name} {value}")
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        loading = self.changes is not None and self.changes.folder is not None
        return JSONResponse(schema(loading=loading, tuning=self.tuning is not None))

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [one.as_json() for one in self.serving.models.values()]})

    async def one_model(self, request: Request) -> Response:
        return JSONResponse(served_by(self.serving, request.path_params["name"]).as_json())

    async def chat(self, request: Request) -> Response:
        body = await read_json_body(request, ChatBody)
        return await self._answered(request, body, chat_question, listed=body.logprobs)

    async def completions(self, request: Request) -> Response:
        body = await read_json_body(request, CompletionBody)
        return await self._answered(request, body, completion_question, listed=body.logprobs is not None)

    async def _answered(
        self, request: Request, body: Generation, ask: Callable[..., Question], *, listed: bool
    ) -> Response:
        self.engine.check_room()
        pieces, loop = Pieces(), asyncio.get_running_loop()

        def send(number: int, piece: Piece) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, (number, piece))

        with self.engine.leased(lambda: served_by(self.serving, body.model)) as served:
            question = await run_in_threadpool(ask, self.serving, served, body, self.most)
            reply = Reply(question, self.serving.model.tokenizer, isinstance(body, ChatBody), listed)
            pending = question.pending(body, send)
            if len(pending) > self.engine.limits.together + self.engine.limits.waiting:
                raise BadRequest(f"{len(pending)} answers are more than this server takes at once.", parameter="n")
            self.engine.submit(pending)
        if not body.stream:
            return await self._whole(request, reply, pending, pieces)
        usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(
            self._streamed(reply, pending, pieces, usage=usage), media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )  # fmt: skip

    async def _whole(self, request: Request, reply: Reply, pending: list[Pending], pieces: Pieces) -> Response:
        """Ends early where nobody waits for it any more."""
        choices = [Choice(one.row) for one in pending]
        left = asyncio.ensure_future(_disconnected(request))
        try:
            while any(one.finish is None for one in choices):
                following = asyncio.ensure_future(pieces.get())
                await asyncio.wait({following, left}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    return Response(status_code=499)
                number, piece = following.result()
                if piece.problem is not None:
                    return refusal(500, piece.problem)
                choices[number].add(piece)
            return JSONResponse(reply.whole(choices))
        finally:
            left.cancel()
            self.engine.cancel(pending)

    async def _streamed(
        self, reply: Reply, pending: list[Pending], pieces: Pieces, *, usage: bool
    ) -> AsyncIterator[bytes]:
        """An answer that may call tools is given in one piece, since its text may be a call."""
        choices, at_once = [Choice(one.row) for one in pending], bool(reply.question.tools)
        try:
            for number in range(len(pending)) if reply.chat else ():
                yield event(reply.opening(number))
            while any(one.finish is None for one in choices):
                number, piece = await pieces.get()
                if piece.problem is not None:
                    yield event({"error": problem(500, piece.problem)})
                    return
                choices[number].add(piece)
                if at_once and piece.stopped is not None:
                    yield event(reply.calls(number, choices[number]))
                elif not at_once and (piece.text or piece.stopped or reply.listed):
                    yield event(reply.piece(number, piece))
            if usage:
                yield event(reply.last(choices))
            yield DONE
        finally:
            self.engine.cancel(pending)


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(request: Request, error: HTTPException | BadRequest) -> Response:
    if isinstance(error, BadRequest):
        return refusal(error.status, str(error), error.parameter)
    return refusal(error.status_code, f"{request.method} {request.scope['path'][:200]}: {error.detail}.")


async def _failed(request: Request, error: Exception) -> Response:
    """Our own mistake, whose traceback starlette passes on to the log."""
    return refusal(500, "the request could not be answered; the log says why.")


async def _met(request: Request, error: Exception) -> Response:
    """What the system refuses to the server, such as a full disk."""
    known = typed(error)
    if known is None:
        raise error
    return refusal(507 if isinstance(known, ResourceError) else 500, str(known))


async def _full(request: Request, error: Full) -> Response:
    message = f"too many requests are waiting. Try again in {error.seconds} s."
    return refusal(429, message, headers={"Retry-After": str(error.seconds)})


async def _stopped(request: Request, error: Stopped) -> Response:
    return refusal(503, STOPPED)


HANDLERS = {
    **dict.fromkeys(TYPED, _met), HTTPException: _refused, BadRequest: _refused, Full: _full, Stopped: _stopped,
    Exception: _failed,
}  # fmt: skip


def schema(*, loading: bool = False, tuning: bool = False) -> JsonObject:
    """Of the routes that a server has."""
    open_to_all = ("401", "403")
    paths: JsonObject = {
        "/health": {"get": _operation("whether answers are being written", refused=open_to_all)},
        "/metrics": {"get": _operation("counts for Prometheus", "text/plain", refused=open_to_all)},
        "/v1/models": {"get": _operation("the base and each adapter", refused=open_to_all)},
        "/v1/chat/completions": {"post": _asking(ChatBody, "the answer to a conversation", *STREAMED)},
        "/v1/completions": {"post": _asking(CompletionBody, "how the model continues a text", *STREAMED)},
    }
    kinds: list[type[BaseModel]] = [ChatBody, CompletionBody]
    if loading:
        paths["/v1/load_lora_adapter"] = {"post": _asking(LoadBody, "the adapter is served", "text/plain")}
        paths["/v1/unload_lora_adapter"] = {"post": _asking(UnloadBody, "the adapter is gone", "text/plain")}
        kinds += [LoadBody, UnloadBody]
    if tuning:
        paths |= _tuning()
        kinds.append(JobBody)
    bodies = {}
    for kind in kinds:
        own = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        bodies |= own.pop("$defs", {}) | {kind.__name__: own}
    return {
        "openapi": "3.1.0", "info": {"title": "rankwise serve", "version": __version__}, "paths": paths,
        "components": {"schemas": bodies, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }  # fmt: skip


def _tuning() -> JsonObject:
    """Files and fine-tuning jobs."""
    upload = {"type": "object", "required": ["file", "purpose"], "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": {"type": "string", "enum": ["fine-tune"]},
    }}  # fmt: skip
    file, job = "/v1/files/{id}", "/v1/fine_tuning/jobs/{id}"
    after, limit, order, purpose = map(_in_query, ("after", "limit", "order", "purpose"))
    of_job = _operation("the job", parameters=[ID])
    return {
        "/v1/files": {
            "get": _operation("the files", parameters=[after, limit, order, purpose]),
            "post": _operation("the file", body={"multipart/form-data": {"schema": upload}}),
        },
        file: {
            "get": _operation("the file", parameters=[ID]), "delete": _operation("that it is gone", parameters=[ID]),
        },
        f"{file}/content": {"get": _operation("what was uploaded", "application/octet-stream", parameters=[ID])},
        "/v1/fine_tuning/jobs": {
            "get": _operation("the jobs, the newest first", parameters=[after, limit]),
            "post": _asking(JobBody, "the job"),
        },
        job: {"get": of_job},
        **{f"{job}/{name}": {"get": _operation(f"the {name} of a job", parameters=[after, limit, ID])}
           for name in ("events", "checkpoints")},
        **{f"{job}/{how}": {"post": of_job} for how in ("cancel", "pause", "resume")},
    }  # fmt: skip


def _in_query(name: str) -> JsonObject:
    return {"name": name, "in": "query", "schema": {"type": "string"}}


def _asking(kind: type[BaseModel], answer: str, *media: str) -> JsonObject:
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return _operation(answer, *media, body={"application/json": {"schema": schema}})


def _operation(answer: str, *media: str, refused: Iterable[str] = REFUSED, **request: Any) -> JsonObject:
    """A way to ask: `parameters` or the `body` of its request, its answer, and how it may be refused."""
    if (body := request.pop("body", None)) is not None:
        request["requestBody"] = {"required": True, "content": body}
    answers = {"200": {"description": answer, "content": {one: {} for one in media or ("application/json",)}}}
    return request | {"responses": answers | {code: {"description": REFUSED[code]} for code in refused}}
