"""A new run from the page: what it takes, what the rows are, all problems at once, and a training in the queue."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kit.classifiers import encoder_folder
from kit.hub_server import served
from kit.light import loaded_by_each
from rankwise.commands.data import preview
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.runs.queue import Queue
from rankwise.studio import new_run
from rankwise.studio.forecast import ShownForecast
from rankwise.studio.samples import WAYS, orders
from rankwise.studio.settings_form import KNOBS, SettingsForm
from rankwise.system.hub import is_forbidden

FORM = {"model.name": "tiny-llama", "data.path": "rows.jsonl", "run": "one", "card": "lora", "adapter.rank": "4"}


class Page(HTMLParser):
    """Texts of a page: those in marks, and those beside fields."""

    def __init__(self, text):
        super().__init__()
        self.marked, self.beside, self.values, self.checked, self._in = [], {}, {}, set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self._in.append((tag, given))
        if tag == "input" and "name" in given:
            self.values[given["name"]] = given.get("value")
            if "checked" in given:
                self.checked.add((given["name"], given.get("value")))
        if tag in ("input", "meta", "link", "br", "img"):
            self._in.pop()

    def handle_endtag(self, tag):
        while self._in and self._in.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tag, given = self._in[-1] if self._in else ("", {})
        if tag == "mark":
            self.marked.append(data)
        if given.get("class") == "wrong":
            self.beside[given["id"]] = self.beside.get(given["id"], "") + data


@pytest.fixture
def home(library, tmp_path, monkeypatch):
    library.lay_out(tmp_path / "home", "short")
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setattr(Queue, "start_worker", lambda queue: True)  # the queue's own tests train
    return tmp_path / "home"


def test_the_form_brings_no_torch():
    (loaded,) = loaded_by_each(["rankwise.studio.new_run"])
    assert not loaded & {"torch", "transformers"}


def test_the_forecast_turns_with_a_knob(client, home):
    def figures(**given):
        text = client.post("/new/forecast", data=FORM | given).text
        return dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)", text)), text

    few, text = figures()
    many, _ = figures(**{"adapter.rank": "16"})
    count = [int(one["Trained parameters"].strip().replace(",", "")) for one in (few, many)]
    assert count[1] == 4 * count[0]
    assert few["Memory"] != "" and "Time" in few and few["Adapter"] != many["Adapter"]
    assert "Fits." in text and "rankwise train --model tiny-llama" in text and "rank: 4" in text


def test_a_model_that_does_not_fit_is_told_with_what_would(client, home):
    large = {"model.name": "smollm2-135m", "card": "lora", "model.memory": "1GB", "other": "model.dtype=float32"}
    text = client.post("/new/forecast", data=large).text
    ways = re.findall(r'data-setting="([^"]*)"', text)
    assert "Too large." in text and ways
    for way in ways:  # what the button does: a field, or one more line of further settings
        changes = {"model.dtype": "float32"} | dict(one.split("=") for one in way.split())
        fields = {name: value for name, value in changes.items() if name in KNOBS}
        other = "\n".join(f"{name}={value}" for name, value in changes.items() if name not in KNOBS)
        changed = client.post("/new/forecast", data=large | fields | {"other": other}).text
        assert re.search("<strong>(Fits|Tight)", changed), way
    answer = client.post("/new/start", data=FORM | {"model.name": "llama-2-70b", "card": "full"})
    assert answer.status_code == 422 and not Queue().waiting()
    assert "are there on" in Page(answer.text).beside["p-model-name"]


NAMES = {
    "a starter": {"model.name": "minilm"}, "a catalogue name": {"model.name": "huggyllama/llama-7b"},
    "a model": {"other": "model.name=evil/model"},
    "sources": {"data.path": "", "other": "data.sources=[{path: hub:evil/rows}]"},
    "validation": {"other": "data.validation.path=hub:evil/val"},
    "replay": {"other": "training.replay.share=0.2\ntraining.replay.data.path=hub:evil/replay"},
    "anchor": {"other": "training.anchor.text=hub:evil/text"},
    "validation field": {"data.validation.path": "hub:evil/v"},
    "rows": {"data.path": "hub:evil/rows"}, "a model field": {"model.name": "evil/model"},
}  # fmt: skip
VISITS = """
import json, sys, time
from pathlib import Path
from rankwise.config.experiment import Experiment
from rankwise.runs.queue import Queue
from rankwise.runs.queue import work
from rankwise.studio.jobs import start, state_of
from kit.studio_client import studio_client
Queue.start_worker = lambda queue: True
client, names, form, queue = studio_client(), *map(json.loads, sys.argv[1:3]), Queue()
for kind, given in names.items():
    for page in ("forecast", "report", "preview", "start"):
        answer = client.post(f"/new/{page}", data=form | given)
        print(json.dumps([kind, page, answer.status_code, "is not on this machine" in answer.text]))
