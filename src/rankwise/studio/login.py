"""The login page of a studio that has a key.

A wrong key is answered at once, and for a moment nothing more is heard from the address that sent it. At most a few
addresses may be wrong in that moment, so that many connections, and many machines, guess hardly faster than one.
Somebody on the machine itself is heard whatever others do. Who has logged in needs no key and is not slowed down.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rankwise.serving.address import LOOPBACK
from rankwise.studio.forms import read_form
from rankwise.studio.pages import moved, page
from rankwise.studio.screen import Screen
from rankwise.studio.security import Key

PAUSE = 1.0
"""Seconds after a wrong key in which no other is heard from the same address."""
MOST = 5
"""Addresses that may send a wrong key in this time."""
REMEMBERED = 30 * 86_400
"""Seconds for which a browser stays logged in."""


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


SCREEN = Screen([
    Route("/login", shown), Route("/login", login, methods=["POST"]), Route("/logout", logout, methods=["POST"]),
])  # fmt: skip
