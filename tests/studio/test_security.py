"""The page answers its own browser alone: foreign hosts, origins and keys are refused on every route."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.routing import Mount, Route

from rankwise.studio import pages
from rankwise.studio.app import studio_app
from rankwise.studio.security import OPEN, POLICY, Key
from studio_client import studio_client

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


def test_the_key_opens_the_page_and_stands_in_no_cookie(locked, monkeypatch):
    monkeypatch.setattr("rankwise.studio.login.PAUSE", 0)
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
