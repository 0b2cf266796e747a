"""A report as a list of sections, rendered as one self-contained HTML file, as lines of a terminal, and as JSON.

A section holds its content twice, made from the same records: `blocks` for readers and `data` for programs. What is
folded on a page, and what is drawn, a terminal does not show. The page
has no scripts, no links and only its own style sheet. Its content security policy names this sheet by hash. So even if
markup from a run got into the page, it could not load, run or restyle anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from rankwise.config.base import Config
from rankwise.errors import one_line
from rankwise.reporting.markup import ASCII, Content, Markup, both, element, joined, lines_of, shown
from rankwise.runs.own_files import with_hash

KIND = "rankwise report"
BEGINS = f'<!doctype html>\n<html lang="en" data-kind="{KIND}">'
BEGINS_DATA = f'{{\n  "kind": "{KIND}",'
STYLE = Path(__file__).with_name("style.css")


@dataclass(frozen=True)
class Section:
    """A section; `key` is its name in the JSON and its anchor in the page."""

    key: str
    title: str
    data: Any
    blocks: Sequence[Markup]
    about: Content = ""


@dataclass(frozen=True)
class Document:
    """A report; `verdict` is the sentence for readers who read nothing else."""

    title: str
    over: str
    """The kind of report, shown above the title."""
    verdict: str
    remarks: Sequence[str] = ()
    """Caveats shown right below the verdict, which would mislead without them."""
    next: str = ""
    """A suggestion for what to measure next."""
    key_facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = field(default_factory=list)

    def as_html(self) -> bytes:
        body = element("body", element("main", self.content(), self._foot()))
        named = {
            "viewport": "width=device-width, initial-scale=1", "color-scheme": "light dark", "referrer": "no-referrer",
        }  # fmt: skip
        head = element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=_policy("<img " in body)),
            [element("meta", name=name, content=content) for name, content in named.items()],
            element("title", shown(f"{self.title} \u00b7 {self.over}")),
            Markup(f"<style>{_style()}</style>"),
        )
        return f"{BEGINS}{head}{body}</html>\n".encode()

    def content(self) -> Markup:
        """The report without its frame, for a page that has one of its own."""
        return joined(self._head(), [_section(one) for one in self.sections])

    def lines(self) -> list[str]:
        """What a terminal shows: the verdict, and the sections that are more than drawings."""
        shown = {one.title: lines_of(*one.blocks) for one in self.sections}
        below = [line for title, lines in shown.items() if lines for line in ("", f"{title}:", *lines)]
        return [*lines_of(self.verdict), *self.remarks, *below]

    def as_json(self) -> bytes:
        """Render JSON in ASCII, since an answer may contain incomplete or invisible characters."""
        data = {
            "kind": KIND,
            "format": 1,
            "title": self.title,
            "page_sha256": sha256(self.as_html()).hexdigest(),
            "verdict": self.verdict,
            "remarks": list(self.remarks),
            "next": self.next,
        }
        data |= {section.key: section.data for section in self.sections}
        plain = json.loads(json.dumps(_without_nan(data), allow_nan=False))  # as whoever compares the hash reads it
        return json.dumps(with_hash(plain), indent=2).encode() + b"\n"

    def _head(self) -> Markup:
        remarks = [element("p", remark, class_="remark") for remark in self.remarks]
        if self.next:
            remarks.append(element("p", self.next, class_="about"))
        return element(
            "header",
            element("p", self.over, class_="over"),
            element("h1", self.title),
            element("p", self.verdict, class_="verdict"),
            remarks,
            facts(self.key_facts) if self.key_facts else Markup(""),
        )

    def _foot(self) -> Markup:
        return element(
            "footer",
            "Made by rankwise from the records of the run. A JSON file with the same content is beside this page.",
        )


def table(
    heads: Sequence[str], rows: Sequence[Sequence[Content]], *, words: Sequence[int] = (0,), label: str = "",
    lead: int = 0, judged: bool = False,
) -> Markup:  # fmt: skip
    """Render a table. Columns in `words` are left-aligned, numbers right-aligned; plain text has no empty columns.
    On narrow screens, `lead` turns each row into a block headed by its first `lead` cells, and by its last cell if
    `judged`; without `lead`, the table scrolls sideways."""

    def cell(tag: str, at: int, content: Content) -> Markup:
        kind = "words" if at in words else "number"
        if lead and at < lead:
            kind += " lead"
        elif lead and judged and at == len(heads) - 1:
            kind += " judgement"
        name = heads[at] if lead and tag == "td" else None
        return element(tag, content, class_=kind, scope="col" if tag == "th" else None, data_label=name)

    head = element("thead", element("tr", [cell("th", at, content) for at, content in enumerate(heads)]))
    body = element("tbody", [element("tr", [cell("td", at, one) for at, one in enumerate(row)]) for row in rows])
    whole = element("table", head, body, class_="fold" if lead else None)
    scrolled = element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=label or "table")
    return both(scrolled, _lines(_aligned([heads, *rows], words)))


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _aligned(rows: Sequence[Sequence[Content]], words: Sequence[int]) -> list[str]:
    columns = []
    for at, column in enumerate(zip(*rows, strict=True)):
        cells = [one_line(joined(cell).plain.translate(ASCII), LONGEST_CELL) for cell in column]
        width = max(map(len, cells))
        columns += [[cell.ljust(width) if at in words else cell.rjust(width) for cell in cells]] * any(cells[1:])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


LONGEST_CELL = 60
"""Characters of plain text."""
LEVELS = ((0.05, "a"), (0.2, "b"), (0.4, "c"), (0.7, "d"), (float("inf"), "e"))
"""Shades of a matrix, each up to a share."""


def matrix(
    rows: Sequence[str], columns: Sequence[str], cell: Callable[[int, int], tuple[str, float, str] | None], label: str,
    corner: str = "",
) -> Markup:  # fmt: skip
    """Render a table with shades: `cell` gives the text of a row and a column, the share that decides about the shade,
    and `hit` or `miss`."""

    def shaded(row: int, column: int) -> Markup:
        words, share, kind = cell(row, column) or ("-", 0, "none")
        return element("td", words, class_=f"{kind} {next(name for limit, name in LEVELS if share <= limit)}")

    body = [[shaded(row, column) for column in range(len(columns))] for row in range(len(rows))]
    head = element("tr", element("th", corner), [element("th", name, scope="col") for name in columns])
    lines = [element("tr", element("th", name, scope="row"), cells) for name, cells in zip(rows, body, strict=True)]
    whole = element("table", element("thead", head), element("tbody", lines), class_="matrix")
    plain = _aligned([[corner, *columns], *([name, *cells] for name, cells in zip(rows, body, strict=True))], (0,))
    return both(element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=label), _lines(plain))


def opened(
    heads: Sequence[str], rows: Sequence[Sequence[Content]], count: int, *, words: Sequence[int], label: str
) -> list[Markup]:
    """Render the first rows as a table, and the others folded below it."""
    first, *rest = (
        table(heads, part, words=words, label=label, lead=1) for part in (rows[:count], rows[count:]) if part
    )
    return [first, *(folded(f"{len(rows) - count} more", one) for one in rest)]


def facts(pairs: Sequence[tuple[str, Content]]) -> Markup:
    """Render names and values, one pair per line."""
    width = max((len(name) for name, _ in pairs), default=0)
    return both(
        element("dl", [element("div", element("dt", name), element("dd", value)) for name, value in pairs],
                class_="facts"),
        "".join(f"{name:<{width}}  {' '.join(joined(value).plain.split())}\n" for name, value in pairs),
    )  # fmt: skip


def figure(drawing: Markup, caption: Content = "") -> Markup:
    return element("figure", drawing, element("figcaption", caption) if caption else Markup(""))


def paragraph(*content: Content) -> Markup:
    return element("p", *content)


def listed(items: Sequence[Content]) -> Markup:
    return element("ul", [element("li", item) for item in items]) if items else Markup("")


def folded(summary: str, *content: Content) -> Markup:
    """Render content that is collapsed on screen and expanded in print."""
    return both(element("details", element("summary", summary), *content), f"{summary} (--json has them)\n")


def code(words: str) -> Markup:
    return element("pre", element("code", words), tabindex=0)


def as_code(value: Any) -> Markup:
    return code(json.dumps(_without_nan(value), indent=2, ensure_ascii=False))


def _section(section: Section) -> Markup:
    about = element("p", section.about, class_="about") if section.about else Markup("")
    return element("section", element("h2", section.title), about, joined(section.blocks), id=section.key)


@cache
def _style() -> str:
    return STYLE.read_text(encoding="utf-8")


def _policy(pictures: bool) -> str:
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    images = "img-src data:; " if pictures else ""
    return f"default-src 'none'; {images}style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity by None, because JSON cannot represent them."""
    value = value.model_dump(mode="json") if isinstance(value, Config) else value
    if isinstance(value, dict):
        return {str(key): _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
