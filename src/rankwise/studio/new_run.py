"""The New run screen: a form that forecasts the training as it is filled in, and puts it into the queue."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from rankwise.base.cached import is_here
from rankwise.commands.models import known_models
from rankwise.config.base import JsonObject
from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError, RankwiseError
from rankwise.planning.reading import needs_hub
from rankwise.runs.listing import RUNS
from rankwise.runs.own_files import is_run
from rankwise.runs.queue import Queue
from rankwise.runs.snapshot import RunSnapshot
from rankwise.studio import uploads
from rankwise.studio.forecast import (
    OF_DATA,
    ForecastView,
    Preview,
    ShownForecast,
    columns_shown,
    forecast,
    preview_shown,
    report_shown,
    sheet_file,
)
from rankwise.studio.pages import Screen, SentForm, moved, page, read_form, segment
from rankwise.studio.samples import WAYS
from rankwise.studio.settings_form import (
    CARD,
    CARDS,
    KNOBS,
    OTHER,
    TUNE,
    Problem,
    SettingsForm,
    fields_of,
    problems_of,
    with_labels,
)
from rankwise.system.hub import could_be_hub_id, hub_may_be_asked

HUB = "hub"
"""The box that allows asking the hub for names that are not on this machine."""
NOT_HERE = "is not on this machine. Tick “May ask the hub” below the model to look there, which uses the network."
NAMES = (*KNOBS, CARD, OTHER, TUNE)
FIELD_LABELS = {name: knob.mark.text for name, knob in KNOBS.items()}
_View = TypeVar("_View")
LONGEST = 64
"""Characters of a page's name for itself."""


@dataclass
class _Page:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    newest: int = 0
    waiting: int = 0


@dataclass
class Turns:
    """One forecast at a time for each page: what was asked last takes the next turn, and what it replaces is dropped.

    A browser that gives up a request ends nothing here: a thread that computes goes on. So requests of one page wait
    for each other, and of those that wait only the newest is worth its work.
    """

    _pages: dict[str, _Page] = field(default_factory=dict)

    @asynccontextmanager
    async def turn(self, page: str) -> AsyncGenerator[bool, None]:
        """Wait for the turn of a page; False where a newer request of it came meanwhile."""
        own = self._pages.setdefault(page, _Page())
        own.newest += 1
        own.waiting += 1
        number = own.newest
        try:
            async with own.lock:
                yield number == own.newest
        finally:
            own.waiting -= 1
            if not own.waiting:
                del self._pages[page]


_turns = Turns()


def form_of(sent: SentForm) -> SettingsForm:
    return SettingsForm({name: sent.text(name) for name in NAMES if name in sent.fields})


def empty(request: Request) -> Response:
    """With `from`, the form of that run; with `way`, one for that use, on its sample rows if they were asked for."""
    name, way = request.query_params.get("from", ""), WAYS.get(request.query_params.get("way", ""))
    fields = (
        fields_of(RunSnapshot.read(name).experiment.model_dump(mode="json"))
        if name
        else {}
        if way is None
        else {"model.name": way.model}
    )
    if way is not None and "sample" in request.query_params and (path := way.path()).is_file():
        fields |= {"data.path": str(path), **way.settings}
    return _page(request, fields | {"run": free_name(name or request.query_params.get("way", "run"))}, source=name)


async def sample(request: Request) -> Response:
    """Store the sample rows of a way as if they had been uploaded, and open the form on them."""
    name = (await read_form(request)).text("way")
    if (way := WAYS.get(name)) is None:
        raise HTTPException(404)

    async def content() -> AsyncGenerator[bytes, None]:
        yield way.content()

    await uploads.stored(content(), way.file)
    return moved(f"/new?way={name}&sample=yes", "These are invented rows to try it with. Start trains on them.")


def free_name(name: str) -> str:
    """A name like this one that no run has."""
    stem = name.rstrip("0123456789").rstrip("-")[:50] or "run"
    waiting = {one.run for one in Queue().waiting()}
    names = (f"{stem}-{number}" for number in itertools.count(1))
    return next(one for one in names if one not in waiting and not (RUNS / one).exists())


