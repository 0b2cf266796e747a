"""How long a connection may take to send a request: slow headers and bodies would occupy the server for ever.

uvicorn closes a connection that is idle between two requests; here it also closes one whose headers are not complete
some seconds after their first byte, or after the connection was opened.
"""

from __future__ import annotations

import asyncio
from typing import Any

HEADERS, BODY, BETWEEN = 10.0, 60.0, 30.0
"""Seconds for the headers of a request, for a body of JSON, and between two pieces of an upload."""


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
