"""Gather the pages of the site in build/pages, each with the place that it has in the repository.

    python docs/site_pages.py

The site has README.md, CONTRIBUTING.md, CHANGELOG.md, all pages in docs/, and every page or other file that one of
them links to or shows. Places are kept, so links hold on a code host and in the site; a link to a folder becomes its
text. The Python reference is written from the docstrings. A page that the navigation of zensical.toml lacks is an
error, and so is an entry without a page.
"""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from site_reference import reference

HOME = Path(__file__).resolve().parents[1]
PAGES, CONFIG, REFERENCE = HOME / "build" / "pages", HOME / "zensical.toml", "docs/python-reference.md"
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)|<img src=\"([^\"]+)\"")
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`(?!\])", re.MULTILINE | re.DOTALL)


def places(entries: Any) -> Iterator[str]:
    """The pages of a navigation, in its order."""
    if isinstance(entries, str):
        yield entries
    else:
        for entry in entries.values() if isinstance(entries, dict) else entries:
            yield from places(entry)


def gather() -> set[str]:
    """Copy every page and file that belongs to the site; what is copied, by its place in the repository."""
    waiting = [*map(HOME.joinpath, ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *(HOME / "docs").rglob("*.md")]
    taken: set[str] = set()
    while waiting:
        source = waiting.pop().resolve()
        place = source.relative_to(HOME).as_posix()
        if place in taken or not source.is_file():  # a link to nothing is the generator's to report
            continue
        taken.add(place)
        (to := PAGES / place).parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".md":
            shutil.copyfile(source, to)
            continue
        text = source.read_text(encoding="utf-8")
        links = [*LINK.finditer(CODE.sub("", text))]
        waiting += [source.parent / (link[2] or link[4]) for link in links]
        for link in links:
            if link[2] and (source.parent / link[2]).is_dir():
                text = text.replace(link[0], link[1])
        to.write_text(text, encoding="utf-8")
    return taken


def main() -> int:
    shutil.rmtree(PAGES, ignore_errors=True)
    pages = {place for place in gather() if place.endswith(".md")} | {REFERENCE}
    (PAGES / REFERENCE).write_text(reference(HOME / "src"), encoding="utf-8")
    shown = [*places(tomllib.loads(CONFIG.read_text(encoding="utf-8"))["project"]["nav"])]
    problems = [f"{CONFIG.name}: the navigation does not have {page}" for page in sorted(pages - {*shown})]
    problems += [f"{CONFIG.name}: the navigation has {page}, which is no page" for page in shown if page not in pages]
    print("\n".join(problems) or f"{len(pages)} pages", file=sys.stderr if problems else sys.stdout)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
