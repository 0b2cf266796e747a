"""Numbers that are right and say less than they seem to are told as that, and others without a word."""

from __future__ import annotations

import pytest

from kit.classifiers import class_row
from kit.report_runs import evaluation_of, made_run, plain
from rankwise.config.tasks import BUILT_IN
from rankwise.evaluation.intervals import difference, scores
from rankwise.evaluation.metrics import METRICS
from rankwise.reporting.verdict import chance, evaluation_warnings
from rankwise.runs.evaluations import ModelScores, verdict_text
from rankwise.runs.measured import Difference


@pytest.fixture
def evaluation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return evaluation_of(made_run(), plain, 0.6, "0" * 64, "a" * 64)


def chosen(evaluation, n, right, **more):
    """One whose base chose right so often."""
    rows = [[float(item < right * n), 1.0] for item in range(n)]
    side = ModelScores(scores={"accuracy": scores("accuracy", rows)}, seconds=1.0)
    return evaluation.model_copy(update={"n": n, "base": side, "tuned": side, **more})


def test_nothing_is_said_of_answers_to_enough_items(evaluation):
    assert evaluation_warnings(evaluation, "") == []


@pytest.mark.parametrize("n", [1, 4])
def test_too_few_items_to_show_anything(evaluation, n):
    (said,) = evaluation_warnings(evaluation.model_copy(update={"n": n}), "")
    assert f"{n} item" in said and "cannot show anything" in said


def test_an_interval_without_width_is_no_certainty(evaluation):
    right = [class_row(0, 0, 2)] * 20 + [class_row(1, 1, 2)] * 20
    side = ModelScores(scores={"f1": scores("f1", right)}, seconds=1.0)
    said = [one for one in evaluation_warnings(evaluation.model_copy(update={"tuned": side}), "") if "no width" in one]
    assert len(said) == 1 and "7.5%" in said[0]


@pytest.mark.parametrize(
    ("n", "right", "said"), [(1200, 0.6, []), (200, 0.6, ["1,000"]), (1200, 0.26, ["chance"]),
                             (200, 0.27, ["1,000", "chance"])],
)  # fmt: skip
def test_choices_want_many_items_and_a_base_above_chance(evaluation, n, right, said):
    public = chosen(evaluation, n, right, task="arc_easy", settings={"ask": BUILT_IN["arc_easy"]["ask"]})
    told = evaluation_warnings(public, "")
    assert [word in one for word, one in zip(said, told, strict=True)] == [True] * len(said)


def test_few_items_are_not_remarked_after_a_clear_verdict(evaluation):
    few = chosen(evaluation, 50, 0.6)
    assert len(evaluation_warnings(few, "")) == 1 and "14 percentage points" in evaluation_warnings(few, "")[0]
    rows = [[[float(at < right), 1.0] for at in range(50)] for right in (10, 45)]
    clear = few.model_copy(update={"differences": {"accuracy": difference(METRICS["accuracy"], *rows)}})
    assert clear.differences["accuracy"].verdict == "better" and evaluation_warnings(clear, "") == []


def test_why_nothing_can_be_told_is_said_where_interval_and_test_disagree():
    apart = Difference(a=0, b=0.08, difference=0.08, low=0.006, high=0.155, p=0.0575, n=60, verdict="cannot tell")
    assert "the interval excludes 0" in verdict_text(apart) and "p = 0.058" in verdict_text(apart)
    around = apart.model_copy(update={"low": -0.01, "p": 0.03})
    assert "the interval includes 0" in verdict_text(around) and "p = 0.03" in verdict_text(around)
    for plain_one in ({"low": -0.01}, {"p": 0.01, "verdict": "better"}):
        assert apart.model_copy(update=plain_one).undecided is None


def test_a_task_that_is_only_called_like_a_public_one_has_not_its_chance(evaluation):
    """Rows of eight choices in boolq.jsonl were once held against a chance of one half."""
    mine = chosen(evaluation, 1200, 0.5, task="boolq", settings={"ask": "{question}"})
    assert chance(mine) is None and evaluation_warnings(mine, "") == []


def test_chance_is_what_is_right_for_who_always_says_the_same(evaluation):
    rows = [class_row(0, int(item < 15), 2) for item in range(20)]
    side = ModelScores(scores={"f1": scores("f1", rows)}, seconds=1.0)
    assert chance(evaluation.model_copy(update={"n": 20, "tuned": side})) == 0.75
    assert chance(evaluation.model_copy(update={"settings": {"choices": ["a", "b", "c"]}})) == pytest.approx(1 / 3)
    assert chance(evaluation) is None, "nobody knows how many choices there were"
