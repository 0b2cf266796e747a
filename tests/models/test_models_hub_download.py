"""A hub model that is not cached is fetched when it is named, and only then; the next load asks nobody.

The hub is a small server on this machine that answers as the real one does; everything else is real.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "a" * 40
LOAD = """
import sys
from rankwise.models.loading import load
from rankwise.run.records import Said
said = []
model = load(sys.argv[1], said.append)
print(model.source.name, model.source.where, len([e for e in said if isinstance(e, Said)]))
"""


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Its address and the list of what it was asked for."""
    asked: list[str] = []
    there = [*(file.name for file in tiny_folder.iterdir()), "pytorch_model.bin", "modeling_tiny.py"]

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._respond(body=False)

        def do_GET(self) -> None:
            self._respond(body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _respond(self, body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            name = self.path.split("?")[0].rpartition("/")[2]
            if self.path == "/":
                self._send(200, b"", body)
            elif self.path.startswith("/api/models/org/tiny/tree/"):
                files = [
                    {"type": "file", "path": file, "size": 1, "oid": hashlib.sha1(file.encode()).hexdigest()}
                    for file in there
                ]
                self._send(200, json.dumps(files).encode(), body)
            elif self.path.startswith("/api/models/org/tiny/"):
                files = [{"rfilename": file} for file in there]
                self._send(200, json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": files}).encode(), body)
            elif self.path.startswith("/org/tiny/resolve/") and (tiny_folder / name).is_file():
                self._send(200, (tiny_folder / name).read_bytes(), body)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _send(self, status: int, content: bytes, body: bool) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()


def load(name: str, address: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home)}
    return subprocess.run([sys.executable, "-c", LOAD, name], env=environment, capture_output=True, text=True)


def test_a_named_model_is_fetched_once_without_pickles_or_code(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = hub
    first = load("org/tiny", address, tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.split() == ["org/tiny", "hub,", "commit", COMMIT[:12], "1"]
    assert any("model.safetensors" in line for line in asked)
    assert not any(unwanted in line for line in asked for unwanted in ("pytorch_model.bin", "modeling_tiny.py"))
    asked.clear()
    second = load("org/tiny", address, tmp_path)
    assert second.stdout.split() == ["org/tiny", "hub,", "commit", COMMIT[:12], "0"], second.stderr
    assert asked == []


def test_a_model_that_the_hub_does_not_have_is_told(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    refused = load("org/tinny", hub[0], tmp_path)
    assert 'the hub has no model "org/tinny"' in refused.stderr.splitlines()[-1]


def test_a_hub_that_does_not_answer_is_told(tmp_path: Path) -> None:
    refused = load("org/tiny", "http://127.0.0.1:9", tmp_path)
    assert "the hub cannot be reached" in refused.stderr.splitlines()[-1]
