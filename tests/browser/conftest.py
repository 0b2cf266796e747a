"""The studio in a real browser: a server as a user starts it, and pages whose every word and request is heard.

Skipped where Playwright or a Chromium is missing; `make browser` installs the first.
"""

from __future__ import annotations

import pytest

from kit.browser_visits import CHROMIUM, FLAGS, WIDTHS, Server, Visitor


@pytest.fixture(scope="session")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (make browser)")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server(chromium, workplace):
    one = Server().start()
    yield one
    one.stop()


@pytest.fixture
def visitor(chromium, server):
    """As `visitor(width="phone", scheme="dark")`; in the end nothing but the page itself may have been heard."""
    opened = []

    def visit(width="desktop", scheme="light"):
        context = chromium.new_context(viewport=WIDTHS[width], color_scheme=scheme)
        one = Visitor(context.new_page(), server.url)
        opened.append((context, one))
        return one

    yield visit
    heard = [word for _, one in opened for word in one.heard]
    for context, _ in opened:
        context.close()
    assert heard == []
