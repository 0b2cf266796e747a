"""Predictions and evaluations from the page are those of the commands, and the page shows what came of them."""

from __future__ import annotations

import csv
import re
import time
from pathlib import Path

import pytest

from kit.classifiers import encoder_folder, labelled, write_rows
from kit.command import rankwise
from rankwise.studio import jobs


@pytest.fixture(scope="module")
def home(library, tmp_path_factory):
    home = library.lay_out(tmp_path_factory.mktemp("jobs") / "home", "lora")
    rows = [{"topic": "film", **row} for row in labelled(16)]
    words = ("--model", encoder_folder(home / "bert"), "--data", write_rows(home / "rows.json", rows), "--steps", "1",
             "--rank", "2", "--held-out", "4", "--prompt", "{topic}: {text}", "--completion", "{label}")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert rankwise("train", *map(str, words), "--run", "classes").exit_code == 0
    return home


@pytest.fixture(autouse=True)
def here(home, workplace, monkeypatch):
    monkeypatch.chdir(home)


def finished(client, command, **form):
    """The page of a job that has ended, and its address."""
    answer = client.post(f"/{command}/begin", data=form)
    assert answer.status_code == 303, answer.text
    address, deadline = answer.headers["location"], time.monotonic() + 120
    while "chip running" in (text := client.get(f"{address}/state").text):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return text, address


def uploaded(client, name, content):
    return client.post("/new/upload", params={"name": name}, content=content).json()["path"]


@pytest.mark.slow
def test_a_file_comes_back_with_answers_as_the_command_writes_it(client):
    content = "id;topic;text\n1;f\u00fcr;the film is kind\n2;x;the plot is cold\n3;;\n".encode("cp1252")
    path = uploaded(client, "my tickets.csv", content)
    page, address = finished(client, "predict", run="classes", data=path, skip="true")
    assert "2 of 3 rows are answered" in page and "1 row with problems" in page and "my tickets-classes.csv" in page, (
        page
    )
    assert rankwise("predict", "classes", "--data", path, "--out", "theirs.csv", "--on-bad-row", "skip").exit_code == 0
    sent = client.get(f"{address}/files/my tickets-classes.csv")
    assert sent.content == Path("theirs.csv").read_bytes() and sent.content.startswith(b"id;topic;text;prediction")
    assert "attachment" in sent.headers["content-disposition"]
    assert f'href="{address}"' in client.get("/predict?run=classes").text
    assert address not in client.get("/predict?run=lora").text + client.get("/export?run=classes").text


@pytest.mark.slow
def test_rows_that_cannot_be_used_end_it(client):
    path = uploaded(client, "bad.jsonl", b'{"topic": "a", "text": "the film"}\n{"topic": "b"}\n')
    page, _ = finished(client, "predict", run="classes", data=path)
    assert "chip bad" in page and "bad.jsonl:2" in page and ".uploads" not in page
    assert "“A row that cannot be used” skip answers the other rows" in page.partition("<details")[0]


@pytest.mark.slow
def test_an_evaluation_shows_intervals_and_wrong_answers_first(client):
    rows = [f"What is land {n}?;{f'It is town {n}.' if n % 2 else '<b>'};x" for n in range(4)]
    path = uploaded(client, "lands.csv", "\r\n".join(["prompt;completion;note", *rows, ""]).encode())
    page, address = finished(client, "evaluate", run="lora", data=path, score=["exact", "chrf"])
    printed = jobs.state_of(address.rpartition("/")[2]).printed
    assert [*printed["metrics"]] == ["exact", "chrf"] and printed["task"] == "lands" and printed["base"]
    with Path("exports/lands-lora-answers.csv").open(newline="") as file:
        table = enumerate(csv.DictReader(file, delimiter=";"), start=2)
        right = {f"row {line}": float(row["exact"].replace(",", ".")) for line, row in table}
    marks = re.findall(r'hidden">(right|wrong)</span></span> (row \d+)</td>', page)
    assert '<td data-label="Question">What is land 1? · x</td>' in page
    assert {where: float(mark == "right") for mark, where in marks} == right and len(marks) == 4
    assert [mark for mark, _ in marks] == sorted((mark for mark, _ in marks), reverse=True) and 0 in right.values()
    assert f"{sum(1 - one for one in right.values()):.0f} of 4 are not wholly right" in page
    assert "&lt;b&gt;" in page and "<b>" not in page and page.count(" to ") >= 4
    Path("exports/lands-lora-answers.csv").write_text("where,exact\na,b\n")  # as somebody left it
    assert client.get(f"{address}/state").status_code == 200


@pytest.mark.slow
def test_a_classifier_is_evaluated_on_its_own_validation_rows(client):
    page, address = finished(client, "evaluate", run="classes")
    assert "validation-classes-answers.csv" in page and "balanced accuracy" in page, page
    assert not any(word.startswith("--data") for word in jobs.state_of(address.rpartition("/")[2]).job.words)


@pytest.mark.parametrize(("command", "given", "why"), [
    ("predict", {}, "Upload a file of rows"), ("predict", {"data": "a\0b"}, "Upload a file of rows"),
    ("predict", {"data": "rows.jsonl", "run": "--help"}, "no finished run"),
    ("evaluate", {"run": ""}, "no finished run"),
    ("evaluate", {"score": "--out"}, "no score"),
])  # fmt: skip
def test_a_wrong_wish_starts_nothing(client, command, given, why):
    before = len(jobs.states())
    answer = client.post(f"/{command}/begin", data={"run": "classes"} | given)
    assert answer.status_code == 422 and why in answer.text and len(jobs.states()) == before


def test_a_text_is_asked_with_the_prompt_of_the_run(client):
    for screen in ("ask", "predict"):
        text = client.get(f"/{screen}?run=classes").text
        assert 'data-template="{topic}: {text}"' in text and re.findall(r'data-column="(\w+)"', text) == [
            "topic",
            "text",
        ]
    assert "data-template" not in client.get("/ask?run=lora").text
    assert 'id="prompt"' not in client.get("/predict?run=lora").text