def _page(
    request: Request, fields: dict[str, str], problems: Sequence[Problem] = (), *, source: str = "", hub: bool = False
) -> Response:
    form = SettingsForm(fields)
    beside: dict[str, list[str]] = {}
    for problem in problems:
        beside.setdefault(problem.field, []).append(problem.text)
    groups: dict[str, list[Any]] = {}
    for knob in KNOBS.values():
        groups.setdefault(knob.mark.group, []).append(knob)
    return page(
        request, "new_run.html", 422 if problems else 200, title="New run", fields=fields, problems=problems,
        ways={} if fields.keys() > {"run"} else WAYS,
        beside=beside, groups=groups, cards=CARDS, card=form.card, shown=_forecast(form, hub), text=_as_text(form),
        source=source, models=[one for one in known_models() if one.kind in ("starter", "hub")], hub=hub,
        labels=FIELD_LABELS, endings=",".join(uploads.KNOWN), upload=uploads.name_of(fields.get("data.path", "")),
    )  # fmt: skip


def _as_text(form: SettingsForm) -> dict[str, str] | None:
    """The command and the file that say the same, with the own name of a file that was uploaded."""
    uploaded = {field: name for field, text in form.fields.items() if (name := uploads.name_of(text)) is not None}
    named = SettingsForm({**form.fields, **uploaded})
    try:
        return {"command": named.command(), "yaml": named.yaml(), "uploaded": ", ".join(uploaded.values())}
    except ConfigError:
        return None


def _forecast(form: SettingsForm, hub: bool) -> ShownForecast:
    """Nothing is asked of the hub unless the box is ticked."""
    if not hub and (missing := _missing(form, weights=False)):
        return ShownForecast(problems=tuple(missing))
    with hub_may_be_asked(hub):
        return forecast(form)


def _missing(form: SettingsForm, *, weights: bool = True) -> list[Problem]:
    """Names in a form that only the hub or the package index could know. The form may be unfinished: its errors are
    ignored here, and reported where it is read."""
    for without in (("run",), ("run", *OF_DATA)):
        with suppress(RankwiseError):
            planned = form.planned(without=without)
            return elsewhere(planned.model, planned.model_dump(mode="json"), weights=weights)
    return []


def elsewhere(model: ModelConfig, settings: JsonObject, *, weights: bool = True) -> list[Problem]:
    """Names that only the hub or the package index could know, whichever field or line gave them. Without `weights` a
    model is here where its shape is known."""
    names = list[Problem]()
    if could_be_hub_id(model.name) and not (is_here(model) if weights else not needs_hub(model.name, model.revision)):
        names.append(Problem("model.name", f"{model.name} {NOT_HERE}"))
    for key, name in _named(settings):
        names.append(Problem(key if key in KNOBS else OTHER, f"{name} {NOT_HERE}"))
    return names


