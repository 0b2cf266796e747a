"""`rankwise report` and `rankwise compare`: what they print, without torch, and the page that a training leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kit.command import done, printed, rankwise
from kit.light import outcomes
from kit.report_runs import made_run
from rankwise.reporting import training as reports


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_report_prints_its_verdict_and_where_the_page_is():
    made_run()
    result = rankwise("report", "r")
    assert result.exit_code == 0 and result.stderr == ""
    verdict, page = result.stdout.splitlines()
    assert verdict.startswith("Better than the base on task") and page == str(Path("runs/r/report.html"))
    told = printed("report", "r", "--out", "x.html")
    assert told == {"page": "x.html", "data": "x.json", "verdict": verdict}


def test_compare_prints_a_table_and_one_object():
    made_run("a", better=0.2)
    made_run("b", method="lora")
    text = rankwise("compare", "a", "b").stdout
    assert text.startswith("b is better than a on task") and re.search(r"adapter\.method +adalora +lora", text)
    result = rankwise("compare", "a", "b", "--json")
    assert result.stdout.count("\n") == 1
    (found,) = json.loads(result.stdout)["comparisons"]
    exact = found["tasks"][0]["differences"]["exact"]
    assert exact["a"] < exact["b"] and exact["low"] <= exact["difference"] <= exact["high"]
    assert set(exact) == {"a", "b", "difference", "low", "high", "p", "n", "verdict"}


def test_what_would_steer_a_terminal_is_shown():
    made_run("a", said=lambda where: f"\x1b[31m{where}", better=0.2)
    made_run("b")
    for words in (("report", "a"), ("compare", "a", "b")):
        assert "\x1b" not in rankwise(*words).stdout


@pytest.mark.parametrize("words", [("report", "none"), ("compare", "none", "none"), ("compare", "a"), ("report",)])
def test_mistakes_are_one_line_and_exit_with_two(words):
    made_run("a")
    result = rankwise(*words)
    assert result.exit_code == 2 and "Traceback" not in result.output


def test_neither_loads_torch(tmp_path):
    made_run("a")
    for outcome in outcomes([("report", "a"), ("compare", "a", "a")], tmp_path):
        assert outcome.code == 0 and not outcome.loaded & {"torch", "transformers"}


@pytest.fixture
def rows(tmp_path, tiny_folder):
    pairs = [{"prompt": f"What is land {n}?", "completion": f"It is town {n}."} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return ("--model", tiny_folder, "--data", "rows.jsonl", "--batch-size", 2, "--run", "r")


@pytest.mark.parametrize(
    "more", [("--steps", 1), ("--steps", 6, "--held-out", 2, "--method", "adalora", "--budget", 3)]
)
def test_a_training_ends_with_its_report(rows, more):
    result = done("train", *rows, *more)
    assert f"report {Path('runs/r/report.html')}" in " ".join(result.stdout.split())
    first = Path("runs/r/report.html").read_bytes(), Path("runs/r/report.json").read_bytes()
    assert rankwise("report", "r").exit_code == 0
    assert (Path("runs/r/report.html").read_bytes(), Path("runs/r/report.json").read_bytes()) == first
    assert json.loads(first[1])["environment"]["manifest"]["status"] == "finished"


def test_a_report_that_cannot_be_written_does_not_fail_the_run(rows, monkeypatch):
    def fails(run):
        raise OSError("no room for a page")

    monkeypatch.setattr(reports, "training_report", fails)
    result = done("train", *rows, "--steps", 2, "--json")
    assert "the report was not written (no room for a page); try rankwise report r" in result.stderr
    assert json.loads(result.stdout)["steps"] == 2
    assert json.loads(Path("runs/r/manifest.json").read_text())["status"] == "finished"
    assert not Path("runs/r/report.html").exists()


def test_a_name_that_no_disk_takes_is_a_mistake_and_a_long_one_of_ours_fits():
    made_run("a")
    refused = rankwise("report", "a", "--out", "n" * 300 + ".html")
    assert refused.exit_code == 2 and "cannot be written" in refused.stderr
    Path("copies").mkdir()
    name = "山" * 80  # 240 bytes
    Path("runs/a").rename(Path("copies") / name)
    made_run("b")
    assert Path(printed("report", "b", f"copies/{name}")["page"]).exists()
