"""The body of a request as it comes over the connection: its type and its size are checked before all of it is read."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from rankwise.config.base import Config
from rankwise.serving import patience
from rankwise.serving.bodies import LARGEST_BODY, BadRequest, read_body

_Kind = TypeVar("_Kind", bound=Config)


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
        async with asyncio.timeout(patience.BODY):
            async for part in request.stream():
                content += part
                if len(content) > largest:
                    raise BadRequest(f"the body has more than {largest:,} bytes.", status=413)
    except TimeoutError:
        raise BadRequest(f"the body took more than {patience.BODY:.0f} s.", status=408) from None
    except ClientDisconnect:
        raise BadRequest("the connection was closed.") from None
    return bytes(content)
