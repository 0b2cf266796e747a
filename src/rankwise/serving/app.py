"""The routes of every server, those of language models, and how a request waits for the engine's thread.

GET  /health            whether answers are being written; needs no key
GET  /metrics           counts for Prometheus
GET  /v1/models         what is served: the base and each adapter
POST /v1/chat/completions, /v1/completions
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import Field
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from rankwise.config.base import Config
from rankwise.errors import TYPED, ResourceError, typed
from rankwise.inference.decoding import Piece
from rankwise.inference.decoding import Stopped as Ended
from rankwise.serving.bodies import BadRequest, ChatBody, CompletionBody, Generation
from rankwise.serving.constraining import given_in
from rankwise.serving.engine import STOPPED, EngineThread, Full, Pending, ServingEngine, Stopped
from rankwise.serving.guards import Guard, problem, refusal
from rankwise.serving.questions import Question, chat_question, completion_question, served_by
from rankwise.serving.reading import read_json_body
from rankwise.serving.replies import DONE, Reply, event
from rankwise.serving.served import Listed, Served, Serving
from rankwise.serving.trial import ANSWERS, TRIALS

Pieces = asyncio.Queue[tuple[int, Piece]]
_Engine = TypeVar("_Engine", bound=EngineThread)
_Result = TypeVar("_Result")


class Named(Config, extra="ignore"):
    """The model that a request is for, whatever else it asks."""

    model: str = Field(min_length=1, max_length=256)


class Api(ABC, Generic[_Engine]):
    engine: _Engine
    kind: ClassVar[str]
    """What each of its models is, and where it is asked."""
    elsewhere: ClassVar[tuple[str, ...]]
    """Where models of another kind are asked."""

    @property
    @abstractmethod
    def models(self) -> Mapping[str, Listed]:
        """What is served, by name."""
        ...

    @abstractmethod
    def routes(self) -> list[Route]: ...

    def app(self, *, key: str | None, host: str, origins: tuple[str, ...] = ()) -> Starlette:
        """A browser asks without the key whether a page may ask, so that comes before the Guard."""
        routes = [
            Route("/health", self.health), Route("/metrics", self.metrics),
            Route("/v1/models", self.list_models), Route("/v1/models/{name:path}", self.one_model),
            *self.routes(), *(Route(path, self.misdirected, methods=["POST"]) for path in self.elsewhere),
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

    async def list_models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [one.as_json() for one in self.models.values()]})

    async def one_model(self, request: Request) -> Response:
        return JSONResponse(served_by(self.models, request.path_params["name"]).as_json())

    async def misdirected(self, request: Request) -> Response:
        served = served_by(self.models, (await read_json_body(request, Named)).model)
        raise BadRequest(f'"{served.name}" is {self.kind}.', parameter="model")


@dataclass(frozen=True)
class Server(Api[ServingEngine]):
    """`most` are the tokens of an answer that asks for no number."""

    serving: Serving
    engine: ServingEngine
    most: int
    further: Sequence[Route] = ()
    """Routes that were asked for: of loading adapters (changes.py), of fine-tuning (tuning/routes.py)."""
    kind, elsewhere = "a language model: POST /v1/chat/completions", ("/v1/classify",)

    @property
    def models(self) -> Mapping[str, Served]:
        return self.serving.models

    def routes(self) -> list[Route]:
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            *self.further,
        ]

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

        if (gone := await unless_gone(request, TRIALS.check(given_in(body)))) is not None:
            return gone
        with self.engine.leased(lambda: served_by(self.models, body.model)) as served:
            question = await run_in_threadpool(ask, self.serving, served, body, self.most)
            reply = Reply(question, self.serving.model.tokenizer, isinstance(body, ChatBody), listed)
            pending = question.pending(body, send)
            if len(pending) > self.engine.limits.batch_size + self.engine.limits.waiting:
                raise BadRequest(f"{len(pending)} answers are more than this server takes at once.", parameter="n")
            self.engine.submit(pending)
        if not body.stream:
            return await unless_gone(request, self._full_reply(reply, pending, pieces))
        usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(
            self._streamed(reply, pending, pieces, usage=usage), media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )  # fmt: skip

    async def _full_reply(self, reply: Reply, pending: list[Pending], pieces: Pieces) -> Response:
        unfinished = len(pending)
        try:
            while unfinished:
                _, piece = await pieces.get()
                if piece.problem is not None:
                    return refusal(500, piece.problem)
                unfinished -= piece.stopped is not None
            for one in pending:
                await _judge(reply.question, one)
            return JSONResponse(reply.full_reply(pending))
        finally:
            self.engine.cancel(pending)

    async def _streamed(
        self, reply: Reply, pending: list[Pending], pieces: Pieces, *, usage: bool
    ) -> AsyncIterator[bytes]:
        """An answer that may call tools is given in one piece, since its text may be a call."""
        unfinished, at_once = len(pending), bool(reply.question.tools)
        try:
            for number in range(len(pending)) if reply.chat else ():
                yield event(reply.opening(number))
            while unfinished:
                number, piece = await pieces.get()
                if piece.problem is not None:
                    yield event({"error": problem(500, piece.problem)})
                    return
                unfinished -= piece.stopped is not None
                if piece.stopped is not None:
                    piece = replace(piece, stopped=await _judge(reply.question, pending[number]))
                if at_once and piece.stopped is not None:
                    yield event(reply.calls(number, pending[number]))
                elif not at_once and (piece.text or piece.stopped or reply.listed):
                    yield event(reply.piece(number, piece))
            if usage:
                yield event(reply.last(pending))
            yield DONE
        finally:
            self.engine.cancel(pending)


async def _judge(question: Question, answer: Pending) -> Ended | None:
    """Why an answer ended. One that breaks its schema is not called complete (inference/generate.py)."""
    if question.schema is not None and answer.stopped == "end" and not answer.stops:
        with suppress(BadRequest):
            await ANSWERS.check([("schema", question.schema, "", answer.answer().text)])
            return "end"
        answer.stopped = "length"
    return answer.stopped


async def unless_gone(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result | Response:
    """What the work makes. It ends early where nobody waits for it any more."""
    doing, left = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait({doing, left}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else Response(status_code=499)
    finally:
        left.cancel()
        doing.cancel()


async def disconnected(request: Request) -> None:
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
