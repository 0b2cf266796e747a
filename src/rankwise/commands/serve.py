"""Serve runs and adapters over one base in the form of OpenAI's API, or classifiers, until the server is stopped."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rankwise.errors import ConfigError, RunError
from rankwise.runs.records import Callback, StatusMessage
from rankwise.serving.address import Address, Offer
from rankwise.system.extras import need_extra

if TYPE_CHECKING:
    from starlette.applications import Starlette

DRAIN = 10
"""Seconds in which answers that are being written may end once the server is stopped."""


def serve(
    offer: Offer, address: Address, callback: Callback, *, batch_size: int, waiting: int,
    ready: Callable[[dict[str, Any]], None] | None = None,
) -> None:  # fmt: skip
    """Returns when the server was asked to stop. `ready` gets its address and its models."""
    for package in ("uvicorn", "starlette"):
        need_extra(package, "rankwise serve", "serve", ConfigError)
    if offer.fine_tuning:
        need_extra("python_multipart", "rankwise serve --fine-tuning", "serve", ConfigError)
    address.check(*offer.problems)
    with bound(address) as listening:
        from rankwise.serving.starting import started

        with started(offer, callback, batch_size, waiting) as api:
            if ready is not None:
                ready({"url": f"{address.url}/v1", "models": [one.as_json() for one in api.models.values()]})
            callback(StatusMessage(f"serving {', '.join(api.models)} at {address.url}/v1 (Ctrl-C stops)"))
            app = api.app(key=address.key, host=address.host, origins=address.origins)
            answer(app, listening, drain=DRAIN, connections=1000)
        callback(StatusMessage("stopped."))


def answer(app: Starlette, listening: socket.socket, *, drain: int, connections: int) -> None:
    """Until somebody stops it; answers that are being written then have `drain` seconds to end."""
    import uvicorn
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    from rankwise.serving.reading import patient

    server = uvicorn.Server(uvicorn.Config(
        app, http=patient(AutoHTTPProtocol), log_level="warning", access_log=False, server_header=False, lifespan="off",
        ws="none", timeout_graceful_shutdown=drain, limit_concurrency=connections,
    ))  # fmt: skip
    logging.getLogger("uvicorn.error").addFilter(is_mistake)
    with suppress(KeyboardInterrupt), hangup(server.handle_exit):  # uvicorn passes it on once it has stopped
        server.run([listening])


@contextmanager
def hangup(stop: Callable[..., None]) -> Iterator[None]:
    """A closed terminal stops the server as Ctrl-C does, which uvicorn takes care of; under nohup it does not."""
    number = getattr(signal, "SIGHUP", None)  # Windows has no such signal
    before = signal.SIG_IGN if number is None else signal.getsignal(number)
    if number is None or before is signal.SIG_IGN:
        yield
        return
    signal.signal(number, stop)
    try:
        yield
    finally:
        signal.signal(number, before)


def is_mistake(record: logging.LogRecord) -> bool:
    """Whether the log has it: an answer that was cut off when the server stopped is none."""
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


def bound(address: Address) -> socket.socket:
    """A socket that listens, before anything is loaded, so that a port in use is reported at once."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address.host, address.port))
        listening.listen(256)
    except OSError as error:
        listening.close()
        why = error.strerror or str(error)
        raise RunError(f"cannot listen at {address.url}: {why}. Choose another with --port.") from None
    return listening
