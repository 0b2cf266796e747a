"""`rankwise runs`: every folder is listed and none breaks the list; renaming brings along what names the run; deleting
takes all that was named or nothing, and never what lies elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kit.command import printed, rankwise
from kit.report_runs import made_run
from rankwise.commands.report import report
from rankwise.runs.directory import RunDirectory, writer_of
from rankwise.runs.snapshot import RunSnapshot


def refused(*words, code=2):
    result = rankwise(*words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def listed():
    return {run["name"]: run for run in printed("runs")["runs"]}


def ended(name, when):
    run = RunDirectory.named(name)
    run.write_manifest(run.manifest().model_copy(update={"ended": when}))


def test_no_runs_are_an_empty_list_and_a_sentence():
    assert printed("runs") == {"runs": []}
    assert "no runs" in rankwise("runs").stdout
    assert not Path("runs").exists()


def test_a_list_has_the_facts_of_each_run_and_the_newest_first():
    made_run("old")
    made_run("new", held_out=False, method="lora")
    ended("new", "2026-03-01T00:00:00+00:00")
    found = printed("runs", "list")["runs"]
    assert [run["name"] for run in found] == ["new", "old"]
    expected = {"status": "finished", "model": "model", "method": "adalora", "rows": 40, "steps": 24, "loss": 0.5,
                "validation_loss": 0.7, "problem": None}  # fmt: skip
    assert expected.items() <= found[1].items()
    assert found[0]["validation_loss"] is None
    size = sum(file.lstat().st_size for file in Path("runs/old").rglob("*") if file.is_file())
    assert found[1]["bytes"] == size > 0
    lines = rankwise("runs").stdout.splitlines()
    assert " ".join(lines[0].split()) == "name status model method rows steps loss validation size ended"
    assert lines[1].startswith("new ") and "2026-03-01 00:00" in lines[1] and "0.7000" in lines[2]


def test_a_run_whose_process_was_killed_is_interrupted_and_a_running_one_runs_and_comes_first():
    made_run("dead", status="running")
    made_run("live", status="running")
    made_run("done")
    ended("done", "2026-03-01T00:00:00+00:00")
    with RunDirectory.named("live").locked():
        found = printed("runs")["runs"]
        assert [(run["name"], run["status"]) for run in found] == [
            ("live", "running"), ("done", "finished"), ("dead", "interrupted"),
        ]  # fmt: skip
        assert writer_of(RunDirectory.named("live")) == str(os.getpid())
    assert writer_of(RunDirectory.named("live")) is None
    assert found[0]["steps"] == 24 and found[0]["loss"] == pytest.approx(2 * 2.718281828 ** (-24 / 9))
    assert found[0]["validation_loss"] == 0.7


DAMAGE = {
    "no manifest": lambda run: (run / "manifest.json").unlink(),
    "cut manifest": lambda run: (run / "manifest.json").write_text('{"status": "fin'),
    "no settings": lambda run: (run / "config.json").unlink(),
    "settings of another version": lambda run: (run / "config.json").write_text('{"nothing": "such"}'),
    "manifest a folder": lambda run: ((run / "manifest.json").unlink(), (run / "manifest.json").mkdir()),
    "manifest a pipe": lambda run: ((run / "manifest.json").unlink(), os.mkfifo(run / "manifest.json")),
    "settings a pipe": lambda run: ((run / "config.json").unlink(), os.mkfifo(run / "config.json")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_listed_as_unreadable_with_the_reason(damage):
    made_run("whole")
    folder = made_run("broken").folder
    DAMAGE[damage](folder)
    found = listed()
    assert found["whole"]["status"] == "finished"
    assert found["broken"]["status"] == "unreadable" and "runs/broken" in found["broken"]["problem"]
    table = rankwise("runs").stdout
    assert "unreadable" in table and found["broken"]["problem"] in table
    shown = rankwise("runs", "show", "broken")
    assert shown.exit_code == 0 and found["broken"]["problem"] in shown.stdout, shown.output


def test_foreign_things_in_the_runs_folder_break_nothing():
    made_run("whole")
    Path("runs/photos").mkdir()
    Path("runs/notes.txt").write_text("mine")
    Path("runs/.hidden").mkdir()
    Path("runs/to-nowhere").symlink_to("nowhere")
    assert {name: run["status"] for name, run in listed().items()} == {"whole": "finished", "photos": "unreadable"}


@pytest.mark.parametrize(
    "metrics_log", ["", "not JSON\n{}\n", '{"kind": "step", "step": "x", "loss": {}}\n', "[1]\n3\n"]
)
def test_a_damaged_metrics_log_costs_the_list_only_what_stood_in_it(metrics_log):
    run = made_run("r", status="failed")
    run.metrics.write_text(metrics_log)
    assert listed()["r"]["status"] == "failed" and listed()["r"]["steps"] is None
    assert rankwise("runs").exit_code == 0


def test_show_has_the_manifest_the_evaluations_and_the_parts_of_the_folder():
    run = made_run("r")
    shown = printed("runs", "show", "r")
    assert shown["manifest"] == run.manifest().model_dump(mode="json")
    assert shown["evaluations"] == ["task"] and shown["folder"] == "runs/r"
    assert shown["parts"]["metrics.jsonl"] == run.metrics.stat().st_size
    assert sum(shown["parts"].values()) == shown["bytes"]
    assert "-> 0.7000" in rankwise("runs", "show", "runs/r").stdout


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--to", "mlflow,mlflow"), "mlflow is named twice"), (("--to", "nothing"), "'nothing'"),
        (("--to", "mlflow", "--project", "a/b"), "a/b"), (("--to", "tensorboard", "--project", "mine"), "no effect"),
    ],
)  # fmt: skip
def test_trackers_that_make_no_sense_are_refused(words, problem):
    made_run("a")
    assert problem in refused("runs", "log", "a", *words)


@pytest.mark.parametrize(("verb", "rest"), [("show", ()), ("rename", ("b",)), ("delete", ("--yes",))])
@pytest.mark.parametrize("name", ["fish", "../elsewhere", ""])
def test_what_is_no_run_of_this_folder_is_refused_by_name(verb, rest, name, tmp_path):
    made_run("fisch")
    (tmp_path / "elsewhere").mkdir()
    told = refused("runs", verb, name, *rest)
    assert f'"{name}"' in told and "fisch" in told
    assert (tmp_path / "elsewhere").is_dir() and listed()["fisch"]["status"] == "finished"


def test_a_renamed_run_is_itself_under_its_new_name():
    before = RunSnapshot.read(str(made_run("a").folder))
    evaluation = before.evaluations["task"]
    report("a")
    assert printed("runs", "rename", "a", "b") == {"old": "a", "new": "b", "pages": ["runs/b/report.html"]}
    assert not Path("runs/a").exists() and list(listed()) == ["b"]
    after = RunSnapshot.read("b")
    assert after.experiment == before.experiment.model_copy(update={"run": "b"})
    assert after.manifest == before.manifest
    unhashed = after.evaluations["task"].model_copy(update={"sha256": None})
    assert unhashed == evaluation.model_copy(update={"model": "b", "sha256": None})
    assert json.loads(Path("runs/b/report.json").read_text())["title"] == "b"


def test_the_evaluation_of_another_model_keeps_its_name():
    run = made_run("a")
    file = run.folder / "evaluations" / "task.json"
    content = json.loads(file.read_text()) | {"model": "other"}
    file.write_text(json.dumps(content))
    printed("runs", "rename", "a", "b")
    assert json.loads(Path("runs/b/evaluations/task.json").read_text())["model"] == "other"


def test_comparison_pages_follow_a_new_name_in_the_run_itself_and_in_others():
    made_run("a")
    made_run("b")
    made_run("c")
    report(["a", "b"])
    report(["b", "c"])
    report(["a", "c"])
    assert printed("runs", "rename", "b", "z")["pages"] == ["runs/a/against-z.html", "runs/z/against-c.html"]
    pages = {str(page): json.loads(page.read_text())["title"] for page in Path("runs").glob("*/against-*.json")}
    assert {page: title.split(" \u00b7 ") for page, title in pages.items()} == {
        "runs/a/against-z.json": ["a", "z"], "runs/a/against-c.json": ["a", "c"], "runs/z/against-c.json": ["z", "c"],
    }  # fmt: skip
    assert len(list(Path("runs").glob("*/against-*.html"))) == 3


def test_a_page_that_cannot_be_made_again_is_named(capsys):
    made_run("a")
    made_run("b")
    report(["a", "b"])
    (Path("runs/a/manifest.json")).write_text("{")
    result = rankwise("runs", "rename", "b", "z")
    assert result.exit_code == 0 and 'runs/a/against-b.html still says "b"' in result.stderr


@pytest.mark.parametrize("new", ["", "-x", "a/b", "x" * 65])
def test_a_name_that_no_run_may_have_is_refused(new):
    made_run("a")
    assert "cannot be the name" in refused("runs", "rename", "--", "a", new)
    assert list(listed()) == ["a"]


def test_a_name_that_is_taken_is_refused_also_by_a_link_to_nowhere():
    made_run("a")
    made_run("b")
    Path("runs/c").symlink_to("nowhere")
    for new in ("a", "b", "c"):
        assert "already exists" in refused("runs", "rename", "a", new)
    assert set(listed()) == {"a", "b"}


@pytest.mark.parametrize("words", [("rename", "a", "b"), ("delete", "a", "--yes"), ("delete", "other", "a", "--yes")])
def test_a_run_that_is_being_written_stays(words):
    made_run("a", status="running")
    made_run("other")
    with RunDirectory.named("a").locked():
        told = refused("runs", *words, code=3)
    assert f"process {os.getpid()}" in told
    assert set(listed()) == {"a", "other"}


@pytest.mark.parametrize("words", [("rename", "a", "b"), ("delete", "a", "--yes")])
def test_a_run_that_holds_the_model_of_another_stays(words):
    made_run("a")
    child = made_run("child").folder / "config.json"
    content = json.loads(child.read_text())
    content["model"]["name"] = "runs/a/model"
    child.write_text(json.dumps(content))
    assert "child" in refused("runs", *words)
    assert set(listed()) == {"a", "child"}
    assert printed("runs", "delete", "a", "child", "--yes")["deleted"] == ["a", "child"]


def test_without_a_terminal_nothing_is_deleted_unless_it_was_said():
    made_run("a")
    told = refused("runs", "delete", "a")
    assert "--yes" in told and "kB" in told
    assert list(listed()) == ["a"]


def test_on_a_terminal_the_answer_decides(monkeypatch):
    made_run("a")
    import typer.testing
    from click import testing

    for module in (typer.testing, testing):  # newer versions of typer have a click of their own
        if (stream := getattr(module, "_NamedTextIOWrapper", None)) is not None:
            monkeypatch.setattr(stream, "isatty", lambda self: True, raising=False)
    result = rankwise("runs", "delete", "a", typed="n\n")
    assert result.exit_code == 1 and list(listed()) == ["a"]
    assert rankwise("runs", "delete", "a", typed="y\n").exit_code == 0 and listed() == {}


def test_if_one_cannot_be_deleted_none_is():
    made_run("a")
    Path("runs/photos").mkdir()
    Path("runs/photos/cat.png").write_bytes(b"x")
    assert "runs/photos is not a run" in refused("runs", "delete", "a", "photos", "--yes")
    assert "no run" in refused("runs", "delete", "a", "nothing", "--yes")
    assert set(listed()) == {"a", "photos"}


def test_a_damaged_run_can_be_deleted():
    (made_run("a").folder / "manifest.json").write_text("{")
    assert printed("runs", "delete", "a", "--yes")["deleted"] == ["a"]
    assert os.listdir("runs") == []


def test_links_are_never_followed(tmp_path):
    made_run("a")
    outside = tmp_path / "outside"
    Path("runs/a").rename(outside)
    Path("runs/a").symlink_to(outside)
    for words in (("delete", "a", "--yes"), ("rename", "a", "b")):
        assert "link" in refused("runs", *words)
    assert (outside / "manifest.json").is_file() and Path("runs/a").is_symlink()
    made_run("b")
    size = listed()["b"]["bytes"]
    Path("runs/b/data").symlink_to(outside)
    assert listed()["b"]["bytes"] - size < 1000 < size
    printed("runs", "delete", "b", "--yes")
    assert (outside / "manifest.json").is_file()


@pytest.mark.parametrize("file", ["config.json", "manifest.json", "data_report.json", "metrics.jsonl"])
def test_a_pipe_in_the_place_of_a_file_is_waited_for_by_nobody(file):
    made_run("piped")
    made_run("whole")
    Path("runs/piped", file).unlink()
    os.mkfifo(Path("runs/piped", file))
    for words in (("report", "piped"), ("generate", "piped", "--prompt", "hi")):
        refused(*words)
    needed = file in ("config.json", "manifest.json")  # a comparison reads neither rows nor steps
    assert rankwise("compare", "piped", "whole").exit_code == (2 if needed else 0)
    assert listed()["whole"]["status"] == "finished"
    assert rankwise("runs", "rename", "whole", "other").exit_code == 0
    assert rankwise("runs", "delete", "other", "--yes").exit_code == 0
