"""The screen of all runs."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rankwise.commands.runs import runs
from rankwise.studio.pages import page
from rankwise.studio.screen import Screen


def table(request: Request) -> Response:
    return page(request, "runs.html", title="Runs", runs=runs().runs)


SCREEN = Screen([Route("/", table)], label="Runs", path="/")
