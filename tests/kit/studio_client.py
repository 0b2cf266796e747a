"""A client that asks a studio as a browser would."""

from __future__ import annotations

from starlette.testclient import TestClient

from rankwise.studio.app import studio_app
from rankwise.studio.security import Key

URL = "http://127.0.0.1:8321"
BROWSER = {"accept": "text/html,application/xhtml+xml", "origin": URL}


def studio_client(key: Key | None = None, host: str = "127.0.0.1") -> TestClient:
    return TestClient(studio_app(key=key, host=host), base_url=URL, headers=BROWSER, follow_redirects=False)