def _named(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Data sets of the hub: settings called path or text, wherever they stand."""
    if isinstance(value, str) and value.startswith("hub:") and key.rpartition(".")[2] in ("path", "text"):
        yield key, value
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inside:
        yield from _named(one, f"{key}.{name}".removeprefix("."))


async def _of_rows(
    view: Callable[..., _View], sent: SentForm, form: SettingsForm, *counts: int
) -> list[Problem] | _View:
    """What a function shows of the rows; or what is not here, where the box is not ticked."""
    hub = bool(sent.text(HUB))
    if not hub and (problems := await run_in_threadpool(_missing, form)):
        return problems
    with hub_may_be_asked(hub):
        return await run_in_threadpool(view, form, *counts)


async def forecast_again(request: Request) -> Response:
    """The forecast for a form that was changed; `page` names the page that asks."""
    sent = await read_form(request)
    form = form_of(sent)
    async with _turns.turn(sent.text("page")[:LONGEST]) as is_newest:
        if not is_newest:
            raise HTTPException(409, "the form was changed again meanwhile")
        shown = await run_in_threadpool(_forecast, form, bool(sent.text(HUB)))
        left = await run_in_threadpool(_problems, form, bool(sent.text(HUB)), shown) if sent.text("refused") else []
    return page(request, "forecast.html", shown=shown, text=_as_text(form), problems=left, labels=FIELD_LABELS)


async def columns(request: Request) -> Response:
    form = form_of(await read_form(request))
    if not form.values.get("data.path") or form.values["data.path"].startswith("hub:"):
        return page(request, "columns.html", columns=None, problems=[], name=None, values={})
    found, problems = await run_in_threadpool(columns_shown, form)
    name = uploads.name_of(form.values["data.path"])
    return page(
        request, "columns.html", columns=found, problems=problems, name=name, values=defaultdict(str, form.values)
    )


async def report(request: Request) -> Response:
    sent = await read_form(request)
    form = form_of(sent)
    made = await _of_rows(report_shown, sent, form)
    return page(request, "data_report.html", report=ForecastView(made) if isinstance(made, list) else made)


async def preview(request: Request) -> Response:
    sent = await read_form(request)
    form, first = form_of(sent), sent.text("first", "1")
    if not (first.isdecimal() and len(first) < 10 and int(first)):
        raise HTTPException(400, "there is no such row")
    made = await _of_rows(preview_shown, sent, form, int(first), 3)
    shown = Preview(made) if isinstance(made, list) else made
    return page(request, "preview.html", preview=shown, number=sheet_number())


def sheet_number() -> int:
    """When the sheet of images was drawn, so that a browser asks for it anew."""
    file = sheet_file()
    return file.stat().st_mtime_ns if file.is_file() else 0


async def sheet(request: Request) -> Response:
    file = sheet_file()
    if not file.is_file():
        raise HTTPException(404)
    return FileResponse(file, media_type="image/png")


async def upload(request: Request) -> Response:
    """The file as the body; its name says of which kind it is."""
    name, length = request.query_params.get("name", ""), request.headers.get("content-length", "")
    try:
        uploads.ending_of(name)
        uploads.check_size(int(length) if length.isdecimal() else None)
        path = await uploads.stored(request.stream(), name)
    except ClientDisconnect:
        raise HTTPException(400, "the upload was interrupted") from None
    except RankwiseError as error:
        return JSONResponse({"error": str(error)}, 400)
    return JSONResponse({"path": str(path), "name": path.name})


async def start(request: Request) -> Response:
    """Into the queue, or the form again with all problems at once."""
    sent = await read_form(request)
    return await run_in_threadpool(_started, request, form_of(sent), bool(sent.text(HUB)))


def _started(request: Request, form: SettingsForm, hub: bool) -> Response:
    problems = _problems(form, hub, _forecast(form, hub))
    if problems:
        return _page(request, dict(form.fields), problems, hub=hub)
    experiment = form.experiment()
    try:
        Queue().add(experiment.run, experiment.explicit, may_ask_hub=hub)
    except RankwiseError as error:
        return _page(request, dict(form.fields), [Problem("run", with_labels(str(error)))], hub=hub)
    return moved(f"/runs/{segment(experiment.run)}", f"{experiment.run} is in the queue.")


def _problems(form: SettingsForm, hub: bool, shown: ShownForecast) -> list[Problem]:
    """All that keeps a form from being started."""
    problems: list[Problem] = []
    try:
        experiment = form.experiment()
        names = [] if hub else elsewhere(experiment.model, experiment.model_dump(mode="json"))
        problems += [*_taken(experiment.run), *names]
    except ConfigError as error:
        problems += problems_of(error)
    except RankwiseError as error:  # of the adapter to begin with
        problems.append(Problem("adapter.start_from", with_labels(str(error))))
    problems += shown.problems
    if not shown.fits and shown.verdict is not None:
        ways = "".join(f"\n{setting}: {price}" for setting, price in shown.remedies)
        problems.append(Problem("model.name", f"{shown.verdict.sentence}{ways}"))
    return list(dict.fromkeys(problems))


def _taken(run: str) -> list[Problem]:
    queue = Queue()
    if is_run(RUNS / run) or run in {one.run for one in queue.waiting()}:
        return [Problem("run", f'There is a run "{run}" already. Choose another name.')]
    return []


SCREEN = Screen(
    [
        Route("/new", empty), Route("/new/sample", sample, methods=["POST"]),
        Route("/new/forecast", forecast_again, methods=["POST"]),
        Route("/new/columns", columns, methods=["POST"]), Route("/new/report", report, methods=["POST"]),
        Route("/new/preview", preview, methods=["POST"]), Route("/new/sheet", sheet),
        Route("/new/upload", upload, methods=["POST"]), Route("/new/start", start, methods=["POST"]),
    ],
    label="New run", path="/new",
)  # fmt: skip
