"""A hub of one's own on this machine, for what is asked of it and what it says."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

COMMIT = "a" * 40
Answer = Callable[[str], bytes | str]
"""Of a path: its content, or the code of what is missing."""


@contextmanager
def served(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """Its address and the list of what it was asked for."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.respond(body=False)

        def do_GET(self) -> None:
            self.respond(body=True)

        def log_message(self, *_: object) -> None:
            pass

        def respond(self, body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            found = answer(self.path)
            content = found if isinstance(found, bytes) else b""
            self.send_response(404 if isinstance(found, str) else 200)
            if isinstance(found, str):
                self.send_header("X-Error-Code", found)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def visit(address: str, home: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the client of this process use the hub at an address, with a cache of its own, as HF_ENDPOINT and HF_HOME do
    before it is imported, and send no telemetry, as where rankwise imports it first."""
    patch.delenv("HF_HUB_OFFLINE", raising=False)
    patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
