"""The application: all screens, static files, and pages for what went wrong."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from rankwise.errors import TYPED, ResourceError, typed
from rankwise.serving.bodies import BadRequest
from rankwise.studio import ask, evaluate, export, new_run, predict, report, run, runs
from rankwise.studio.pages import FOLDER, Screen, page
from rankwise.studio.security import LOGIN, Guesses, Key, Security
from rankwise.studio.settings_form import with_labels

SCREENS: tuple[Screen, ...] = (
    runs.SCREEN, new_run.SCREEN, ask.SCREEN, predict.SCREEN, evaluate.SCREEN, export.SCREEN, run.SCREEN, report.SCREEN,
)  # fmt: skip
"""In the order of the navigation. A new one is a module with a `SCREEN`, and a word here."""


def studio_app(*, key: Key | None, host: str) -> Starlette:
    screens = (*SCREENS, LOGIN)
    static = Mount("/static", StaticFiles(directory=FOLDER / "static"), name="static")
    app = Starlette(
        routes=[*(route for screen in screens for route in screen.routes), static],
        middleware=[Middleware(Security, key=key, host=host)],  # pyright: ignore[reportArgumentType]
        exception_handlers=HANDLERS,  # pyright: ignore[reportArgumentType]
    )
    app.router.redirect_slashes = False  # a path has one form
    app.state.screens, app.state.key, app.state.guesses = screens, key, Guesses()
    return app


def problem(request: Request, status: int, text: str) -> Response:
    """What went wrong: a page, or an object where a script of the page asks."""
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"error": text}, status)
    return page(request, "problem.html", status, title="That did not work", text=text)


async def _refused(request: Request, error: HTTPException | BadRequest) -> Response:
    if isinstance(error, BadRequest):
        return problem(request, error.status, str(error))
    if error.status_code == 404:
        return problem(request, 404, f"There is no page at {request.scope['path'][:200]}.")
    return problem(request, error.status_code, f"{error.detail}.")


async def _mistaken(request: Request, error: Exception) -> Response:
    """What the terminal would say as well, also where the system refuses something."""
    known = typed(error)
    if known is None:
        raise error
    return problem(request, 507 if isinstance(known, ResourceError) else 400, with_labels(str(known)))


async def _failed(request: Request, error: Exception) -> Response:
    """Our own mistake, whose traceback starlette passes on to the log."""
    return problem(request, 500, "This is an error in rankwise. The terminal that runs the studio shows the details.")


HANDLERS = {HTTPException: _refused, BadRequest: _refused, **dict.fromkeys(TYPED, _mistaken), Exception: _failed}
