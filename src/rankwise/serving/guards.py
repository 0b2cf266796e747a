"""Who may ask: any page in a browser reaches a server on this machine, so Host, Origin and key are checked first.

Host      without a key, only a name of this machine: a page that made its own name point here has another; what is
          no host and port is refused in any case
Origin    none, that of the server itself, or one that was allowed: a request of a foreign page names its own
key       `Authorization: Bearer KEY` and nothing shorter, compared in constant time, on every route but /health
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rankwise.serving.address import LOOPBACK

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?")
"""An address in brackets, or a name or address; and a port."""
KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    429: "rate_limit_error",
}  # fmt: skip


def refusal(
    status: int, message: str, parameter: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """`parameter` is the field that is wrong."""
    return JSONResponse({"error": problem(status, message, parameter)}, status, headers)


def problem(status: int, message: str, parameter: str | None = None) -> dict[str, str | int | None]:
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"message": message, "type": kind, "param": parameter, "code": status}


@dataclass(frozen=True)
class Guard:
    app: ASGIApp
    key: str | None
    host: str
    origins: tuple[str, ...] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        problem = self._problem(Headers(scope=scope), scope["path"])
        await (self.app if problem is None else refusal(*problem))(scope, receive, send)

    def _problem(self, headers: Headers, path: str) -> tuple[int, str] | None:
        if (problem := foreign(headers, self.host, self.origins, names_any=self.key is not None)) is not None:
            return 403, problem
        scheme, _, given = headers.get("authorization", "").partition(" ")
        is_right = scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), (self.key or "").encode())
        if self.key is not None and path != "/health" and not is_right:
            return 401, "a key is needed: Authorization: Bearer KEY."
        return None


def foreign(
    headers: Headers, address: str, origins: tuple[str, ...] = (), *, names_any: bool, hint: str = " (--allow-origin)"
) -> str | None:
    """Why a request is not one of this server's own pages. With `names_any` it may have any name."""
    host, origin = headers.get("host", ""), headers.get("origin")
    read = _HOST.fullmatch(host.lower())
    if read is None and ("host" in headers or not names_any):
        return f"the host {host[:80]!r} is no host and port."
    if read is not None and not names_any and (read[1] or read[2]) not in (*LOOPBACK, address.lower()):
        return f"the host {host[:80]!r} is none of this server's names."
    if origin is not None and origin not in (f"http://{host}", f"https://{host}", *origins):
        return f"the origin {origin[:80]!r} is not allowed{hint}."
    return None
