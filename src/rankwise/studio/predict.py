"""The Predict screen: a file of rows in, the same file with answers out; and for a classifier one text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rankwise.errors import ConfigError, RankwiseError
from rankwise.rows.files.output import SUFFIXES
from rankwise.rows.forms.image_rows import IMAGE_SUFFIXES
from rankwise.runs.listing import listed_runs
from rankwise.studio import uploads
from rankwise.studio.ask import finished
from rankwise.studio.asking import LARGEST_IMAGE
from rankwise.studio.jobs import finished_runs, free_place, job_routes, start, states
from rankwise.studio.pages import Screen, SentForm, moved, page, read_form


def shown(request: Request) -> Response:
    """`run` is what answers."""
    return rows_page(request, request.query_params.get("run", ""), "predict")


def rows_page(request: Request, name: str, command: str, problem: str = "", **context: Any) -> Response:
    """A screen that asks for a run and a file of rows."""
    runs = {one.name: one for one in finished(listed_runs())}
    run = runs.get(name) or next(iter(runs.values()), None)
    return page(
        request, f"{command}.html", 422 if problem else 200, title=command.capitalize(), runs=[*runs.values()], run=run,
        chosen=[], endings=",".join(uploads.KNOWN), images=",".join(IMAGE_SUFFIXES), largest=LARGEST_IMAGE,
        problem=problem, jobs=states(command, run.name) if run is not None else [], command=command, **context,
    )  # fmt: skip


def run_and_rows(sent: SentForm, *, needed: bool) -> tuple[str, str]:
    """What a form names; ConfigError where the run is not finished, or rows that are `needed` are missing."""
    run, data = sent.text("run"), sent.text("data").strip()
    problems = [] if run in finished_runs() else [f"There is no finished run {run[:80]!r}."]
    if "\0" in data or (needed and not data):
        problems.append("Upload a file of rows, or give its path on this machine.")
    if problems:
        raise ConfigError(problems)
    return run, data


async def begin(request: Request) -> Response:
    sent = await read_form(request)
    try:
        number = await run_in_threadpool(_begun, sent)
    except RankwiseError as error:
        return await run_in_threadpool(rows_page, request, sent.text("run"), "predict", str(error))
    return moved(f"/predictions/{number}")


def _begun(sent: SentForm) -> str:
    run, data = run_and_rows(sent, needed=True)
    name = Path(uploads.name_of(data) or data)
    to = free_place(f"{name.stem[:60]}-{run}", ending if (ending := name.suffix.lower()) in SUFFIXES else ".csv")
    skips = ["--on-bad-row=skip"] if sent.text("skip") else []
    return start(run, to, ("predict", run, f"--data={data}", f"--out={to}", *skips)).id


SCREEN = Screen(
    [Route("/predict", shown), Route("/predict/begin", begin, methods=["POST"]),
     *job_routes("/predictions", "/predict", "predict_result.html", lambda state: {})],
    label="Predict", path="/predict",
)  # fmt: skip
