"""Connections that take for ever to say what they want are closed, and no others."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from rankwise.serving import reading
from rankwise.serving.reading import patient


async def app(scope, receive, send):
    await receive()
    await asyncio.sleep(0.6 if scope["path"] == "/slow" else 0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextlib.asynccontextmanager
async def connected():
    config = uvicorn.Config(app, http=patient(AutoHTTPProtocol), lifespan="off", log_level="critical", port=0)
    server = uvicorn.Server(config)
    config.load()
    task = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname()[:2])
    try:
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await task


REQUEST = b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n"


async def _answers(*parts):
    """What comes back when these parts are sent, in turn: bytes, or seconds to wait."""
    async with connected() as (reader, writer):
        for part in parts:
            if isinstance(part, float):
                await asyncio.sleep(part)
            else:
                writer.write(part)
        async with asyncio.timeout(5):
            return await reader.read(10_000), reader.at_eof()


@pytest.mark.parametrize("parts", [
    (b"",), (b"GET / HT",), (b"GET / HTTP/1.1\r\nhost: x\r\nx: ", 0.1, b"a", 0.1, b"a", 0.1, b"a", 0.1, b"a"),
])  # fmt: skip
def test_headers_that_never_end_end_the_connection(parts, monkeypatch):
    monkeypatch.setattr(reading, "HEADERS", 0.3)
    answer, closed = asyncio.run(_answers(*parts))
    assert answer == b"" and closed


def test_a_slow_answer_and_a_second_request_are_left_alone(monkeypatch):
    monkeypatch.setattr(reading, "HEADERS", 0.3)
    answer, _ = asyncio.run(_answers(REQUEST % b"/slow"))
    assert answer.endswith(b"ok")
    answer, _ = asyncio.run(_answers(REQUEST % b"/", 0.2, REQUEST % b"/slow", 0.9))
    assert answer.count(b"ok") == 2
