"""The table of runs and the page of one: what they show, and what their buttons do."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from kit.report_runs import made_run
from rankwise.config.experiment import Experiment
from rankwise.config.reading import read_experiment
from rankwise.runs.directory import RunDirectory, is_asked_to_end
from rankwise.runs.own_files import StepFolders
from rankwise.runs.queue import Queue
from rankwise.runs.snapshot import RunSnapshot
from rankwise.studio.live import queued
from rankwise.studio.runs import COLUMNS, course_of
from rankwise.studio.samples import WAYS


def names(text):
    """The runs of a table, in its order."""
    return re.findall(r'<td class="lead"><a href="/runs/([^"]+)">', text)


@pytest.fixture
def three():
    made_run("a", method="lora", steps=8)
    made_run("b", method="adalora", steps=40, evaluated=False)
    made_run("c", method="lora", status="failed", held_out=False, steps=2)


def test_an_empty_folder_has_three_ways_in(client):
    text = client.get("/").text
    assert "A run is a training" in text and 'href="/new">New run</a>' in text
    assert re.findall(r'href="/new\?way=(\w+)"', text) == re.findall(r'name="way" value="(\w+)"', text) == [*WAYS]


def test_the_table_has_every_run_with_its_line_and_figures(client, three):
    text = client.get("/").text
    assert sorted(names(text)) == ["a", "b", "c"]
    assert text.count('class="spark"') == 3
    assert text.count("not measured") == 1, "b has no forgetting"
    assert 'aria-sort="descending"' in text


@pytest.mark.parametrize("column", COLUMNS)
def test_each_column_sorts_in_both_orders_with_unknown_values_last(client, three, column):
    up = names(client.get(f"/?sort={column}&order=ascending").text)
    down = names(client.get(f"/?sort={column}&order=descending").text)
    assert sorted(up) == sorted(down) == ["a", "b", "c"]
    if column == "name":
        assert (up, down) == (["a", "b", "c"], ["c", "b", "a"])
    if column == "forgetting":
        assert up[-1] == down[-1] == "b"


def test_runs_are_filtered_by_words_and_status(client, three):
    assert names(client.get("/?words=ADALORA").text) == ["b"]
    assert names(client.get("/?status=failed").text) == ["c"]
    assert sorted(names(client.get("/?words=lora&status=finished").text)) == ["a", "b"]
    assert names(client.get("/?words=nothing").text) == []


def test_losses_and_the_first_score_are_read_anew_when_the_log_has_grown(three):
    metrics = RunDirectory.named("a").metrics
    before, (metric, value) = course_of(metrics)
    with metrics.open("a") as file:
        for row in ({"kind": "step", "loss": 7.5}, {"kind": "score", "metric": metric, "value": 0.125},
                    {"kind": "score", "metric": "other", "value": 9}):  # fmt: skip
            file.write(json.dumps(row) + "\n")
    losses, score = course_of(metrics)
    assert list(losses) == [*before, 7.5] and score == (metric, 0.125) and value != 0.125


def test_warnings_name_an_upload_by_its_own_name_and_settings_by_their_labels(client, three):
    path = client.post("/new/upload", params={"name": "my rows.jsonl"}, content=b"{}").json()["path"]
    run, warnings = RunDirectory.named("a"), (f"{path}: --epochs 6 would help, or --no-such",)
    run.write_manifest(run.manifest().model_copy(update={"warnings": warnings}))
    assert "<li>my rows.jsonl: “Epochs” 6 would help, or --no-such" in client.get("/runs/a").text
    report = RunSnapshot.of(run).recorded_data.model_copy(update={"warnings": warnings})
    run.write("data_report.json", report.model_dump(mode="json"))
    for page in ("", "/report", "/report.html"):
        text = client.get(f"/runs/a{page}").text
        assert "my rows.jsonl: " in text and ".uploads" not in text


def test_the_command_of_a_report_can_be_repeated(client, three):
    run = RunDirectory.named("a")
    for words, said in (
        (["__main__.py", "train", str(Queue().settings("a")), "--json"], "rankwise train runs/a/config.json"),
        (["__main__.py", "train", "--run", "a"], "rankwise train --run a"), (["mine.py", "a"], "mine.py a"),
    ):  # fmt: skip
        run.write_manifest(run.manifest().model_copy(update={"command": words}))
        assert f"<dd>{said}</dd>" in client.get("/runs/a/report").text
    assert read_experiment(Path("runs/a/config.json"), []).run == "r"


def test_two_runs_are_compared_and_one_is_not(client, three):
    text = client.get("/compare?run=a&run=b").text
    assert "rankwise comparison" in text and "adapter.method" in text
    assert client.get("/compare?run=a").headers["location"] == "/"


def test_a_run_is_deleted_after_it_was_said_what_is_lost(client, three):
    asked = client.get("/delete?run=a&run=c")
    assert "the record of its steps" in asked.text and "its evaluations" in asked.text
    assert RunDirectory.named("a").folder.exists(), "nothing is deleted by a look"
    answer = client.post("/delete", data={"run": ["a", "c"]})
    assert answer.status_code == 303
    text = client.get("/").text
    assert "Deleted a, c and freed" in text and names(text) == ["b"]
    assert "Deleted" not in client.get("/").text, "it is said once"


def test_a_run_that_is_trained_is_neither_deleted_nor_renamed_but_asked_to_end(client, three):
    run = RunDirectory.named("b")
    manifest = run.manifest()
    run.write_manifest(manifest.model_copy(update={"status": "running", "results": None, "ended": None}))
    with run.locked():
        text = client.get("/runs/b").text
        assert "Stop and keep" in text and "Delete" not in text
        for answer in (client.get("/delete?run=b"), client.post("/delete", data={"run": ["a", "b"]}),
                       client.post("/runs/b/rename", data={"new": "d"})):  # fmt: skip
            assert answer.status_code == 400 and f"being written by process {os.getpid()}" in answer.text
        assert client.post("/runs/b/end").status_code == 303
        assert is_asked_to_end(run)
    assert RunDirectory.named("a").folder.exists(), "none or all"
    assert client.post("/runs/b/end").status_code == 400, "nobody trains it any more"
    assert "interrupted" in client.get("/runs/b").text


def test_a_run_is_renamed(client, three):
    assert client.post("/runs/a/rename", data={"new": " d "}).headers["location"] == "/runs/d"
    assert RunSnapshot.read("d").experiment.run == "d"
    refused = client.post("/runs/d/rename", data={"new": "../x"})
    assert refused.status_code == 400 and "cannot be the name of a run" in refused.text


def test_the_settings_of_a_run_are_a_settings_file(client, three, tmp_path):
    text = re.search(r"<pre tabindex=\"0\"><code>(.*?)</code></pre>", client.get("/runs/b").text, re.DOTALL)[1]
    (tmp_path / "again.yaml").write_text(text.replace("&#39;", "'").replace("&#34;", '"'))
    assert read_experiment(tmp_path / "again.yaml") == RunSnapshot.read("b").experiment


def test_a_run_shows_its_data_its_warnings_and_its_records(client, three):
    run = RunDirectory.named("a")
    run.write_manifest(run.manifest().model_copy(update={"warnings": ("the rate was lowered",)}))
    text = client.get("/runs/a").text
    assert "<li>the rate was lowered</li>" in text and "Data report" in text
    assert client.get("/runs/a/metrics.jsonl").content == run.metrics.read_bytes()
    assert "started in a terminal" in text


def test_a_name_that_is_no_run_is_refused_wherever_it_stands(client, three):
    for name in ("nothing", "%2e%2e", "%2e", "%2e%2e%2f", "a%2fadapter", "a%00", "%ff"):
        assert client.get(f"/runs/{name}").status_code in (400, 404), name
        assert client.post("/runs/nothing/stop").status_code == 400


def test_a_folder_that_is_no_run_and_a_damaged_one_are_shown(client, three):
    (RunDirectory.named("empty").folder).mkdir()
    (RunDirectory.named("b").folder / "manifest.json").write_text("{")
    os.mkdir(b"runs/\xff")
    text = client.get("/").text
    assert text.count("unreadable") >= 3 and "U+DCFF" in text
    answer = client.get("/runs/b")
    assert answer.status_code == 200 and "is damaged" in answer.text
    assert client.get(f"/runs/{quote('empty')}").status_code == 200


def test_a_run_that_waits_has_a_page_and_is_removed(client, three, monkeypatch):
    monkeypatch.setattr(Queue, "start_worker", lambda self: False)
    Queue().add("later", Experiment(model="m", run="later", data={"path": "rows.jsonl"}).explicit)
    assert "Remove later from the queue" in client.get("/").text
    text = client.get("/runs/later").text
    assert "begins by itself as soon as no other one trains" in text
    assert client.post("/queue/remove", data={"run": "later"}).status_code == 303
    assert Queue().waiting() == []
    assert client.get("/runs/later").status_code == 400


def test_a_run_that_waits_to_go_on_is_neither_deleted_nor_renamed(client, three, monkeypatch):
    monkeypatch.setattr(Queue, "start_worker", lambda self: False)
    monkeypatch.setattr(StepFolders, "_is_ours", lambda self, step: True)
    (RunDirectory.named("c").folder / "checkpoints" / "step-2").mkdir(parents=True)
    assert client.post("/runs/c/resume").status_code == 303
    Queue().add("later", Experiment(model="m", run="later", data={"path": "rows.jsonl"}).explicit)
    for path, given in (("/delete", {"run": ["a", "c"]}), ("/runs/c/rename", {"new": "d"}),
                        ("/runs/a/rename", {"new": "later"})):  # fmt: skip
        answer = client.post(path, data=given)
        assert answer.status_code == 400 and "waits in the queue" in answer.text
    Queue().remove("c")
    assert client.post("/delete", data={"run": ["a", "c"]}).status_code == 303


def test_a_run_that_failed_in_the_queue_leaves_nothing_there_once_it_is_deleted(client, three):
    def left_by_the_worker(name):
        Queue().log(name).parent.mkdir(parents=True, exist_ok=True)
        Queue().log(name).write_text("It could not go on.")
        Queue().outcome(name).write_text(json.dumps({"error": "It could not go on."}))

    left_by_the_worker("c")
    assert client.post("/runs/c/rename", data={"new": "d"}).status_code == 303
    assert "It could not go on." in client.get("/runs/d").text
    assert [one.run for one in queued().refused] == []
    assert client.post("/delete", data={"run": "d"}).status_code == 303
    assert [one.run for one in queued().refused] == []


def test_a_run_goes_on_from_its_checkpoint_through_the_queue(client, three, monkeypatch):
    monkeypatch.setattr(Queue, "start_worker", lambda self: False)
    run = RunDirectory.named("c")
    assert client.post("/runs/c/resume").status_code == 400, "it has no checkpoint"
    (run.folder / "checkpoints" / "step-2").mkdir(parents=True)
    monkeypatch.setattr(StepFolders, "_is_ours", lambda self, step: True)
    assert "Resume from step 2" in client.get("/runs/c").text
    assert client.post("/runs/c/resume").status_code == 303
    assert [(one.run, one.resume) for one in Queue().waiting()] == [("c", True)]


@pytest.mark.parametrize("length", [250, 5000])
@pytest.mark.parametrize("path", ["/runs/{}", "/runs/{}/events", "/runs/{}/log", "/delete?run={}", "/new?from={}"])
def test_a_name_that_no_folder_can_have_is_no_run(client, path, length):
    assert client.get(path.format("x" * length)).status_code == 400


def test_what_the_system_refuses_is_said_without_a_traceback(client, three):
    (RunDirectory.named("a").folder.parent / ".queue").write_text("no folder")
    answer = client.post("/runs/c/resume")
    assert answer.status_code == 400
    (RunDirectory.named("c").folder / "metrics.jsonl").unlink()
    Path("exports").write_text("no folder")
    answer = client.post("/export/begin", data={"run": "a", "to": "out", "format": "peft"})
    assert answer.status_code in (400, 422) and "exports" in answer.text
