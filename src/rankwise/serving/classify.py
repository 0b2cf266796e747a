"""A server of classifiers: each has a model of its own in memory, and rows of all requests are classified together.

POST /v1/classify   {"model": "tickets", "input": ["a text", ["a text", "a second one"], {"column": "a text"}]}
                    {"data": [{"index": 0, "label": "refund", "probability": 0.97, "probabilities": {…}}, …], …}

What is wrong with any item is told at once, before a row of the request is classified.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any
from uuid import uuid4

from pydantic import Field, field_validator
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rankwise.config.base import Config
from rankwise.config.models import Dtype
from rankwise.errors import RankwiseError, joined_problems, typed
from rankwise.inference.tuned_model import TunedModel, load_tuned
from rankwise.methods.artifact import Artifact
from rankwise.objectives.predictions import Prediction
from rankwise.rows.asking import RowReader
from rankwise.rows.text.example import Example
from rankwise.rows.text.outcome import Outcome
from rankwise.runs.records import Callback
from rankwise.serving.app import Api, disconnected
from rankwise.serving.bodies import BadRequest
from rankwise.serving.engine import EngineThread, Limits, Stopped
from rankwise.serving.questions import served_by
from rankwise.serving.reading import read_json_body
from rankwise.serving.served import Listed, by_name, created_at, hash_of, own_name

MOST = 512
"""Items of a request."""


class ClassifyBody(Config):
    model: str = Field(min_length=1, max_length=256)
    input: Any
    """A row, or a list of rows."""
    user: str | None = None

    @property
    def items(self) -> list[Any]:
        return self.input if isinstance(self.input, list) else [self.input]

    @field_validator("input")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if isinstance(value, list) and not 1 <= len(value) <= MOST:
            raise ValueError(f"a list of 1 to {MOST} rows is expected, and this one has {len(value):,}")
        return value


@dataclass(frozen=True)
class ServedClassifier(Listed):
    tuned: TunedModel
    _encoding: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """A tokenizer encodes one request at a time."""

    @cached_property
    def _reader(self) -> RowReader:
        return RowReader(self.tuned.artifact.run, self.tuned.objective.row_form)

    def encoded(self, items: Sequence[Any]) -> list[Outcome]:
        """BadRequest with what is wrong with any of them."""
        examples, problems = dict[int, Example](), dict[int, str]()
        for at, item in enumerate(items):
            try:
                examples[at] = self._example(item, f"input[{at}]")
            except RankwiseError as error:
                problems[at] = str(error)
            except RecursionError:
                problems[at] = f"input[{at}]: is nested too deeply to be a row."
        tuned = self.tuned
        with self._encoding:
            outcomes = tuned.classifier.inputs.encoded(tuned.model, [*examples.values()], tuned.longest)
        problems |= {at: one.problem for at, one in zip(examples, outcomes, strict=True) if one.problem is not None}
        if problems:
            in_order = [problems[at] for at in sorted(problems)]
            raise BadRequest(*joined_problems(in_order).splitlines(), parameter="input")
        return outcomes

    def _example(self, item: Any, where: str) -> Example:
        """A text fills in the prompt that the run's rows were read with."""
        run = self.tuned.artifact.run
        if isinstance(item, str) and run is not None and any(one.prompt for one in run.experiment.data.all_sources):
            return self._reader.question(item, where)
        return self.tuned.classifier.inputs.requested(item, where, lambda row: self._reader.question(row, where))


def load_classifiers(
    artifacts: Sequence[Artifact], callback: Callback, dtype: Dtype = "auto"
) -> dict[str, ServedClassifier]:
    """ConfigError where two have the same name."""
    served = list[ServedClassifier]()
    for one in artifacts:
        config = one.model
        config = config if dtype == "auto" else config.model_copy(update={"dtype": dtype})
        tuned, weights = load_tuned(one, callback, config=config), one.result
        served.append(ServedClassifier(own_name(one.name), hash_of(weights), created_at(weights), None, tuned))
    return by_name(served)


@dataclass(eq=False)
class WaitingRows:
    """The encoded rows of a request."""

    tuned: TunedModel
    rows: Sequence[Outcome]
    begun: int = 0
    predictions: list[Prediction] = field(default_factory=list)
    done: Future[list[Prediction]] = field(default_factory=Future)


Taken = list[tuple[WaitingRows, Sequence[Outcome]]]
"""Rows of several requests."""


