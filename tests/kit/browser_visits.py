"""A studio in a process of its own, and a page of a browser that hears all that it does."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import rankwise

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTHS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


class Server:
    """A studio in a process of its own, in the present folder."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self, *options):
        environment = os.environ | {"PYTHONPATH": str(Path(rankwise.__file__).parents[1])}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rankwise", "studio", "--port", str(self.port), "--json", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
        )  # fmt: skip
        told = self.process.stdout.readline()
        assert told, self.process.stderr.read()
        assert json.loads(told) == {"url": self.url}
        return self

    def kill(self):
        self.process.kill()
        self.process.communicate()

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.communicate(timeout=15)
            self.kill()


class Visitor:
    """A page of a browser, and all that it did beside showing what it was sent."""

    def __init__(self, page, url):
        self.page, self.url, self.heard = page, url, []
        page.set_default_timeout(120_000)  # a machine that is busy with other work
        page.on("console", lambda message: self.heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self._ask(request.url))

    def _ask(self, address):
        if not address.startswith((self.url + "/", "data:")):
            self.heard.append(f"request: {address}")

    def open(self, path):
        self.page.goto(self.url + path)
        return self.page
