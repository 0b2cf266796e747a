"""The Ask screen: answers of a run, its base and other runs over the same base, side by side, as they are written."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from rankwise.config.base import JsonObject
from rankwise.config.data import column_text
from rankwise.errors import RankwiseError, RunError
from rankwise.methods.artifact import artifact_of
from rankwise.rows.forms.image_rows import IMAGE_SUFFIXES
from rankwise.runs.listing import ListedRun, listed_runs
from rankwise.runs.records import Callback, Event, StatusMessage, WarningMessage
from rankwise.runs.snapshot import RunSnapshot
from rankwise.serving.bodies import BadRequest, read_body
from rankwise.serving.reading import read_content
from rankwise.serving.replies import event as event_of
from rankwise.studio.asking import LARGEST_IMAGE, LONGEST_IMAGE, Answering, AskBody, LoadedModels, Send
from rankwise.studio.pages import Screen, moved, page

LARGEST = 2_000_000
"""Bytes of what the page sends beside an image: its conversations."""
FAILED = "The question failed. The terminal that runs the studio shows why."


def _load(names: Sequence[str], callback: Callback) -> Answering:
    """What loads models comes in with the first question."""
    from rankwise.studio.answering import load

    return load(names, callback)


LOADED_MODELS = LoadedModels(_load)


@dataclass(frozen=True)
class Askable:
    """A finished run. `kind` is text, classes, tags or images; with `is_separate` it shares its base with no other."""

    name: str
    base: str
    kind: str
    is_separate: bool
    scales: bool
    system: str
    prompt: str = ""
    """The text with column names in braces that its rows were read by, where there is one for all of them."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns of its prompt."""
        return column_text(self.prompt).columns

    @property
    def label(self) -> str:
        """The base without the folders before it."""
        return Path(self.base).name


def askable(snapshot: RunSnapshot) -> Askable:
    report, artifact = snapshot.recorded_data, artifact_of(snapshot, None)
    prompts = {one.prompt or f"{{{one.columns.get('text', '')}}}" for one in snapshot.experiment.data.all_sources}
    return Askable(
        snapshot.folder.name, snapshot.manifest.base_model.name, artifact.objective.words.shown_as,
        is_separate=artifact.why_not("asked beside others") is not None, scales=artifact.why_not("scaled") is None,
        system=(report.system or "") if report is not None else "",
        prompt=prompts.pop() if len(prompts) == 1 and "{}" not in prompts else "",
    )  # fmt: skip


def finished(listed: Sequence[ListedRun]) -> list[Askable]:
    runs: list[Askable] = []
    for one in listed:
        if one.status == "finished":
            try:
                runs.append(askable(RunSnapshot.finished(one.name)))
            except (RankwiseError, OSError):  # damaged since; the table of runs says so
                continue
    return runs


def shown(request: Request) -> Response:
    """`run` is what is asked, and each `with` another run beside it. Answers come slower beside a training."""
    listed = listed_runs()
    runs = finished(listed)
    by_name = {one.name: one for one in runs}
    named = request.query_params.get("run", "")
    if named and named not in by_name:
        raise RunError(f'there is no finished run "{named}" to ask.')
    run = by_name.get(named) or (runs[0] if runs else None)
    beside = [name for name in request.query_params.getlist("with") if name in by_name]
    others = [one for one in runs if run is not None and not run.is_separate and one.base == run.base
              and one.name != run.name and not one.is_separate]  # fmt: skip
    chosen = [one for one in others if one.name in beside]
    return page(
        request, "ask.html", title="Ask", runs=runs, run=run, others=others, beside=beside, chosen=chosen,
        images=",".join(IMAGE_SUFFIXES), largest=LARGEST_IMAGE,
        training=next((one.name for one in listed if one.status == "running"), None), loaded=LOADED_MODELS.names,
    )  # fmt: skip


async def answer(request: Request) -> Response:
    """Server-sent events: messages of loading, and what is new of each side."""
    content = await read_content(request, "application/json", LARGEST + LONGEST_IMAGE)
    body = read_body(AskBody, content)
    if len(content) - len(body.image or "") > LARGEST:
        raise BadRequest(f"the conversations have more than {LARGEST:,} bytes.", status=413)
    events: asyncio.Queue[JsonObject] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def send(event: JsonObject) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(events.put_nowait, event)

    def callback(event: Event) -> None:
        if isinstance(event, StatusMessage | WarningMessage):
            send({"status": event.text})

    return StreamingResponse(
        _streamed(body, events, send, callback), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


async def _streamed(
    body: AskBody, events: asyncio.Queue[JsonObject], send: Send, callback: Callback
) -> AsyncIterator[bytes]:
    """Ends early, and stops the answers, where the page has gone."""
    if tuple(body.runs) != LOADED_MODELS.names:
        yield event_of({"status": "Loading the model"})
    left = threading.Event()
    work = asyncio.ensure_future(run_in_threadpool(_answer, body, send, left, callback))
    work.add_done_callback(lambda done: done.cancelled() or done.exception())  # the page was told of it
    try:
        while "end" not in (event := await events.get()):
            yield event_of(event)
        yield event_of(event)
    finally:
        left.set()


def _answer(body: AskBody, send: Send, left: threading.Event, callback: Callback) -> None:
    try:
        LOADED_MODELS.ask(body, send, left, callback)
    except (RankwiseError, BadRequest) as error:
        send({"problem": str(error)})
    except Exception:
        send({"problem": FAILED})
        raise
    finally:
        send({"end": True})


def release(request: Request) -> Response:
    """Free the memory now."""
    freed = LOADED_MODELS.release()
    return moved(
        "/ask", "The model's memory was freed." if freed else "The model is answering; its memory stays in use."
    )


SCREEN = Screen(
    [Route("/ask", shown), Route("/ask/answer", answer, methods=["POST"]),
     Route("/ask/release", release, methods=["POST"])],
    label="Ask", path="/ask",
)  # fmt: skip
