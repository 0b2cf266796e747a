"""The report of a run, and the comparison of several, inside the page.

Both are made from the records as they are now, by reporting/, whose markup is inert; so they need no policy of their
own: their style sheet is a file of this server.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from rankwise.commands.compare import compare as compare_command
from rankwise.reporting.comparison import comparison_report
from rankwise.reporting.document import STYLE
from rankwise.reporting.training import training_report
from rankwise.runs.snapshot import RunSnapshot
from rankwise.runs.upkeep import entry
from rankwise.studio.pages import Screen, drawing, moved, page
from rankwise.studio.uploads import with_names


def report(request: Request) -> Response:
    run = entry(request.path_params["name"])
    document = training_report(RunSnapshot.of(run))
    return page(
        request, "report.html", title=f"Report of {run.folder.name}", section="/", name=run.folder.name,
        report=drawing(document.content()),
    )  # fmt: skip


def download(request: Request) -> Response:
    """The report as one file that needs no network, to hand on."""
    run = entry(request.path_params["name"])
    headers = {"content-disposition": "attachment; filename=report.html"}
    policy = {"content-security-policy": "default-src 'none'; sandbox"}
    content = with_names(training_report(RunSnapshot.of(run)).as_html().decode())
    return Response(content, media_type="text/html; charset=utf-8", headers=headers | policy)


def compare(request: Request) -> Response:
    names = list(dict.fromkeys(request.query_params.getlist("run")))
    if len(names) < 2:
        return moved("/", "Tick two or more runs to compare them.")
    compared = compare_command([str(entry(name).folder) for name in names])
    document = comparison_report(compared.candidates, compared.comparisons)
    return page(request, "report.html", title="Comparison", section="/", name=None, report=drawing(document.content()))


def style(request: Request) -> Response:
    return FileResponse(STYLE, media_type="text/css", headers={"cache-control": "no-cache"})


SCREEN = Screen([
    Route("/runs/{name}/report", report), Route("/runs/{name}/report.html", download), Route("/compare", compare),
    Route("/report.css", style),
])  # fmt: skip