print(json.dumps([one.run for one in queue.waiting()]))
for run, model, data in (("m", "minilm", "rows.jsonl"), ("d", "tiny-llama", "hub:evil/rows")):
    queue.add(run, Experiment(model=model, data=data, run=run).explicit, may_ask_hub=False)
work(queue)
Path("tiny-llama").rename("elsewhere")  # the run's base is a name of the hub now
side = {"run": "short", "messages": [{"role": "user", "content": "hi"}]}
with client:
    asked = client.post("/ask/answer", json={"runs": ["short"], "sides": [side]}).text
words = ("export", "short", "--to", "exports/x", "--format", "merged", "--no-verify")
job = start("short", Path("exports/x"), words)
while state_of(job.id).running:
    time.sleep(0.1)
print(json.dumps([queue.ended("m").problem, queue.ended("d").problem, asked, state_of(job.id).problem]))
"""


@pytest.mark.slow
def test_without_the_box_nothing_leaves_the_machine_whatever_names_it(home):
    """A listener in place of the hub and of the package index hears no page, no training of the queue and no export,
    of a run whose base is not here either."""
    with served(lambda path: b"" if path == "/" else "RepoNotFound") as (address, asked):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PIP_"))} | {
            "HF_ENDPOINT": address, "PIP_INDEX_URL": f"{address}/simple", "PIP_CONFIG_FILE": os.devnull,
            "HF_HOME": str(home / "hf"), "RANKWISE_CACHE": str(home / "cache"), "PIP_RETRIES": "0",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        }  # fmt: skip
        words = [sys.executable, "-c", VISITS, json.dumps(NAMES), json.dumps(FORM)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *pages, queued, (model, rows, *others) = map(json.loads, done.stdout.splitlines())
    assert not asked, asked
    assert queued == [] and "minilm is not on this machine" in model and "hub:evil/rows" in rows
    assert all("tiny-llama" in said and "may not be asked here" in said for said in others), others
    for kind, page, status, told in pages:
        planned = page == "forecast" and kind in ("a starter", "a catalogue name")  # their shapes are known
        assert (status, told) == (422 if page == "start" else 200, not planned), (kind, page)


def test_with_the_box_the_hub_is_asked(client, home, monkeypatch):
    asked = []
    monkeypatch.setattr("rankwise.planning.reading.hub_answers", lambda: bool(asked.append(is_forbidden())))
    client.post("/new/forecast", data=FORM | {"model.name": "someone/unknown"})
    assert not asked
    client.post("/new/forecast", data=FORM | {"model.name": "someone/unknown", "hub": "true"})
    assert asked and not any(asked)
    monkeypatch.setattr(new_run, "_forecast", lambda form, hub: ShownForecast())
    for hub in ("", "true"):
        client.post("/new/start", data=FORM | {"hub": hub, "run": f"hub{hub}"})
    assert {one.run: one.may_ask_hub for one in Queue().waiting()} == {"hub": False, "hubtrue": True}


def test_every_setting_that_may_name_a_data_set_of_the_hub_is_looked_at():
    """By what its description says, so that a new one is not forgotten."""
    described = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
    naming = re.findall(r"- \*\*`(\w+\.[\w.\[\]]+)`\*\* \(text.*\bfile\b.*(?:hub:organisation|hub data set)", described)
    assert len(naming) == 5
    for name in naming:
        value = "hub:someone/rows"
        for part in reversed(name.split(".")):
            value = {part.removesuffix("[]"): [value] if part.endswith("[]") else value}
        assert [one for _, one in new_run._named(value)] == ["hub:someone/rows"], name
    assert not list(new_run._named({"data": {"prompt": "hub: {x}", "system": "hub:"}}))


def test_a_run_is_queued_with_the_settings_of_the_form(client, home):
    answer = client.post("/new/start", data=FORM | {"training.epochs": "1", "data.held_out": "2", "tune": ""})
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/one")
    (waiting,) = Queue().waiting()
    assert waiting.config == SettingsForm(FORM | {"training.epochs": "1", "data.held_out": "2"}).experiment()
    again = client.post("/new/start", data=FORM)
    assert again.status_code == 422 and "already" in Page(again.text).beside["p-run"]


def test_all_problems_stand_beside_their_fields_and_what_was_typed_stays(client, home):
    wrong = FORM | {"run": "short", "adapter.rank": "lots", "data.path": "none.jsonl", "training.epochs": "0"}
    answer = client.post("/new/start", data=wrong)
    page = Page(answer.text)
    assert answer.status_code == 422 and not Queue().waiting()
    assert {"p-adapter-rank", "p-training-epochs"} <= set(page.beside)
    assert {name: page.values[name] for name in wrong if name != "card"} == {
        name: value for name, value in wrong.items() if name != "card"
    }
    page = Page(client.post("/new/start", data=wrong | {"adapter.rank": "4", "training.epochs": "1"}).text)
    assert {"p-run", "p-data-path"} <= set(page.beside)


def test_a_run_is_duplicated_with_its_settings_and_another_name(client, home):
    page = Page(client.get("/new?from=short").text)
    assert page.values["adapter.rank"] == "2" and page.values["adapter.targets"] == "q_proj,v_proj"
    assert page.values["model.name"] == "tiny-llama" and page.values["run"] not in ("", "short")
    assert ("card", "lora") in page.checked


def test_the_preview_marks_exactly_the_tokens_of_the_loss(client, home):
    page = Page(client.post("/new/preview", data=FORM | {"first": "2"}).text)
    rows = preview(DataConfig(path="rows.jsonl"), ModelConfig(name="tiny-llama"), rows=3, first=2)
    learned = [text for row in rows for text, is_learned in row.segments if is_learned]
    assert page.marked[1:] == learned  # the first explains the mark
    assert "town 3" in client.post("/new/preview", data=FORM | {"first": "4"}).text


def test_the_report_tells_what_is_dropped_and_guessed(client, home):
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(5)]
    lines = [json.dumps(row) for row in [*rows, rows[0], {"prompt": "x"}]]
    (home / "some.jsonl").write_text("\n".join(lines))
    text = client.post("/new/report", data=FORM | {"data.path": "some.jsonl", "data.on_bad_row": "skip"}).text
    assert "7 read, 6 used" in text and "some.jsonl:7" in text and "1 exact" in text
    text = client.post("/new/report", data=FORM | {"data.path": "some.jsonl"}).text
    assert "some.jsonl:7" in text and 'class="problem"' in text


@pytest.mark.parametrize("way", WAYS)
def test_sample_rows_fill_the_form_and_are_read_without_a_problem(client, home, way):
    assert client.get(f"/new?way={way}&sample=yes").text.count(".uploads") == 1, "nothing is stored by a look"
    answer = client.post("/new/sample", data={"way": way})
    assert (answer.status_code, answer.headers["location"]) == (303, f"/new?way={way}&sample=yes")
    page = Page(client.get(answer.headers["location"]).text)
    assert page.values["model.name"] == WAYS[way].model and page.values["run"] == f"{way}-1"
    given = FORM | {"data.path": page.values["data.path"], **WAYS[way].settings, "data.held_out": "9"}
    report = client.post("/new/report", data=given).text
    assert "No problems found" in report and "96 read, 96 used" in report, report
    columns = client.post("/new/columns", data=given).text
    assert re.findall(r"selected>([^<]*)", columns) == ["text", "answer or label"] and "A guess" not in columns
    assert client.post("/new/start", data=given).status_code == 303
    assert client.post("/new/sample", data={"way": "x"}).status_code == 404


def test_no_part_of_an_order_tells_another():
    fields = [json.loads(row["fields"]) for row in orders()]
    for one, other in itertools.permutations(("name", "item", "city", "day"), 2):
        assert all(len({row[other] for row in fields if row[one] == value}) > 2 for value in {f[one] for f in fields})


def test_columns_get_a_proposal_that_trains(client, home):
    (home / "odd.csv").write_text("frage,antwort,id\nWas ist das genau?,Ein Haus,3\nWo liegt denn Rom?,Italien,4\n")
    odd = FORM | {"data.path": "odd.csv"}
    text = client.post("/new/columns", data=odd).text
    prompt, answer = re.search(r'data-prompt="([^"]*)" data-completion="([^"]*)"', text).groups()
    assert (prompt, answer) == ("{frage}", "{antwort}") and "2 rows" in text
    assert "A guess" in text and client.post("/new/start", data=odd).status_code == 422
    mapped = odd | {"data.prompt": prompt, "data.completion": answer}
    assert "No errors found" in client.post("/new/report", data=mapped).text
    assert client.post("/new/start", data=mapped).status_code == 303


def test_what_was_refused_is_looked_at_again_with_each_change(client, home):
    """The page asks so once something was refused, and says it by the labels of fields and the names of files."""
    (home / "odd.csv").write_text("frage,antwort,id\nWas ist das genau?,Ein Haus,3\nWo liegt denn Rom?,Italien,4\n")
    path = client.post("/new/upload", params={"name": "my odd.csv"}, content=(home / "odd.csv").read_bytes())
    odd = FORM | {"data.path": path.json()["path"], "run": "short", "refused": "yes"}
    first = client.post("/new/forecast", data=odd).text
    assert (
        "2 problems" in first
        and "Choose the text and the answer or label first" in first
        and " --" not in first.partition("The same in a")[0]
    )
    assert 'href="#f-run">Name</a>' in first and "my odd.csv" in first and ".uploads" not in first
    odd |= {"run": "other", "data.prompt": "{frage}", "data.completion": "{antwort}"}
    assert "Not started" not in client.post("/new/forecast", data=odd).text
    assert "Not started" not in client.post("/new/forecast", data=odd | {"run": "short", "refused": ""}).text
    assert "--data &#39;my odd.csv&#39;" in client.post("/new/forecast", data=odd).text


def test_a_forecast_says_what_it_waits_for(client, home):
    encoder_folder(home / "bert")
    text = client.post("/new/forecast", data={"model.name": "bert", "card": "lora"}).text
    assert "Memory and time follow when the rows" in text and "Unknown" not in text


def test_of_forecasts_that_one_page_asks_for_at_once_only_the_newest_follows(client, home, monkeypatch):
    computed, may_end = [], threading.Event()

    def slow(form, hub):
        computed.append(form.fields["adapter.rank"])
        assert may_end.wait(60)
        return ShownForecast()

    monkeypatch.setattr(new_run, "_forecast", slow)

    def ask(rank, page="one"):
        return client.post("/new/forecast", data=FORM | {"adapter.rank": rank, "page": page}).status_code

    def waiting(page):
        return new_run._turns._pages[page].waiting if page in new_run._turns._pages else 0

    with client, ThreadPoolExecutor() as browser:  # one loop for all requests
        asked = []
        for at, rank in enumerate(("1", "2", "3", "4"), start=1):
            asked.append(browser.submit(ask, rank))
            until(lambda at=at: waiting("one") == at)
        asked.append(browser.submit(ask, "9", "two"))
        until(lambda: computed == ["1", "9"])  # one of each page
        may_end.set()
        assert [one.result() for one in asked] == [200, 409, 409, 200, 200]
    assert computed == ["1", "9", "4"] and not new_run._turns._pages


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


@pytest.mark.parametrize("first", ["0", "-1", "9" * 5000, "x", ""])
def test_a_row_that_is_none_is_refused(client, home, first):
    assert client.post("/new/preview", data=FORM | {"first": first}).status_code == 400


@pytest.mark.parametrize("line", ["training.clip=&a [*a]", "adapter.targets=&a {x: *a}"])
def test_a_setting_that_has_itself_as_a_part_is_a_problem(client, home, line):
    for path in ("/new/forecast", "/new/columns"):
        answer = client.post(path, data=FORM | {"other": line})
        assert answer.status_code == 200 and "has itself as a part" in answer.text


def test_the_ways_in_are_on_new_run_until_something_is_chosen(client):
    assert client.get("/new").text.count('action="/new/sample"') == len(WAYS)
    assert 'action="/new/sample"' not in client.get("/new?way=classify").text
