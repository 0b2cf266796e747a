"""Serve runs and adapters over one base, in the form of OpenAI's API, until the server is stopped."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rankwise.config.models import ModelConfig
from rankwise.errors import ConfigError, RunError
from rankwise.runs.records import Callback, StatusMessage
from rankwise.serving.address import Address
from rankwise.system.extras import need_extra

DRAIN = 10
"""Seconds in which answers that are being written may end once the server is stopped."""


def serve(
    names: Sequence[str], address: Address, callback: Callback, *, together: int, waiting: int, most: int,
    dtype: str = "auto", force_base: bool = False, trust_code: str | None = None,
    ready: Callable[[dict[str, Any]], None] | None = None,
) -> None:  # fmt: skip
    """Returns when the server was asked to stop. `ready` gets its address and its models."""
    need_extra("uvicorn", "rankwise serve", "serve", ConfigError)
    need_extra("starlette", "rankwise serve", "serve", ConfigError)
    address.check()
    number_format = ModelConfig(name="serve", dtype=dtype).dtype  # pyright: ignore[reportArgumentType]  checked there
    with bound(address) as listening:
        import uvicorn

        from rankwise.serving.app import Server
        from rankwise.serving.engine import Engine, Limits
        from rankwise.serving.served import load_serving

        serving = load_serving(names, callback, dtype=number_format, force_base=force_base, trust_code=trust_code)
        serving.model.module.eval()
        limits = Limits(together=together, waiting=waiting)
        engine = Engine(serving.model.module, serving.by_row, serving.mixes, limits)
        app = Server(serving, engine, most).app(key=address.key, host=address.host, origins=address.origins)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=DRAIN, limit_concurrency=1000,
            server_header=False, lifespan="off",
        )  # fmt: skip
        engine.start()
        if ready is not None:
            ready({"url": f"{address.url}/v1", "models": [one.as_json() for one in serving.models.values()]})
        callback(StatusMessage(f"serving {', '.join(serving.models)} at {address.url}/v1 (Ctrl-C stops)"))
        server = uvicorn.Server(config)
        logging.getLogger("uvicorn.error").addFilter(is_mistake)
        try:
            with hangup(server.handle_exit):
                server.run([listening])
        except KeyboardInterrupt:  # uvicorn passes it on once it has stopped
            pass
        finally:
            engine.stop()
        callback(StatusMessage("stopped."))


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
    """A port to listen at, before anything is loaded, so that one in use is told at once."""
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
