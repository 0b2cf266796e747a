"""The login page of a studio that has a key."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rankwise.studio.forms import read_form
from rankwise.studio.pages import moved, page
from rankwise.studio.screen import Screen
from rankwise.studio.security import Key

PAUSE = 1.0
"""Seconds before a wrong key is refused."""
REMEMBERED = 30 * 86_400
"""Seconds for which a browser stays logged in."""


async def shown(request: Request) -> Response:
    return moved("/") if request.app.state.key is None else page(request, "login.html", title="Log in", wrong=False)


async def login(request: Request) -> Response:
    key: Key | None = request.app.state.key
    if key is None:
        return moved("/")
    if not key.opens((await read_form(request)).text("key")):
        await asyncio.sleep(PAUSE)
        return page(request, "login.html", 401, title="Log in", wrong=True)
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
