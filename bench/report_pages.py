"""Pages opened in a real browser: what they ask for, what they run, and how they look.

python bench/report_pages.py PAGE.html … [--pictures FOLDER]

Prints one JSON object: of each page its dialogs, what its console said, and the requests it made beside its own. Exits
with 1 if there are any, and with 77 where there is no Chromium. Speaks to the browser through a pipe, by its DevTools
protocol.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip
NO_BROWSER = 77
SETTLING = 0.4
"""Seconds after a page has loaded in which it may still do what it should not."""
PICTURES = {"desktop": (1280, 1), "phone": (390, 2)}
"""Width in pixels, and how fine."""


class Browser:
    """One tab."""

    def __init__(self, program: str, profile: Path) -> None:
        told, self._write = os.pipe()
        self._read, tells = os.pipe()
        script = f'exec "$0" "$@" 3<&{told} 4>&{tells}'
        words = ["bash", "-c", script, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(words, pass_fds=(told, tells), stderr=subprocess.DEVNULL)
        os.close(told)
        os.close(tells)
        self._ids, self._left, self.events = itertools.count(1), b"", []
        self._session: str | None = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(60.0)
            if answer is None:
                raise SystemExit(f"the browser does not answer to {method}")
            if answer.get("id") == number:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']}")
                return answer["result"]
            self._heard(answer)

    def listen(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            if (event := self._next(left)) is not None:
                self._heard(event)

    def open(self, page: Path) -> list[dict[str, Any]]:
        """All that happened while it loaded and shortly after."""
        self.events = []
        self.ask("Page.navigate", url=page.resolve().as_uri())
        ends = time.monotonic() + 60
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            if time.monotonic() > ends:
                raise SystemExit(f"{page} does not load")
            self.listen(0.1)
        self.listen(SETTLING)
        return self.events

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._write, json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _heard(self, event: dict[str, Any]) -> None:
        if "method" not in event:  # an answer that nobody waits for
            return
        self.events.append(event)
        if event["method"] == "Page.javascriptDialogOpening":
            number = next(self._ids)
            message = {"id": number, "method": "Page.handleJavaScriptDialog", "params": {"accept": False},
                       "sessionId": self._session}  # fmt: skip
            os.write(self._write, json.dumps(message).encode() + b"\0")

    def _next(self, seconds: float) -> dict[str, Any] | None:
        ends = time.monotonic() + seconds
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._read], [], [], max(0.0, ends - time.monotonic()))
            if not ready:
                return None
            part = os.read(self._read, 1 << 20)
            if not part:
                raise SystemExit("the browser has ended")
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)


def chromium() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextlib.contextmanager
def browser(program: str) -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        opened = Browser(program, Path(profile))
        try:
            yield opened
        finally:
            opened.close()


def seen(opened: Browser, page: Path) -> dict[str, Any]:
    events = opened.open(page)
    own = page.resolve().as_uri()

    def of(method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in events if event["method"] == method]

    console = [json.dumps(one.get("args"))[:300] for one in of("Runtime.consoleAPICalled")]
    console += [one["entry"]["text"][:300] for one in of("Log.entryAdded")]
    console += [one["exceptionDetails"]["text"] for one in of("Runtime.exceptionThrown")]
    return {
        "page": page.name,
        "dialogs": [one["message"] for one in of("Page.javascriptDialogOpening")],
        "console": console,
        "requests": [url for one in of("Network.requestWillBeSent") if (url := one["request"]["url"]) != own],
        "wider_than_phone": _overflow(opened),
    }


def _overflow(opened: Browser) -> bool:
    """Whether it has to be moved sideways as a whole at 390 pixels."""
    opened.ask("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=False)
    width = opened.ask("Page.getLayoutMetrics")["cssContentSize"]["width"]
    opened.ask("Emulation.clearDeviceMetricsOverride")
    return width > 390


def pictures(opened: Browser, page: Path, folder: Path) -> None:
    """Whole pages as PNG, at two widths, by day and by night."""
    folder.mkdir(parents=True, exist_ok=True)
    for (name, (width, fine)), scheme in itertools.product(PICTURES.items(), ("light", "dark")):
        opened.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        opened.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=fine, mobile=False)
        size = opened.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": size["height"], "scale": 1}
        shot = opened.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        (folder / f"{page.stem}-{name}-{scheme}.png").write_bytes(base64.b64decode(shot["data"]))
    opened.ask("Emulation.clearDeviceMetricsOverride")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+")
    parser.add_argument("--pictures", type=Path)
    asked = parser.parse_args()
    program = chromium()
    if program is None:
        print(f"there is none of {', '.join(NAMES)} here", file=sys.stderr)
        return NO_BROWSER
    with browser(program) as opened:
        found = []
        for page in asked.pages:
            found.append(seen(opened, page))
            if asked.pictures:
                pictures(opened, page, asked.pictures)
    print(json.dumps({"pages": found}, indent=1))
    return int(any(one["dialogs"] or one["console"] or one["requests"] for one in found))


if __name__ == "__main__":
    sys.exit(main())
