"""The page answers its own browser alone: foreign hosts, origins and keys are refused on every route."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from kit.studio_client import BROWSER, URL, studio_client
from rankwise.studio import pages
from rankwise.studio.app import studio_app
from rankwise.studio.security import MOST, OPEN, PAUSE, POLICY, Key

KEY = Key("a key of some length", 8321)


def routes():
    return [route for route in studio_app(key=None, host="127.0.0.1").routes if isinstance(route, Route)]


def addresses():
    """Every path of the page with every method that it takes."""
    return [(re.sub(r"{[^}]+}", "x", route.path), method) for route in routes() for method in sorted(route.methods)]


@pytest.fixture
def locked():
    return studio_client(KEY, "0.0.0.0")


@pytest.mark.parametrize(("path", "method"), addresses())
def test_a_request_of_a_foreign_page_is_refused_on_every_route(client, path, method):
    assert client.request(method, path, headers={"host": "evil.example"}).status_code == 403
    assert client.request(method, path, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.request(method, path, headers={"origin": "null"}).status_code == 403
    assert client.request(method, path, headers={"origin": "http://127.0.0.1:9999"}).status_code == 403


@pytest.mark.parametrize(("path", "method"), [one for one in addresses() if one[1] not in ("GET", "HEAD")])
def test_a_change_that_names_no_origin_is_refused(client, path, method):
    del client.headers["origin"]
    assert client.request(method, path).status_code == 403


@pytest.mark.parametrize(("path", "method"), [one for one in addresses() if not one[0].startswith(OPEN)])
def test_every_route_needs_the_key(locked, path, method):
    for cookie in ({}, {KEY.cookie: "x"}, {KEY.cookie: KEY.text}):
        locked.cookies = cookie
        for accepted in ("text/html", "*/*"):
            answer = locked.request(method, path, headers={"accept": accepted})
            assert answer.status_code == 401 or answer.headers["location"] == "/login"


MALFORMED = (
    "x/static/", "x/login", "x/static/?", "127.0.0.1:8321/static/", "x#/static/", "[::1].evil.com", "[::1]evil.com",
    "localhost:8321@evil", "evil@localhost", "localhost:", "localhost:x", "local host", "localhost\\", "", "::1", "[]",
    "localhost:8321:1", "localhost,evil.com", "\xe9vil",
)  # fmt: skip


def status_of(app, path, method, headers, server=("127.0.0.1", 8321)):
    """What the application itself answers, since a client would repair the Host or refuse to send it."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "http_version": "1.1", "scheme": "http", "method": method, "path": path, "headers": raw,
             "raw_path": path.encode(), "query_string": b"", "root_path": "", "server": server,
             "client": ("192.0.2.1", 1)}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"]


@pytest.mark.parametrize(("path", "method"), [one for one in addresses() if not one[0].startswith(OPEN)])
def test_nothing_that_a_request_says_of_its_host_opens_a_route(locked, path, method):
    """Starlette before 1.0.1 made the path of `request.url` of the Host, and all make it of the server's name."""
    for host in MALFORMED:
        status = status_of(locked.app, path, method, {"host": host, "origin": f"http://{host}"})
        assert status == 403, host
    assert status_of(locked.app, path, method, {"origin": "http://"}, ("x/static/", 80)) == 401
    assert status_of(locked.app, path, method, {"host": "any.example:8321", "origin": "http://any.example:8321"}) == 401


@pytest.mark.parametrize("host", MALFORMED)
def test_what_is_no_host_is_refused_where_no_key_is_needed_either(client, host):
    for own in ("127.0.0.1", "evil", "::1"):
        app = studio_client(host=own).app
        assert status_of(app, "/login", "GET", {"host": host}) == 403
        for good in ("127.0.0.1", "LOCALHOST:8321", "[::1]:8321", "[::1]"):
            assert status_of(app, "/", "GET", {"host": good}) == 200


LINK = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.mark.parametrize("site", ["cross-site", "same-site"])  # another port of this machine is the same site
def test_a_page_from_elsewhere_may_be_left_for_what_merely_shows(client, site):
    for path, method in addresses():
        for how in ({}, {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, LINK | {"sec-fetch-dest": "iframe"}):
            answer = client.request(method, path, headers={"sec-fetch-site": site} | how)
            assert answer.status_code == 403, (path, how)
        may = path in ("/", "/new", "/ask", "/runs/x", "/login") and method in ("GET", "HEAD")
        if may or method in ("GET", "HEAD"):
            answer = client.request(method, path, headers={"sec-fetch-site": site} | LINK)
            assert (answer.status_code != 403) == may, path
    for own in ("same-origin", "none"):
        assert client.get("/report.css", headers={"sec-fetch-site": own}).status_code == 200


def test_many_connections_guess_no_faster_than_one_and_lock_nobody_out(locked, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("rankwise.studio.security.time.monotonic", lambda: now[0])

    def login(key, address="192.0.2.1"):
        client = TestClient(locked.app, base_url=URL, headers=BROWSER, client=(address, 1), follow_redirects=False)
        return client.post("/login", data={"key": key}).status_code

    assert [login("another") for _ in range(5)] == [401, 429, 429, 429, 429]
    assert login(KEY.text) == 429, "else the address learns that this one is right"
    assert [login("another", f"192.0.2.{n}") for n in range(2, 9)] == [401] * (MOST - 1) + [429] * (8 - MOST)
    assert login(KEY.text, "192.0.2.99") == 429 and login(KEY.text, "127.0.0.1") == 303
    assert [login("another", "127.0.0.1"), login(KEY.text, "127.0.0.1")] == [401, 429]
    now[0] += PAUSE
    assert login(KEY.text) == 303 and not locked.app.state.guesses._wrong


def test_the_key_opens_the_page_and_stands_in_no_cookie(locked, monkeypatch):
    monkeypatch.setattr("rankwise.studio.security.PAUSE", 0)
    assert locked.post("/login", data={"key": "another"}).status_code == 401
    assert not locked.cookies
    answer = locked.post("/login", data={"key": KEY.text})
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and KEY.text not in cookie
    assert locked.get("/").status_code == 200
    assert locked.post("/logout").status_code == 303
    assert locked.get("/").headers["location"] == "/login"


@pytest.mark.parametrize("path", ["/", "/nothing", "/login", "/static/studio.css", "/static/nothing"])
def test_every_answer_has_the_policy(client, path):
    answer = client.get(path)
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in POLICY and "http" not in POLICY


def test_no_template_lets_markup_by_or_runs_a_script_inside_the_page():
    # the policy would refuse these as well, but then they would not work
    templates = sorted((pages.FOLDER / "templates").rglob("*.html"))
    assert len(templates) >= 4
    for template in templates:
        text = template.read_text()
        assert not re.search(r"\|\s*safe\b|autoescape|style=|<style|\son\w+=|javascript:", text), template
        assert not re.search(r"<script(?! type=\"module\" src=\"/static/)", text), template
        assert not re.search(r"(href|src|action)=\"(https?:)?//", text), template


def test_static_files_ask_nothing_from_elsewhere():
    for file in Path(pages.FOLDER / "static").iterdir():
        text = file.read_text().replace("http://www.w3.org/", "")
        assert "http" not in text.replace("https:", "http:") and "@import" not in text and "url(" not in text, file
    assert any(isinstance(one, Mount) for one in studio_app(key=None, host="x").routes)
