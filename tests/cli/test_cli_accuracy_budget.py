"""A budget of accuracy: the result loses no more points on the named tasks than it may, or says what that costs."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kit.command import printed, rankwise
from kit.library import COMMON, Library
from rankwise.base.loading import load
from rankwise.config.models import ModelConfig
from rankwise.config.tasks import task_named
from rankwise.evaluation.likelihood import likelihoods
from rankwise.evaluation.requests import requests_of
from rankwise.runs.records import silent
from rankwise.training.extras import budgets, tuning

TASK = 'task: towns\ndata: FILE\nask: "{q}"\nscore: [accuracy]\nchat: false\n'
LOOSE = ("--rank", "4", "--held-out", "4", "--anchor", "0.001", "--set", "training.anchor.tokens=16", "--anchor-text",
         "other.txt", "--accuracy-tasks", "towns.yaml")  # fmt: skip
WORDS = ["fox", "dog", "town", "land", "river", "glass", "radio", "brown", "lazy"]


def trained(name: str, *more: str) -> dict[str, Any]:
    return printed("train", *COMMON, "--run", name, *LOOSE, *more)


def write_task(name: str, rows: list[dict[str, Any]]) -> None:
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path(f"{name}.yaml").write_text(TASK.replace("FILE", f"{name}.jsonl"))


@pytest.fixture(scope="module")
def home(library: Library, tmp_path_factory: pytest.TempPathFactory):
    """With a task that the base answers without a mistake, because its choices were made by the base, and in which
    training changes many of them, because the base hardly preferred one."""
    with contextlib.chdir(library.lay_out(tmp_path_factory.mktemp("budget") / "home")):
        draw = Random(0)
        rows = [
            {"q": f"What is {' '.join(draw.sample(WORDS, 3))}?", "choices": draw.sample(WORDS, 2), "gold": 0}
            for _ in range(600)
        ]
        write_task("towns", rows)
        leads = leads_of_first("towns.yaml")
        for row, lead in zip(rows, leads, strict=True):
            row["gold"] = 0 if lead >= 0 else 1
        nearest = sorted(range(len(rows)), key=lambda number: abs(leads[number]))
        rows = [rows[number] for number in draw.sample(nearest[10:130], 120)]  # without those that rounding decides
        write_task("towns", rows)
        write_task("odd", rows[1::2])
        Path("other.txt").write_text(" ".join(f"At {hour} the ferry leaves for harbour {hour}." for hour in range(200)))
        yield


def leads_of_first(task: str) -> list[float]:
    """By how many nats a character the base prefers the first choice of each row."""
    model = load(ModelConfig(name="tiny-llama", dtype="float32"), silent)
    requests = requests_of(task_named(task), model).requests
    documents = [document for request in requests for document in request.documents]
    found = iter(likelihoods(model.module, documents, silent, "", [""] * len(documents)))
    pairs = [[next(found).nats / size for size in request.sizes] for request in requests]
    return [second - first for first, second in pairs]


@pytest.mark.usefixtures("home")
def test_the_result_keeps_its_budget_and_is_what_was_measured() -> None:
    told = trained("tight", "--forget-at-most", "20%")
    budget = told["accuracy_budget"]
    assert budget["is_kept"] and budget["points"] == 20.0 and told["budget"] is None
    assert budget["strength"] in budgets.STRENGTHS[:-1], "training must cost more than the budget"
    assert budget["lost"] <= 20.0 < budget["lost_at_full_strength"]
    (task,) = budget["tasks"]
    assert (task["task"], task["rows"], task["base"]) == ("towns", 60, 1.0)
    assert task["low"] <= task["difference"] == pytest.approx(task["result"] - task["base"]) and task["high"] < 0.2
    assert told["validation_loss_after"] != budget["validation_loss_at_full_strength"]
    evaluated = rankwise("evaluate", "tight", "--task", "odd.yaml", "--no-forgetting", "--json")
    metrics = json.loads(evaluated.stdout)["metrics"]["accuracy"]
    assert metrics["value"] == pytest.approx(task["result"]), "what was written is what was measured"
    assert "percentage points" in Path("runs/tight/report.html").read_text()
    assert "accuracy on towns" in Path("runs/tight/adapter/README.md").read_text()


@pytest.mark.usefixtures("home")
def test_a_loose_budget_changes_nothing() -> None:
    budget = trained("loose", "--forget-at-most", "100%")["accuracy_budget"]
    assert budget["is_kept"] and budget["strength"] == 1.0 and budget["lost"] == budget["lost_at_full_strength"]
    plain = rankwise("train", *COMMON, "--run", "plain", *LOOSE[:-2])
    assert plain.exit_code == 0, plain.output
    files = [Path("runs", name, "adapter", "adapter_model.safetensors").read_bytes() for name in ("loose", "plain")]
    assert files[0] == files[1]


@pytest.mark.usefixtures("home")
def test_a_budget_that_no_strength_keeps_is_said_with_its_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "STRENGTHS", (0.95, 1.0))
    told = trained("missed", "--forget-at-most", "0.5%")
    budget = told["accuracy_budget"]
    assert not budget["is_kept"] and budget["strength"] == 1.0 and budget["lost"] > 0.5
    (warning,) = [text for text in told["warnings"] if "no strength" in text]
    assert "at 0.95" in warning and "at 1." in warning and "written at full strength" in warning


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--forget-at-most", "5%", "--accuracy-tasks", ""), "accuracy"),
        (("--forget-at-most", "5%"), "name them"),
        (("--forget-at-most", "0.1", "--accuracy-tasks", "towns.yaml"), "no effect without a budget of accuracy"),
        (("--set", "training.anchor.task_rows=100"), "task_rows has no effect without a budget of accuracy"),
        (("--forget-at-most", "120%", "--accuracy-tasks", "towns.yaml"), "percentage points"),
        (("--forget-at-most", "much"), "nats per token"),
        (("--forget-at-most", "11"), "at most 10"),
        (("--forget-at-most", "5%", "--accuracy-tasks", "arc_esy"), "arc_easy"),
        (("--forget-at-most", "5%", "--accuracy-tasks", "rows.jsonl"), "choice of answers"),
        (("--forget-at-most", "5%", "--accuracy-tasks", "own.yaml"), "is trained on"),
    ],
)
def test_a_budget_that_means_nothing_is_refused_by_name(options: tuple[str, ...], expected: str) -> None:
    Path("own.yaml").write_text(
        'task: own\ndata: rows.jsonl\nask: "{prompt}"\nanswer: "{completion}"\n'
        'choices: ["It is town 1.", "It is town 2."]\n'
        "score: [accuracy]\n"
    )
    result = rankwise("train", *COMMON, "--run", "refused", "--anchor-text", "other.txt", *options)
    assert result.exit_code == 2 and expected in " ".join(result.output.split()), result.output
    assert not Path("runs/refused/manifest.json").exists()


@pytest.mark.usefixtures("home")
def test_a_task_is_refused_before_learning_rates_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "tune", lambda *_: pytest.fail("trials began"))
    tasks = ("--forget-at-most", "5%", "--accuracy-tasks", "rows.jsonl", "--anchor-text", "other.txt")
    rate = COMMON.index("--learning-rate")
    result = rankwise("train", *COMMON[:rate], *COMMON[rate + 2 :], "--run", "refused", *tasks, "--tune")
    assert result.exit_code == 2 and "choice of answers" in result.output, result.output
