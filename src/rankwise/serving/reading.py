"""The body of a request as it comes over the connection: its type and its size are checked before all of it is read."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from rankwise.config.base import Config
from rankwise.serving import patience
from rankwise.serving.bodies import LARGEST_BODY, BadRequest, read_body

_Kind = TypeVar("_Kind", bound=Config)


async def read_json_body(request: Request, kind: type[_Kind]) -> _Kind:
    """BadRequest for what is no JSON, or too large, before all of it has been read."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise BadRequest(f"the content type is {media[:60]!r}; application/json is expected.", status=415)
    content = bytearray()
    try:
        async with asyncio.timeout(patience.BODY):
            async for part in request.stream():
                content += part
                if len(content) > LARGEST_BODY:
                    raise BadRequest(f"the body has more than {LARGEST_BODY:,} bytes.", status=413)
    except TimeoutError:
        raise BadRequest(f"the body took more than {patience.BODY:.0f} s.", status=408) from None
    except ClientDisconnect:
        raise BadRequest("the connection was closed.") from None
    return read_body(kind, bytes(content))
