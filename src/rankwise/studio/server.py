"""Run the studio until it is stopped. Trainings are processes of their own and go on without it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from rankwise.commands.serve import bound, hangup, is_mistake
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
        import uvicorn

        from rankwise.studio.app import studio_app
        from rankwise.studio.security import Key

        key = None if address.key is None else Key(address.key, address.port)
        config = uvicorn.Config(
            studio_app(key=key, host=address.host), log_level="warning", access_log=False, lifespan="off",
            timeout_graceful_shutdown=DRAIN, limit_concurrency=200, server_header=False, ws="none",
        )  # fmt: skip
        if ready is not None:
            ready({"url": address.url})
        callback(StatusMessage(f"the studio is at {address.url} (Ctrl-C stops it; trainings go on)"))
        server = uvicorn.Server(config)
        logging.getLogger("uvicorn.error").addFilter(is_mistake)
        try:
            with hangup(server.handle_exit):
                server.run([listening])
        except KeyboardInterrupt:  # uvicorn passes it on once it has stopped
            pass
        callback(StatusMessage("stopped."))
