"""Check the built site: every link, anchor, picture and file is there, and no page loads anything from another host.

    python docs/site_check.py

The generator checks links from page to page. This looks at what it wrote, and so also sees pictures, other files, HTML
in pages, the generator's own links, and lists and tables that became text. An error names each page and what is wrong.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SITE = Path(__file__).resolve().parents[1] / "build" / "site"
UNREAD = re.compile(r"\n((?:[-*] |1\. |\| |```).*)")
"""A line inside a paragraph that a code host shows as a list, a table or code."""


class Page(HTMLParser):
    """The names that links may end in, and the addresses that a page has: what it links to, and what it loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.linked: list[str] = []
        self.loaded: list[str] = []
        self.unread: list[str] = []
        self._in_paragraph = False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.names |= {given[name] for name in ("id", "name") if name in given}
        self._in_paragraph |= tag == "p"
        kind = self.linked if tag == "a" else self.loaded
        kind += [given[name] for name in ("href", "src") if name in given]

    def handle_data(self, data: str) -> None:
        if self._in_paragraph:
            self.unread += UNREAD.findall(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_paragraph &= tag != "p"


def problems(site: Path) -> Iterator[str]:
    pages = {file: Page(file) for file in sorted(site.rglob("*.html"))}
    for file, page in pages.items():
        yield from (f"{file.relative_to(site)} shows as text: {line}" for line in page.unread)
        for address in (*page.linked, *page.loaded):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.loaded and parts.scheme != "data":
                    yield f"{file.relative_to(site)} loads {address}, which is on another host"
                continue
            above = site if parts.path.startswith("/") else file.parent
            to = (above / unquote(parts.path).lstrip("/")).resolve() if parts.path else file
            to = to / "index.html" if to.is_dir() else to
            if not to.is_file():
                yield f"{file.relative_to(site)} names {address}, which is not there"
            elif parts.fragment and to in pages and unquote(parts.fragment) not in pages[to].names:
                yield f"{file.relative_to(site)} names {address}, which is no place on that page"


if __name__ == "__main__":
    found = [*problems(SITE)]
    print("\n".join(found) or f"{len([*SITE.rglob('*.html')])} pages of HTML without a dead link")
    sys.exit(bool(found))
