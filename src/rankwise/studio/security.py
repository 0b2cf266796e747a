"""Who may see and change what: Host, Origin, key and content policy, on every answer; and the page to log in.

Host      without a key, only a name of this machine; never what is no host at all (serving/guards.py)
Origin    none or the page's own; a change (any method but GET and HEAD) must name it, which every browser does
Site      a page from elsewhere may be followed to what merely shows, and nothing else: reports take time to draw
key       a cookie that the login page sets: an HMAC of the key, so that the key itself is in no later request
policy    nothing from elsewhere, no script or style inside a page, no frame around it

`Referrer-Policy` is same-origin, since with no-referrer browsers send `Origin: null` with a form.

A wrong key is answered at once, and for a moment nothing more is heard from the address that sent it. At most a few
addresses may be wrong in that moment, so that many connections, and many machines, guess hardly faster than one.
Somebody on the machine itself is heard whatever others do. Who has logged in needs no key and is not slowed down.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rankwise.serving.address import LOOPBACK
from rankwise.serving.guards import foreign
from rankwise.studio.pages import Screen, moved, page, read_form
from rankwise.system.hub import hub_may_be_asked

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin", "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY", "cache-control": "no-store",
}  # fmt: skip
"""Headers of every response, unless it sets them itself."""
OPEN = ("/login", "/static/")
"""Paths that need no key: they show nothing of a run."""
SHOWING = re.compile(r"/(login|new|ask|runs/[^/]+)?")
"""Pages that a link from elsewhere may open."""
PAUSE = 1.0
"""Seconds after a wrong key in which no other is heard from the same address."""
MOST = 5
"""Addresses that may send a wrong key in this time."""
REMEMBERED = 30 * 86_400
"""Seconds for which a browser stays logged in."""


@dataclass(frozen=True)
class Key:
    """The key of the page, and the cookie that says that a browser gave it. `port` keeps two studios apart."""

    text: str
    port: int

    @property
    def cookie(self) -> str:
        return f"rankwise_studio_{self.port}"

    @property
    def proof(self) -> str:
        return hmac.new(self.text.encode(), b"rankwise studio", hashlib.sha256).hexdigest()

    def opens(self, key: str) -> bool:
        return hmac.compare_digest(key.encode(), self.text.encode())

    def is_proven(self, connection: HTTPConnection) -> bool:
        return hmac.compare_digest(connection.cookies.get(self.cookie, "").encode(), self.proof.encode())


@dataclass(frozen=True)
class Security:
    app: ASGIApp
    key: Key | None
    host: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refused(HTTPConnection(scope), scope["method"], scope["path"])
        with hub_may_be_asked(False):  # but where a form allows it
            await (self.app if refused is None else refused)(scope, receive, with_headers)

    def _refused(self, connection: HTTPConnection, method: str, path: str) -> Response | None:
        """`path` is what is routed by; that of `connection.url` begins with what a client wrote as its Host."""
        headers = connection.headers
        if (problem := foreign(headers, self.host, names_any=self.key is not None, hint="")) is not None:
            return PlainTextResponse(problem, 403)
        if method not in ("GET", "HEAD") and headers.get("origin") is None:
            return PlainTextResponse(
                "a change must come from a page of the studio, and this request has no Origin.", 403
            )
        how = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
        follows = how == ("navigate", "document") and SHOWING.fullmatch(path) is not None  # with the tab to itself
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not follows:
            return PlainTextResponse("this was requested by another site. Open it from a page of the studio.", 403)
        if self.key is None or path.startswith(OPEN) or self.key.is_proven(connection):
            return None
        if method == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        return PlainTextResponse("this studio needs its key; log in first.", 401)


@dataclass(frozen=True)
class Guesses:
    """The wrong keys of the last moment, for the whole studio."""

    _wrong: dict[str, float] = field(default_factory=dict)

    def hears(self, address: str) -> bool:
        now = time.monotonic()
        for one in [one for one, at in self._wrong.items() if now - at >= PAUSE]:
            del self._wrong[one]
        return address not in self._wrong and (len(self._wrong) < MOST or address in LOOPBACK)

    def was_wrong(self, address: str) -> None:
        self._wrong[address] = time.monotonic()


async def shown(request: Request) -> Response:
    return moved("/") if request.app.state.key is None else _page(request, 200, "")


def _page(request: Request, code: int, problem: str) -> Response:
    return page(request, "login.html", code, title="Log in", problem=problem)


async def login(request: Request) -> Response:
    key: Key | None = request.app.state.key
    if key is None:
        return moved("/")
    given, guesses = (await read_form(request)).text("key"), request.app.state.guesses
    address = "" if request.client is None else request.client.host
    if not guesses.hears(address):
        return _page(request, 429, "A wrong key was given just now. Wait a second, and log in again.")
    if not key.opens(given):
        guesses.was_wrong(address)
        return _page(request, 401, "That is not the key of this studio.")
    answer = moved("/")
    answer.set_cookie(key.cookie, key.proof, max_age=REMEMBERED, httponly=True, samesite="strict")
    return answer


async def logout(request: Request) -> Response:
    answer = moved("/login")
    if request.app.state.key is not None:
        answer.delete_cookie(request.app.state.key.cookie)
    return answer


LOGIN = Screen([
    Route("/login", shown), Route("/login", login, methods=["POST"]), Route("/logout", logout, methods=["POST"]),
])  # fmt: skip
