"""Classifiers, taggers and models of images over HTTP: each answer is what `rankwise predict` writes for the row."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from kit.classifiers import labelled
from kit.command import done
from kit.library import CLASSIFIERS
from rankwise.methods.artifact import open_artifact
from rankwise.objectives.classifier import Classifier
from rankwise.serving.app import Server
from rankwise.serving.classify import ClassifyingEngine, ClassifyServer, load_classifiers
from rankwise.serving.engine import Limits, ServingEngine
from rankwise.serving.served import load_serving

ROUTE, PNG = "/v1/classify", "data:image/png;base64,"
GOOD = {"model": "films", "input": "the film is kind"}


@pytest.fixture(scope="module")
def home(library, tmp_path_factory):
    return library.lay_out(tmp_path_factory.mktemp("classify") / "home", "lora", *CLASSIFIERS)


@pytest.fixture(autouse=True)
def in_home(home, monkeypatch):
    monkeypatch.chdir(home)


@pytest.fixture(scope="module")
def models(home):
    with chdir(home):
        return load_classifiers([open_artifact(name) for name in CLASSIFIERS], lambda message: None)


@pytest.fixture
def started(models):
    engines = []

    def start(limits=None, **guard):
        engines.append(ClassifyingEngine(limits or Limits()))
        engines[-1].start()
        app = ClassifyServer(models, engines[-1]).app(**{"key": None, "host": "127.0.0.1"} | guard)
        client = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        return SimpleNamespace(client=client, engine=engines[-1], app=app)

    yield start
    for engine in engines:
        engine.stop()


def data_url(row):
    return PNG + base64.b64encode(Path("pictures", row["image"]).read_bytes()).decode()


ITEMS = {
    "films": ("films.jsonl", lambda row: row["text"]),
    "films as rows": ("films.jsonl", lambda row: {"text": row["text"]}),
    "asked": ("columns.jsonl", lambda row: row["body"]),
    "asked as rows": ("columns.jsonl", lambda row: {"body": row["body"]}),
    "both as rows": ("columns.jsonl", lambda row: {"body": row["body"], "title": row["title"], "kind": "good"}),
    "several": ("several.jsonl", lambda row: row["text"]),
    "numbers": ("numbers.jsonl", lambda row: [row["text"], row["text_pair"]]),
    "numbers as rows": ("numbers.jsonl", lambda row: {"text": row["text"], "text_pair": row["text_pair"]}),
    "tags": ("tags.jsonl", lambda row: row["text"]),
    "tags as rows": ("tags.jsonl", lambda row: {"text": row["text"]}),
    "pictures": ("pictures", data_url),
}


def expected(run, data):
    """What the command writes of each row, in the form of an answer, with the row."""
    done("predict", run, "--data", data, "--out", "out.jsonl", "--overwrite", "--quiet")
    for row in map(json.loads, Path("out.jsonl").read_text().splitlines()):
        shares = {name.removeprefix("probability_"): row[name] for name in row if name.startswith("probability_")}
        said = row["prediction"]
        if isinstance(said, float):
            yield row, {"value": said}
        elif not shares:
            yield row, {"spans": said}
        elif isinstance(said, str):
            yield row, {"label": said, "probability": shares[said], "probabilities": shares}
        else:
            yield row, {"labels": said, "probabilities": shares}


def near(value):
    """The value with room for what rounding in another batch and in a file changes."""
    if isinstance(value, dict):
        return {key: near(one) for key, one in value.items()}
    if isinstance(value, list):
        return [near(one) for one in value]
    return pytest.approx(value, abs=3e-6) if isinstance(value, float) else value


def said(answer):
    return [{key: value for key, value in one.items() if key not in ("index", "tags")} for one in answer["data"]]


def asked_of(client, run, *items):
    answer = client.post(ROUTE, json={"model": run, "input": [*items]})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("case", ITEMS)
def test_each_answer_is_what_predict_writes_for_the_row(case, started):
    client, run, (data, item_of) = started(Limits(batch_size=5)).client, case.split()[0], ITEMS[case]
    rows, values = zip(*expected(run, data), strict=True)
    assert len({json.dumps(one) for one in values}) > 3, "rows that differ"
    together = asked_of(client, run, *map(item_of, rows))
    alone = [asked_of(client, run, item_of(row)) for row in rows]
    assert said(together) == near([*values]) == [one for answer in alone for one in said(answer)]
    assert [one["index"] for one in together["data"]] == [*range(len(rows))]
    tokens = sum(answer["usage"]["prompt_tokens"] for answer in alone)
    assert together["usage"] == {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens} and tokens
    assert (
        together["model"] == run and together["system_fingerprint"] == client.get(f"/v1/models/{run}").json()["sha256"]
    )


def test_words_one_by_one_have_a_tag_each(started, models):
    client = started().client
    words = ["Anna", "works", "in", "New", "Delhi"]
    (answer,) = asked_of(client, "tags", words)["data"]
    assert len(answer["tags"]) == 5 and answer["tags"] == asked_of(client, "tags", " ".join(words))["data"][0]["tags"]


def test_many_clients_get_their_own_answers(started):
    server, texts = started(Limits(batch_size=4, waiting=64)), [row["text"] for row in labelled(12)]
    alone = {
        run: [said(asked_of(server.client, run, text))[0] for text in texts] for run in ("films", "asked", "several")
    }

    def ask(number):
        run, at = [*alone][number % 3], number % 12
        several = texts[at : at + 1 + number % 7]
        return said(asked_of(server.client, run, *several)) == near(alone[run][at : at + len(several)])

    with ThreadPoolExecutor(16) as clients:
        assert all(clients.map(ask, range(160)))
    counts = server.engine.counts
    assert (counts.requests, counts.refused, counts.failed, counts.cancelled) == (196, 0, 0, 0)


DEEP = functools.reduce(lambda inside, _: [inside], range(900), "a")
WRONG = {
    "no model": ({"model": "nobody"}, 404, 'no model "nobody" is served here'),
    "a near model": ({"model": "film"}, 404, 'Did you mean "films"?'),
    "no input": ({"input": None}, 400, '"input"'), "nothing": ({"input": []}, 400, "list of 1 to 512 rows"),
    "too many": ({"input": ["a"] * 513}, 400, "this one has 513"),
    "an empty text": ({"input": " "}, 400, "input[0]: the text is empty."),
    "a number": ({"input": 5}, 400, "input[0]: is 5; this classifier reads texts"),
    "three texts": ({"input": [["a", "b", "c"]]}, 400, "input[0]: is ['a', 'b', 'c']"),
    "half a character": ({"input": "\ud800"}, 400, "half a character"),
    "a long text": ({"input": "film " * 70}, 400, "input[0]: has 72 tokens, and the run's longest row may have 64"),
    "nested": ({"input": [DEEP]}, 400, "input[0]"),
    "every problem": ({"input": ["a film", None, "film " * 70, {"txt": 1}]}, 400, "input[1]", "input[2]", "input[3]"),
    "an unknown field": ({"inputs": "a"}, 400, 'Did you mean "input"?'),
    "an unknown column": ({"model": "asked", "input": [{"text": "a"}]}, 400, 'the column "body"'),
    "one of two columns": ({"model": "both", "input": "a"}, 400, "has the columns 'title' and 'body'"),
    "a path": ({"model": "pictures", "input": "pictures/dark/0.png"}, 400, "this classifier reads images"),
    "a path in a row": ({"model": "pictures", "input": [{"image": "pictures/dark/0.png"}]}, 400, "reads images"),
    "a path in a text's row": ({"input": [{"image": "/etc/passwd.png"}]}, 400, "without a folder to look in"),
    "an address": ({"model": "pictures", "input": "http://169.254.169.254/a.png"}, 400, "this classifier reads images"),
    "broken base64": ({"model": "pictures", "input": PNG + "a-b"}, 400, "not base64"),
    "no image": ({"model": "pictures", "input": PNG + base64.b64encode(b"%PDF").decode()}, 400, "it is a PDF"),
    "an empty image": ({"model": "pictures", "input": [PNG, "x"]}, 400, "empty (0 bytes)", "input[1]"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_its_place_and_the_server_goes_on(case, started):
    client, (changed, status, *parts) = started().client, WRONG[case]
    answer = client.post(ROUTE, content=json.dumps(GOOD | changed), headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert all(part in answer.json()["error"]["message"] for part in parts), answer.text
    assert client.post(ROUTE, json=GOOD).status_code == 200


def test_a_body_is_as_large_as_images_need_where_images_are_classified(started, models):
    server, large = started(), GOOD | {"input": "a " * 600_000}
    assert "tokens" in server.client.post(ROUTE, json=large).text
    texts = ClassifyServer({"films": models["films"]}, server.engine).app(key=None, host="127.0.0.1")
    assert TestClient(texts, base_url="http://127.0.0.1").post(ROUTE, json=large).status_code == 413


def test_each_kind_of_model_says_where_it_is_asked(started, home):
    client = started().client
    chat = {"model": "films", "messages": [{"role": "user", "content": "hi"}]}
    for route in ("/v1/chat/completions", "/v1/completions"):
        answer = client.post(route, json=chat)
        assert answer.status_code == 400 and "is a classifier: POST /v1/classify" in answer.text
    serving = load_serving(["lora"], lambda message: None)
    engine = ServingEngine(serving.model.module, serving.rows, Limits())
    other = TestClient(Server(serving, engine, 8).app(key=None, host="127.0.0.1"), base_url="http://127.0.0.1")
    answer = other.post(ROUTE, json=GOOD | {"model": "lora"})
    assert answer.status_code == 400 and "is a language model: POST /v1/chat/completions" in answer.text


def test_a_key_is_needed_where_there_is_one_and_counts_are_told(started):
    client, key = started(key="secret").client, {"authorization": "Bearer secret"}
    assert client.post(ROUTE, json=GOOD).status_code == 401 and client.get("/health").status_code == 200
    assert client.post(ROUTE, json=GOOD, headers=key).status_code == 200
    assert "rankwise_requests_total 1\n" in client.get("/metrics", headers=key).text
    assert [one["id"] for one in client.get("/v1/models", headers=key).json()["data"]] == [*CLASSIFIERS]


@pytest.fixture
def batches(monkeypatch):
    """The texts of each batch; batches wait until `going` is set."""
    texts, going, real = list[list[str]](), threading.Event(), Classifier.predictions_of

    def wait(self, model, rows):
        going.wait(20)
        texts.append([row.example.messages[0].content for row in rows])
        return real(self, model, rows)

    monkeypatch.setattr(Classifier, "predictions_of", wait)
    yield SimpleNamespace(texts=texts, going=going)
    going.set()


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_requests_without_room_are_told_when_to_come_again(started, batches):
    server = started(Limits(batch_size=1, waiting=1))
    with ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(server.client.post, ROUTE, json=GOOD) for _ in range(8)]
        until(lambda: sum(one.done() for one in asked) == 6)
        batches.going.set()
    refused = [one.result() for one in asked if one.result().status_code == 429]
    assert len(refused) == 6 == server.engine.counts.refused and all(int(one.headers["retry-after"]) for one in refused)
    assert server.client.post(ROUTE, json=GOOD).status_code == 200


def test_rows_that_nobody_waits_for_are_not_classified(started, batches):
    server, sent = started(Limits(batch_size=1)), []
    body = json.dumps(GOOD | {"input": ["a film"] * 50}).encode()
    left = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        if (message := next(left, None)) is not None:
            return message
        while not server.engine.running + server.engine.waiting:
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": ROUTE, "query_string": b"", "headers": headers, "root_path": ""}
    asyncio.run(server.app(scope, receive, send))
    batches.going.set()
    until(lambda: not server.engine.running + server.engine.waiting)
    assert (sent[0]["status"], server.engine.counts.cancelled) == (499, 1) and server.engine.counts.prompt_tokens < 10
    assert server.client.post(ROUTE, json=GOOD).status_code == 200


def test_a_long_request_lets_a_short_one_go_first(started, batches):
    server, long = started(Limits(batch_size=4)), GOOD | {"input": ["a film"] * 12}
    with ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(server.client.post, ROUTE, json=long)]
        until(lambda: server.engine.counts.requests == 1 and server.engine.waiting)
        answers.append(clients.submit(server.client.post, ROUTE, json=GOOD))
        until(lambda: server.engine.counts.requests == 2)
        batches.going.set()
        assert [len(one.result().json()["data"]) for one in answers] == [12, 1]
    assert GOOD["input"] in batches.texts[2] and len(batches.texts) == 4, "behind the one that was begun and the next"


def test_a_failure_is_told_to_those_whose_rows_it_was(started, monkeypatch):
    server, real = started(), Classifier.predictions_of

    def small_alone(self, model, rows):
        if len(rows) > 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return real(self, model, rows)

    monkeypatch.setattr(Classifier, "predictions_of", small_alone)
    answer = server.client.post(ROUTE, json=GOOD | {"input": ["a film"] * 40})
    assert answer.status_code == 507 and answer.json()["error"]["message"] == "out of memory."
    assert server.client.post(ROUTE, json=GOOD).status_code == 200
    assert (server.engine.counts.failed, server.engine.counts.cancelled) == (1, 0)


def test_nobody_waits_for_a_server_that_has_stopped(started, batches):
    server = started(Limits(batch_size=1))
    with ThreadPoolExecutor(3) as clients:
        asked = [clients.submit(server.client.post, ROUTE, json=GOOD) for _ in range(3)]
        until(lambda: (server.engine.running, server.engine.waiting) == (1, 2))
        stopping = threading.Thread(target=server.engine.stop)
        stopping.start()
        batches.going.set()
        stopping.join()
    assert sorted(one.result().status_code for one in asked) == [200, 503, 503]
    assert server.client.post(ROUTE, json=GOOD).status_code == 503
    assert server.client.get("/health").status_code == 503
