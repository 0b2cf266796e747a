"""Who may see and change what: Host, Origin, key and content policy, on every answer.

Host      without a key, only a name of this machine; never what is no host at all (serving/guards.py)
Origin    none or the page's own; a change (any method but GET and HEAD) must name it, which every browser does
Site      a page from elsewhere may be followed to what merely shows, and nothing else: reports take time to draw
key       a cookie that the login page sets: an HMAC of the key, so that the key itself is in no later request
policy    nothing from elsewhere, no script or style inside a page, no frame around it

`Referrer-Policy` is same-origin, since with no-referrer browsers send `Origin: null` with a form.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rankwise.serving.guards import foreign
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
"""Of every answer that does not set them itself."""
OPEN = ("/login", "/static/")
"""Paths that need no key: they show nothing of a run."""
SHOWING = re.compile(r"/(login|new|ask|runs/[^/]+)?")
"""Pages that a link from elsewhere may open."""


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

    def opens(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.text.encode())

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
