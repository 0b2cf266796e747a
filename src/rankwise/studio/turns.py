"""One forecast at a time for each page: what was asked last takes the next turn, and what it replaces is dropped.

A browser that gives up a request ends nothing here: a thread that computes goes on. So requests of one page wait for
each other, and of those that wait only the newest is worth its work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

LONGEST = 64
"""Characters of a page's name for itself."""


@dataclass
class _Page:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    newest: int = 0
    waiting: int = 0


@dataclass
class Turns:
    _pages: dict[str, _Page] = field(default_factory=dict)

    @asynccontextmanager
    async def turn(self, page: str) -> AsyncGenerator[bool, None]:
        """Wait for the turn of a page; False where a newer request of it came meanwhile."""
        own = self._pages.setdefault(page, _Page())
        own.newest += 1
        own.waiting += 1
        number = own.newest
        try:
            async with own.lock:
                yield number == own.newest
        finally:
            own.waiting -= 1
            if not own.waiting:
                del self._pages[page]