class ClassifyingEngine(EngineThread):
    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._waiting: deque[WaitingRows] = deque()
        self._running: Taken = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests whose last rows are in the batch; others wait again."""
        return sum(queued.begun == len(queued.rows) for queued, _ in self._running)

    def submit(self, queued: WaitingRows) -> None:
        """Full where too many wait."""
        queued.done.set_running_or_notify_cancel()  # only the thread ends it
        with self._changed:
            if self._stopping:
                raise Stopped
            self._check_room(1)
            self.counts.requests += 1
            self._waiting.append(queued)
            self._changed.notify()

    def cancel(self, queued: WaitingRows) -> None:
        """Nobody waits for it any more."""
        with self._changed:
            self.counts.cancelled += not queued.done.done()
            if queued in self._waiting:
                self._waiting.remove(queued)

    def _run(self) -> None:
        """Nobody is left waiting, whatever happens to this thread."""
        try:
            while taken := self._take():
                self._answer(taken)
        finally:
            with self._changed:
                self._stopping, left = True, {*self._waiting, *(queued for queued, _ in self._running)}
                self._waiting.clear()
            for queued in left:
                if not queued.done.done():
                    queued.done.set_exception(Stopped())

    def _take(self) -> Taken:
        """Rows that are classified together, once there are some; none when it is time to stop."""
        with self._changed:
            self._running = []
            while not (self._waiting or self._stopping):
                self._changed.wait()
            if self._stopping:
                return []
            tuned, room = self._waiting[0].tuned, self.limits.batch_size
            for queued in [one for one in self._waiting if one.tuned is tuned]:
                if part := queued.rows[queued.begun : queued.begun + room]:
                    self._waiting.remove(queued)
                    self._running.append((queued, part))
                    queued.begun, room = queued.begun + len(part), room - len(part)
            self._waiting.extend(queued for queued, _ in self._running if queued.begun < len(queued.rows))
            return self._running

    def _answer(self, taken: Taken) -> None:
        began, tuned = time.monotonic(), taken[0][0].tuned
        rows = [row for _, part in taken for row in part]
        try:
            found = iter(tuned.classifier.predictions_of(tuned.model, rows))
        except Exception as error:
            self.counts.failed += len(taken)
            for queued, _ in taken:
                queued.done.set_exception(typed(error) or error)
                self.cancel(queued)  # of which other rows may wait
            return
        with self._changed:
            self.counts.prompt_tokens += sum(len(row.sequences[0].ids) for row in rows)
            self._seconds += 0.1 * (time.monotonic() - began - self._seconds)
            for queued, part in taken:
                queued.predictions += islice(found, len(part))
                if len(queued.predictions) == len(queued.rows):
                    queued.done.set_result(queued.predictions)


@dataclass(frozen=True)
class ClassifyServer(Api[ClassifyingEngine]):
    classifiers: Mapping[str, ServedClassifier]
    engine: ClassifyingEngine
    kind, elsewhere = "a classifier: POST /v1/classify", ("/v1/chat/completions", "/v1/completions")

    @property
    def models(self) -> Mapping[str, ServedClassifier]:
        return self.classifiers

    def routes(self) -> list[Route]:
        return [Route("/v1/classify", self.classify, methods=["POST"])]

    async def classify(self, request: Request) -> Response:
        """Ends early where nobody waits for it any more."""
        largest = max(one.tuned.classifier.inputs.largest_request for one in self.models.values())
        body = await read_json_body(request, ClassifyBody, largest)
        self.engine.check_room()
        served = served_by(self.models, body.model)
        queued = WaitingRows(served.tuned, await run_in_threadpool(served.encoded, body.items))
        self.engine.submit(queued)
        left, found = asyncio.ensure_future(disconnected(request)), asyncio.wrap_future(queued.done)
        try:
            await asyncio.wait({left, found}, return_when=asyncio.FIRST_COMPLETED)
            return JSONResponse(_reply(served, queued, found.result())) if found.done() else Response(status_code=499)
        finally:
            left.cancel()
            self.engine.cancel(queued)


def _reply(served: ServedClassifier, queued: WaitingRows, predictions: Sequence[Prediction]) -> dict[str, Any]:
    tokens = sum(len(row.sequences[0].ids) for row in queued.rows)
    return {
        "id": f"classify-{uuid4().hex}", "object": "list", "created": int(time.time()), "model": served.name,
        "data": [{"index": at} | one.as_values() for at, one in enumerate(predictions)],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
        "system_fingerprint": served.sha256,
    }  # fmt: skip
