"""The body of a request as it comes over the connection: its type and its size are checked before all of it is read.

A connection may take only so long to send it: slow headers and bodies would occupy the server for ever. uvicorn closes
a connection that is idle between two requests; here it also closes one whose headers are not complete some seconds
after their first byte, or after the connection was opened.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from rankwise.config.base import Config
from rankwise.serving.bodies import LARGEST_BODY, BadRequest, read_body

_Kind = TypeVar("_Kind", bound=Config)
HEADERS, BODY, BETWEEN = 10.0, 60.0, 30.0
"""Seconds for the headers of a request, for a body of JSON, and between two pieces of an upload."""


async def read_json_body(request: Request, kind: type[_Kind], largest: int = LARGEST_BODY) -> _Kind:
    """BadRequest for what is not JSON of this kind."""
    return read_body(kind, await read_content(request, "application/json", largest))


async def read_content(request: Request, expected: str, largest: int) -> bytes:
    """BadRequest for another media type, for more bytes, before all of them are read, and for a body that is slow."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != expected:
        raise BadRequest(f"the content type is {media[:60]!r}; {expected} is expected.", status=415)
    content = bytearray()
    try:
        async with asyncio.timeout(BODY):
            async for part in request.stream():
                content += part
                if len(content) > largest:
                    raise BadRequest(f"the body has more than {largest:,} bytes.", status=413)
    except TimeoutError:
        raise BadRequest(f"the body took more than {BODY:.0f} s.", status=408) from None
    except ClientDisconnect:
        raise BadRequest("the connection was closed.") from None
    return bytes(content)


def patient(base: type[Any]) -> type[asyncio.Protocol]:
    """uvicorn's protocol, with a limit for headers."""

    class Patient(base):
        _limit: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """A request is complete but for its body once it has a cycle that has not answered yet."""
            cycle = self.cycle
            if cycle is not None and not cycle.response_complete:
                self._forget()
            elif self._limit is None:
                self._limit = asyncio.get_running_loop().call_later(HEADERS, self._close)

        def _forget(self) -> None:
            if self._limit is not None:
                self._limit.cancel()
                self._limit = None

        def _close(self) -> None:
            self._limit = None
            cycle = self.cycle
            if (cycle is None or cycle.response_complete) and not self.transport.is_closing():
                self.transport.close()

    return Patient
