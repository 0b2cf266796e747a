"""Whatever stands in a run, the pages that show it have the elements of a harmless one and nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from urllib.parse import quote

import pytest

from kit.hostile_texts import PAYLOADS, folder_name
from kit.report_runs import made_run
from rankwise.config.experiment import Experiment
from rankwise.errors import RunError
from rankwise.runs.data_report import DataReport
from rankwise.runs.evaluations import evaluation_path
from rankwise.runs.own_files import read_json
from rankwise.runs.queue import Queue

STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]")


class Shape(HTMLParser):
    """The elements of a page with the names of their attributes, and what its links and forms lead to."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.addresses, self.words = set(), set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.add((tag, tuple(sorted(name for name, _ in attrs))))
        self.addresses |= {value for name, value in attrs if name in ("href", "src", "action", "formaction")}

    def handle_data(self, data):
        self.words.append(data)

    def handle_comment(self, data):
        self.elements.add(("comment", data))


def pages_of(client, name, *, report=True):
    part = quote(name, safe="")
    paths = ["/", f"/runs/{part}", f"/delete?run={part}", f"/?words={part}"]
    for path in [*paths, f"/runs/{part}/report"] if report else paths:
        answer = client.get(path)
        assert answer.status_code == 200, (path, answer.text)
        yield path.partition("?")[0].replace(part, "NAME"), answer.text


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    from kit.studio_client import studio_client

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("harmless"))
        made_run("clean", steps=4)
        return {path: Shape(text).elements for path, text in pages_of(studio_client(), "clean")}


@pytest.mark.parametrize(("at", "payload"), enumerate(PAYLOADS), ids=range(len(PAYLOADS)))
def test_a_hostile_run_is_text_on_every_page(client, harmless, at, payload):
    name = folder_name(payload)
    apart = {"key", "exact", "setting", "column", "layer", "package", "metric", "target", "against"}
    run = made_run(name, steps=4, said=lambda where: f"{payload}{where}" if where in apart else payload)
    run.write_manifest(run.manifest().model_copy(update={"problem": payload, "warnings": (payload,)}))
    for path, text in pages_of(client, name, report=at % 9 == 0):  # the reports have a test of their own
        shape = Shape(text)
        assert shape.elements - harmless[path] <= {
            ("span", ("class",)), ("p", ("class", "id", "role")), ("section", ("aria-labelledby", "id")), ("li", ()),
            ("div", ("class",)), ("ul", ()), ("p", ("class", "role")), ("a", ("href",)),
        }  # fmt: skip
        assert all(re.match(r"[/#]|\./", address) for address in shape.addresses), shape.addresses
        assert not STEERING.search(text), "what steers is shown"


def test_a_reader_sees_the_payload_itself(client):
    made_run("r", said=lambda where: PAYLOADS[0])
    assert "".join(Shape(client.get("/runs/r").text).words).count(PAYLOADS[0]) >= 2


@pytest.mark.parametrize("payload", PAYLOADS[:4] + PAYLOADS[-4:], ids=range(8))
def test_a_hostile_problem_and_address_are_text(client, payload):
    for answer in (client.get(f"/runs/{quote(payload, safe='')}"), client.get(f"/compare?run={quote(payload)}&run=x")):
        assert answer.status_code in (400, 404)
        assert not {tag for tag, _ in Shape(answer.text).elements} - {
            "html", "head", "meta", "title", "link", "body", "a", "header", "nav", "main", "h1", "p",
        }  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS[:4] + PAYLOADS[-4:], ids=range(8))
def test_a_hostile_run_that_waits_is_text(client, payload, monkeypatch):
    monkeypatch.setattr(Queue, "start_worker", lambda self: False)
    Queue().add("waits", Experiment(model=payload, run="waits", data={"path": payload}).explicit)
    for path in ("/", "/runs/waits"):
        shape = Shape(client.get(path).text)
        assert {tag for tag, _ in shape.elements} <= {
            "html", "head", "meta", "title", "link", "body", "a", "header", "nav", "main", "h1", "h2", "p", "div",
            "span", "section", "ol", "li", "form", "input", "button", "code", "dl", "dt", "dd", "progress", "noscript",
            "details", "summary", "script", "ul", "pre",
        }  # fmt: skip


def test_the_shape_sees_what_is_not_inert():
    assert Shape('<p class="x"><script>1</script><img src=x onerror=y>').elements == {
        ("p", ("class",)), ("script", ()), ("img", ("onerror", "src")),
    }  # fmt: skip
    assert Shape("<a href='javascript:x'>").addresses == {"javascript:x"}


@pytest.mark.parametrize("targets", [
    {"classes": ["a", "b"], "counts": [1]}, {"classes": ["a"], "counts": [1, 2]}, {"classes": ["a", "b"]},
    {"classes": ["a", "b"], "counts": [1, 2], "weights": [1.0]}, {"low": 1.0}, {},
])  # fmt: skip
def test_a_data_report_that_somebody_edited_is_shown_as_damaged(client, targets):
    file = made_run("r").folder / "data_report.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"targets": targets}))
    with pytest.raises(RunError, match=r"damaged.*targets"):
        read_json(file, DataReport)
    for path in ("/", "/runs/r", "/delete?run=r", "/ask", "/runs/r/report"):
        assert client.get(path).status_code in (200, 400), path


def test_nothing_is_written_through_evaluations_that_are_a_link(client, tmp_path):
    run = made_run("r")
    (run.folder / "evaluations").rename(tmp_path / "elsewhere")
    (run.folder / "evaluations").symlink_to(tmp_path / "elsewhere")
    before = {file: file.read_bytes() for file in (tmp_path / "elsewhere").iterdir()}
    with pytest.raises(RunError, match="is a link"):
        evaluation_path(run, "other")
    answer = client.post("/runs/r/rename", data={"new": "s"})
    assert answer.status_code == 400 and "is a link" in answer.text and run.folder.is_dir()
    assert {file: file.read_bytes() for file in (tmp_path / "elsewhere").iterdir()} == before
