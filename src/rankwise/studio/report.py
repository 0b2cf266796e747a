"""The report of a run, and the comparison of several, inside the page.

Both are made from the records as they are now, by reporting/, whose markup is inert; so they need no policy of their
own: their style sheet is a file of this server.
"""

from __future__ import annotations

import threading

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from rankwise.reporting.document import STYLE, Document
from rankwise.runs.directory import RunDirectory
from rankwise.runs.snapshot import RunSnapshot, open_candidates
from rankwise.runs.upkeep import entry
from rankwise.studio.pages import Screen, drawing, moved, page

_drawing = threading.Lock()
"""matplotlib has one set of settings for all threads."""


def report(request: Request) -> Response:
    run = entry(request.path_params["name"])
    document = _training_report(run)
    return page(
        request, "report.html", title=f"Report of {run.folder.name}", section="/", name=run.folder.name,
        report=drawing(document.content()),
    )  # fmt: skip


def download(request: Request) -> Response:
    """The report as one file that needs no network, to hand on."""
    run = entry(request.path_params["name"])
    headers = {"content-disposition": "attachment; filename=report.html"}
    policy = {"content-security-policy": "default-src 'none'; sandbox"}
    return Response(_training_report(run).as_html(), media_type="text/html; charset=utf-8", headers=headers | policy)


def compare(request: Request) -> Response:
    names = list(dict.fromkeys(request.query_params.getlist("run")))
    if len(names) < 2:
        return moved("/", "Tick two or more runs to compare them.")
    from rankwise.commands.compare import compare as compare_command  # late, since charts load matplotlib
    from rankwise.reporting.comparison import comparison_report

    known = [str(entry(name).folder) for name in names]
    with _drawing:
        document = comparison_report(open_candidates(known), compare_command(known).comparisons)
    return page(request, "report.html", title="Comparison", section="/", name=None, report=drawing(document.content()))


def style(request: Request) -> Response:
    return FileResponse(STYLE, media_type="text/css", headers={"cache-control": "no-cache"})


def _training_report(run: RunDirectory) -> Document:
    from rankwise.reporting.training import training_report

    with _drawing:
        return training_report(RunSnapshot.of(run))


SCREEN = Screen([
    Route("/runs/{name}/report", report), Route("/runs/{name}/report.html", download), Route("/compare", compare),
    Route("/report.css", style),
])  # fmt: skip
