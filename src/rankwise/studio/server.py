"""Run the studio until it is stopped. Trainings are processes of their own and go on without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rankwise.commands.serve import answer, bound
from rankwise.errors import ConfigError
from rankwise.runs.records import Callback, StatusMessage
from rankwise.serving.address import Address
from rankwise.system.extras import need_extra

DRAIN = 1
"""Seconds that open answers get once the studio is stopped; a page that follows a run connects again."""


def run_studio(address: Address, callback: Callback, ready: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Returns once it has been stopped. `ready` gets the address."""
    for module in ("uvicorn", "starlette", "jinja2"):
        need_extra(module, "rankwise studio", "studio", ConfigError)
    address.check()
    with bound(address) as listening:
        from rankwise.studio.app import studio_app
        from rankwise.studio.security import Key

        key = None if address.key is None else Key(address.key, address.port)
        if ready is not None:
            ready({"url": address.url})
        callback(StatusMessage(f"the studio is at {address.url} (Ctrl-C stops it; trainings go on)"))
        answer(studio_app(key=key, host=address.host), listening, drain=DRAIN, connections=200)
        callback(StatusMessage("stopped."))
