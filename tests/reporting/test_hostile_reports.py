"""Whatever stands in a run, its report is inert: text is text, in every place where somebody else's text can be.

Read here as a browser's parser would; browser/test_seen.py opens reports in a Chromium.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from kit.hostile_texts import PAYLOADS, folder_name
from kit.report_runs import made_run
from rankwise.commands.report import report

ALLOWED = {
    "html": {"lang", "data-kind"}, "head": set(), "meta": {"charset", "http-equiv", "content", "name"}, "title": set(),
    "style": set(), "body": set(), "main": set(), "header": set(), "footer": set(), "section": {"id"},
    "article": {"class"}, "aside": {"class"}, "h1": set(), "h2": set(), "h3": set(), "h4": set(), "p": {"class"},
    "dl": {"class"}, "dt": set(), "dd": set(), "div": {"class", "tabindex", "role", "aria-label"},
    "table": {"class"}, "thead": set(), "tbody": set(), "tr": set(), "th": {"class", "scope"},
    "td": {"class", "data-label"}, "ul": set(), "li": set(), "figure": set(), "figcaption": set(), "details": set(),
    "summary": set(), "pre": {"tabindex"}, "code": set(), "em": set(), "span": {"class"},
    "blockquote": {"dir", "tabindex"}, "img": {"src", "alt"}, "svg": {"class", "viewbox", "role", "aria-label"},
}  # fmt: skip
DRAWN = {"g", "path", "use", "defs", "text", "line", "circle"}
DRAWN_WITH = {
    "id", "href", "class", "d", "x", "y", "transform", "opacity", "stroke-width", "stroke-dasharray", "stroke-linecap",
    "stroke-linejoin", "fill-opacity", "stroke-opacity", "font-size", "font-weight", "text-anchor", "x1", "x2", "y1",
    "y2", "cx", "cy", "r",
}  # fmt: skip
FREE = {"aria-label", "data-label", "alt"}
"""Attributes that hold words of a run; nothing follows them."""


INLINE = r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*"
"""A picture that is part of the page."""


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.words, self.problems, self.ids, self.policy = [], [], [], [], None

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        allowed = DRAWN_WITH if tag in DRAWN else ALLOWED.get(tag)
        if allowed is None:
            self.problems.append(f"<{tag}>")
            return
        for name, value in attrs:
            if name not in allowed:
                self.problems.append(f"<{tag} {name}>")
            if name not in FREE and re.search(r"[a-z]+:|//|url\(|javascript", value or "", re.IGNORECASE):
                safe = tag == "meta" and ("default-src 'none'" in value or value.startswith("width=device-width"))
                safe |= (tag, name) == ("img", "src") and re.fullmatch(INLINE, value) is not None
                if not safe:
                    self.problems.append(f"<{tag} {name}={value}>")
            if name == "href" and not re.fullmatch(r"#[\w-]+", value):
                self.problems.append(f"<{tag} href={value}>")
            if name == "class" and not re.fullmatch(r"[a-z -]+", value):
                self.problems.append(f"<{tag} class={value}>")
            if name == "id":
                self.ids.append(value)
            if name == "content" and "default-src" in value:
                self.policy = value

    def handle_comment(self, data):
        self.problems.append(f"comment {data}")

    def handle_decl(self, decl):
        if decl != "doctype html":
            self.problems.append(f"<!{decl}>")

    def handle_pi(self, data):
        self.problems.append(f"<?{data}>")

    def unknown_decl(self, data):
        self.problems.append(f"<![{data}]>")

    def handle_data(self, data):
        self.words.append(data)


def read(page):
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    reader.close()
    return reader


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def hostile(payload, name="r", method="adalora", **more):
    """A run in which every text that somebody else could write is the payload, and keys say apart what must differ."""
    apart = {"key", "exact", "setting", "column", "layer", "package", "metric", "target", "against"}

    def said(where):
        return f"{payload}{where}" if where in apart else payload

    return made_run(name, said=said, method=method, **more)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The elements of a report in which nobody else wrote anything."""
    with contextlib.chdir(tmp_path_factory.mktemp("clean")):
        return set(read(report(str(made_run("clean", pictures=True).folder)).page).tags)


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_a_report_of_a_hostile_run_is_inert(payload, clean):
    run = hostile(payload, folder_name(payload), pictures=True)
    made = report(str(run.folder), "out.html")
    reader = read(made.page)
    assert reader.problems == []
    assert len(reader.ids) == len(set(reader.ids))
    assert set(reader.tags) <= clean | {"span"}
    words = made.page.read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]", words), "what steers is shown"
    data = json.loads(made.data.read_bytes().decode("ascii"))
    assert data["samples"]["evaluations"][0]["prompt"] == payload, "programs get it as it was"


@pytest.mark.parametrize("payload", PAYLOADS[:3] + PAYLOADS[-3:], ids=range(6))
def test_a_report_of_a_hostile_run_that_failed_is_inert(payload):
    made = report(str(hostile(payload, status="failed", evaluated=False, steps=1).folder))
    assert read(made.page).problems == []


@pytest.mark.parametrize("payload", PAYLOADS[:3] + PAYLOADS[-3:], ids=range(6))
def test_a_comparison_of_hostile_runs_is_inert(payload):
    for name, method in (("a", "adalora"), ("b", "lora")):
        hostile(payload, name, method)
    reader = read(report(["a", "b"], "out.html").page)
    assert reader.problems == []


def test_a_reader_sees_the_payload_itself():
    run = hostile(PAYLOADS[0])
    assert "".join(read(report(str(run.folder)).page).words).count(PAYLOADS[0]) > 10


def test_the_policy_lets_one_style_be_and_nothing_else():
    page = report(str(made_run().folder)).page
    policy, pictured = read(page).policy, read(report(str(made_run("p", pictures=True).folder)).page).policy
    style = re.search(r"<style>(.*?)</style>", page.read_text(), re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert pictured == policy.replace("style-src", "img-src data:; style-src"), "pictures that are part of the page"
    assert page.read_text().index("Content-Security-Policy") < page.read_text().index("<title>")
    assert "url(" not in style and "@import" not in style and "<" not in style


def test_the_environment_of_the_process_is_in_no_report(monkeypatch):
    secret = "hf_" + "q" * 34
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, secret)
    made_run("a"), made_run("b")
    for names in (["a"], ["a", "b"]):
        made = report(names)
        assert secret not in made.page.read_text() and secret not in made.data.read_text()
