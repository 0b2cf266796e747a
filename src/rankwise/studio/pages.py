"""Pages, rendered on the server by templates that escape everything.

A name, a prompt or a row is text in a page, whatever stands in it: templates escape each value, and only `drawing`
lets markup pass, which reporting/markup.py has made. No template may use the filter `safe` (tests/studio).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import markupsafe
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute

from rankwise.reporting.markup import Markup, shown
from rankwise.reporting.quantities import duration, figure, size
from rankwise.serving.bodies import BadRequest
from rankwise.serving.reading import read_content
from rankwise.studio.uploads import with_names


@dataclass(frozen=True)
class Screen:
    """`label` is its word in the navigation, which leads to `path`; without one it is reached from other screens."""

    routes: Sequence[BaseRoute]
    label: str | None = None
    path: str = "/"


FOLDER = Path(__file__).parent
NOTICE = "rankwise_notice"
LONGEST_NOTICE = 1500
"""Characters, since it travels as a cookie."""


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_visible,
    )  # fmt: skip
    environment.filters |= {"figure": figure, "size": size, "duration": duration, "segment": segment, "when": when}
    return environment


def page(request: Request, template: str, code: int = 200, **context: Any) -> Response:
    """`title` names the page in the browser; `notice` says what the last change did."""
    app = request.app.state
    known = {
        "screens": [one for one in app.screens if one.label is not None], "path": request.scope["path"],
        "with_key": app.key is not None, "known": app.key is None or app.key.is_proven(request),
        "notice": _notice(request), "title": "rankwise",
    }  # fmt: skip
    answer = HTMLResponse(ENVIRONMENT.get_template(template).render(known | context), code)
    if request.cookies.get(NOTICE):
        answer.delete_cookie(NOTICE)
    return answer


def moved(path: str, notice: str = "") -> Response:
    """After a change: the browser goes on to `path`, and the next page says what was done."""
    answer = RedirectResponse(path, 303)
    if notice:
        text = quote(notice[:LONGEST_NOTICE], errors="replace")
        answer.set_cookie(NOTICE, text, max_age=60, httponly=True, samesite="strict")
    return answer


def drawing(markup: Markup) -> markupsafe.Markup:
    """A chart or a section of a report, as a template takes it, with the own names of files that were uploaded."""
    assert isinstance(markup, Markup), "anything else is text, and is escaped"
    return markupsafe.Markup(with_names(markup))


def segment(name: str) -> str:
    """A name as one part of a path; a folder's name may be no text at all."""
    return quote(name, safe="", errors="surrogateescape")


def when(timestamp: str | None) -> str:
    """A recorded time to the minute, in UTC as it was recorded."""
    return "\u2013" if timestamp is None else re.sub(r"[T ]", " ", timestamp)[:16]


def _notice(request: Request) -> str:
    return unquote(request.cookies.get(NOTICE, ""))[:LONGEST_NOTICE]


def _visible(value: Any) -> Any:
    """Show control characters by their code points; they could turn a line around or hide a part of it."""
    return shown(value) if type(value) is str else value


ENVIRONMENT = _environment()


LARGEST = 1_000_000
"""Bytes of a form."""
MOST_FIELDS = 2000


@dataclass(frozen=True)
class SentForm:
    """Each field has all its values; a box that is not ticked has none."""

    fields: dict[str, list[str]]

    def text(self, name: str, default: str = "") -> str:
        return self.fields.get(name, [default])[0]

    def every(self, name: str) -> Sequence[str]:
        return self.fields.get(name, [])


async def read_form(request: Request) -> SentForm:
    """BadRequest for anything but a form of a page."""
    content = await read_content(request, "application/x-www-form-urlencoded", LARGEST)
    try:
        written = content.decode("utf-8")
        return SentForm(parse_qs(written, keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict"))
    except ValueError:
        raise BadRequest("the form cannot be read.") from None
