"""Serve runs and adapters over one base, in the form of OpenAI's API, until the server is stopped."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.config.models import ModelConfig, parse_size
from rankwise.errors import ConfigError, RunError
from rankwise.runs.records import Callback, StatusMessage
from rankwise.serving.address import Address
from rankwise.system.extras import need_extra

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from rankwise.serving.changes import Changes
    from rankwise.serving.engine import ServingEngine
    from rankwise.serving.served import Serving
    from rankwise.serving.tuning.routes import FineTuning

DRAIN = 10
"""Seconds in which answers that are being written may end once the server is stopped."""


@dataclass(frozen=True)
class Offer:
    """What is served: runs and adapters by name, or a base alone. `most` are the tokens of an answer that asks for no
    number; requests may load adapters that lie below `load_from`."""

    names: Sequence[str]
    base: str | None = None
    most: int = 1024
    dtype: str = "auto"
    force_base: bool = False
    trust_code: str | None = None
    load_from: Path | None = None
    fine_tuning: bool = False
    """Whether requests may upload files and train on them."""
    aliases: Sequence[str] = ()
    """Other names of the base."""
    prefix_memory: str = "512MB"
    """For keys and values of earlier prompts and answers; 0 for none."""
    unconstrained: bool = False
    """Whether answers are not held to the schemas of their runs."""

    @property
    def prefix_bytes(self) -> int:
        """ValueError where it is no amount of memory."""
        return 0 if self.prefix_memory.strip() == "0" else parse_size(self.prefix_memory)

    @property
    def problems(self) -> list[str]:
        """All that is wrong with it."""
        problems = list[str]()
        if not self.names and self.base is None:
            problems.append("name runs or adapters to serve, or a base alone with --model.")
        if self.names and self.base is not None:
            problems.append(
                f"--model {self.base} serves a base alone, and runs or adapters bring their own. Leave one of them out."
            )
        if self.load_from is not None and not self.load_from.is_dir():
            problems.append(f"--load-from {self.load_from} is not a folder.")
        try:
            _ = self.prefix_bytes
        except ValueError as error:
            problems.append(f"--prefix-memory {self.prefix_memory[:40]!r}: {error}; 0 keeps none.")
        return problems


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
    number_format = ModelConfig(name="serve", dtype=offer.dtype).dtype  # pyright: ignore[reportArgumentType]  checked there
    with bound(address) as listening:
        from rankwise.serving.engine import Limits, ServingEngine
        from rankwise.serving.served import load_serving

        serving = load_serving(
            offer.names, callback, base=offer.base, aliases=offer.aliases, dtype=number_format,
            unconstrained=offer.unconstrained, force_base=offer.force_base, trust_code=offer.trust_code,
        )  # fmt: skip
        serving.model.module.eval()
        limits = Limits(batch_size, waiting, prefix_bytes=offer.prefix_bytes)
        engine = ServingEngine(serving.model.module, serving.rows, limits)
        engine.start()
        try:
            with _app(offer, address, serving, engine, callback) as app:
                if ready is not None:
                    ready({"url": f"{address.url}/v1", "models": [one.as_json() for one in serving.models.values()]})
                callback(StatusMessage(f"serving {', '.join(serving.models)} at {address.url}/v1 (Ctrl-C stops)"))
                answer(app, listening, drain=DRAIN, connections=1000)
        finally:
            engine.stop()
        callback(StatusMessage("stopped."))


@contextmanager
def _app(
    offer: Offer, address: Address, serving: Serving, engine: ServingEngine, callback: Callback
) -> Iterator[Starlette]:
    from rankwise.serving.app import Server
    from rankwise.serving.changes import Changes

    changes = Changes(serving, engine, folder=offer.load_from, force_base=offer.force_base, callback=callback)
    with _tuning(serving, changes) if offer.fine_tuning else nullcontext() as tuning:
        server = Server(serving, engine, offer.most, changes, tuning)
        yield server.app(key=address.key, host=address.host, origins=address.origins)


@contextmanager
def _tuning(serving: Serving, changes: Changes) -> Iterator[FineTuning]:
    """What lies in this folder's runs from earlier servers is taken up again."""
    from rankwise.runs.queue import Queue
    from rankwise.serving.tuning.files import Files
    from rankwise.serving.tuning.jobs import Jobs
    from rankwise.serving.tuning.routes import FineTuning, Offered

    queue = Queue()
    folder = queue.runs_folder / ".fine-tuning"
    files = Files(folder / "files")
    offered = Offered(serving, changes, Jobs(folder / "jobs", files, queue))
    offered.start()
    try:
        yield FineTuning(offered, files)
    finally:
        offered.stop()


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
