"""Each metric against the library or formula that is its own, on sums of items in any order."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.classifiers import class_row
from rankwise.config.tasks import TaskConfig
from rankwise.errors import EvaluationError
from rankwise.evaluation.intervals import with_interval
from rankwise.evaluation.metrics import (
    METRICS,
    exact,
    macro_f1,
    matching,
    matthews,
    number_row,
    pearson,
    rating_rows,
    rows_of,
)
from rankwise.evaluation.scoring import json_fields, number

ANSWERS = ["the cat sat on the mat", "a dog barked at night", "rain falls", "", "the end of the road"]
WANTED = ["a cat sat on the mat", "the dog barked all night", "rain falls", "something", "the end of a road"]
ALONE = [(one,) for one in WANTED]


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_corpus_metrics_are_sacrebleus(name):
    from sacrebleu import metrics

    theirs = {"bleu": metrics.BLEU(), "chrf": metrics.CHRF()}[name].corpus_score(ANSWERS, [WANTED]).score
    rows = rows_of(name, ANSWERS, ALONE, None)
    assert with_interval(METRICS[name], rows).value == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_several_references_are_counted_as_sacrebleu_counts_them(name):
    """Also where items have different numbers of them."""
    from sacrebleu import metrics

    references = [(one, f"{ANSWERS[at]} today", "something else")[: 1 + (at + 1) % 3] for at, one in enumerate(WANTED)]
    streams = [[own[at] if at < len(own) else None for own in references] for at in range(3)]
    theirs = {"bleu": metrics.BLEU(), "chrf": metrics.CHRF()}[name].corpus_score(ANSWERS, streams).score
    found = with_interval(METRICS[name], rows_of(name, ANSWERS, references, None)).value
    assert found == pytest.approx(theirs, rel=1e-12)
    assert found != with_interval(METRICS[name], rows_of(name, ANSWERS, ALONE, None)).value


@pytest.mark.parametrize(("name", "kind"), [("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")])
def test_rouge_is_the_mean_of_rouge_scores_own(name, kind):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=True)
    theirs = np.mean([scorer.score(one, answer)[kind].fmeasure for answer, one in zip(ANSWERS, WANTED, strict=True)])
    assert with_interval(METRICS[name], rows_of(name, ANSWERS, ALONE, None)).value == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("name", "answer", "references", "earned"),
    [
        ("exact", "Rome", ["rome", "Rome", "Roma"], 1.0),
        ("exact", "Rom", ["rome", "Rome", "Roma"], 0.0),
        ("number", "so it is 7", ["8", "7"], 1.0),
        ("json", '{"a": 1}', ['{"a": 2}', '{"a": 1, "b": 1}'], 0.5),
        ("rouge_1", "the cat", ["a dog", "cat the"], 1.0),
        ("rouge_2", "the cat sat", ["a dog", "the cat"], 2 / 3),
        ("rouge_l", "the cat", ["cat the", "a dog"], 0.5),
    ],
)
def test_of_several_references_the_best_counts(name, answer, references, earned):
    for order in (references, references[::-1]):
        assert rows_of(name, [answer], [order], None) == [[pytest.approx(earned), 1.0]]
    task = TaskConfig(task="t", data="d", score="regex", pattern=r"is (\w)")
    assert rows_of("regex", ["is B"], [["is A", "is B"]], task) == [[1.0, 1.0]]


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.text is not None])
def test_the_order_of_items_changes_nothing(name):
    answers, wanted = (
        (list(ANSWERS), list(WANTED)) if "json" not in name else (['{"a": 1}', "no", "{}"], ['{"a": 1}'] * 3)
    )
    rows = rows_of(name, answers, [(one,) for one in wanted], None)
    before = with_interval(METRICS[name], rows)
    random.Random(0).shuffle(rows)
    assert with_interval(METRICS[name], rows) == before


def test_classes_by_the_textbook():
    """A confusion of three classes, counted by hand."""
    pairs = [(0, 0), (0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (0, 2)]
    sums = np.array([class_row(predicted, actual, 3) for predicted, actual in pairs]).sum(0)
    each = [2 * 2 / (3 + 3), 2 * 1 / (2 + 2), 2 * 1 / (2 + 2)]
    assert macro_f1(sums) == pytest.approx(np.mean(each))
    one_hot = np.eye(3)
    predicted, actual = (one_hot[[pair[side] for pair in pairs]] for side in (0, 1))
    spread = [np.mean((side - side.mean(0)) * (other - other.mean(0))) for side, other in
              ((predicted, actual), (predicted, predicted), (actual, actual))]  # fmt: skip
    assert matthews(sums) == pytest.approx(spread[0] / np.sqrt(spread[1] * spread[2]))


def test_a_constant_prediction_correlates_with_nothing():
    assert matthews(np.array([class_row(1, actual, 2) for actual in (0, 1, 1)]).sum(0)) == 0
    assert pearson(np.array([number_row(2.0, actual) for actual in (0.1, 0.7, 0.9)]).sum(0)) == 0


def test_what_is_no_number_correlates_with_nothing_that_is_one():
    assert np.isnan(pearson(np.array([number_row(math.nan, 1.0), number_row(2.0, 3.0)]).sum(0)))


def test_a_rating_is_the_first_number_within_what_is_wanted():
    answers = ["4 of 5", "about 2.5, or 3", "alike", "9" * 400, "1,000,000", "-7"]
    wanted = ["0", "1", "2", "3", "4", "5.0"]
    assert [row[1] for row in rating_rows(answers, wanted)] == [4, 2.5, 0, 0, 5, 0]
    assert [row[2] for row in rating_rows(answers, wanted)] == [0, 1, 2, 3, 4, 5]


def test_where_a_scale_of_ratings_begins_changes_no_correlation():
    """An answer in words was 0, brought into the range: the lowest end of 1 to 5, and the middle of -2 to 2."""
    found = []
    for begin in (1, 0, -2, -5):
        wanted = [str(begin + step) for step in range(5)]
        answers = ["alike", str(begin + 3), str(begin - 9), "none", str(begin + 4)]
        rows = rating_rows(answers, wanted)
        assert [row[1] - begin for row in rows] == [0, 3, 0, 0, 4]
        found.append(float(pearson(np.array(rows).sum(0))))
    assert found == pytest.approx([found[0]] * 4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=3, max_size=20))
def test_pearson_is_numpys(pairs):
    x, y = np.array(pairs).T
    if x.std() > 1e-2 and y.std() > 1e-2:
        found = pearson(np.array([number_row(*pair) for pair in pairs]).sum(0))
        assert found == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("answer", "wanted", "right"),
    [
        ("so 3 + 4 = 7 apples\n#### 7", "#### 7", 1.0),
        ("It is 1,200.", "#### 1200", 1.0),
        ("It is 7.0", "7", 1.0),
        ("-3", "3", 0.0),
        ("none", "3", 0.0),
        ("#### 5 apples, 6 pears", "5", 1.0),
        ("$.50", "0.5", 1.0),
    ],
)
def test_numbers(answer, wanted, right):
    assert number(answer, wanted) == [right, 1.0]


@pytest.mark.parametrize(
    ("answer", "wanted", "row"),
    [
        ('{"a": 1, "b": {"c": [1, 2]}}', '{"b": {"c": [1, 2]}, "a": 1.0}', [1, 1]),
        ('{"a": true}', '{"a": 1}', [0, 1]),
        ('{"a": 1, "z": 2}', '{"a": 1}', [0.5, 1]),
        ('```json\n{"a": 1}\n```', '{"a": 1}', [1, 1]),
        ('{"a": {"0": 1}}', '{"a": [1]}', [0, 1]),  # these were the same: paths were texts with / between
        ('{"a/b": 1}', '{"a": {"b": 1}}', [0, 1]),
        ('{"": 1}', "1", [0, 1]),
        ("a: 1", '{"a": 1, "b": 2}', [0, 1]),
        ("{}", "{}", [1, 1]),
        (str(list(range(300))), '{"a": 1, "b": 2}', [0, 1]),  # an item has one vote, whatever was made up
        ('{"a": 1, "a": 1}', '{"a": 1}', [0, 1]),
        ("[" * 100_000, '{"a": 1}', [0, 1]),
    ],
)
def test_json_fields(answer, wanted, row):
    assert json_fields(answer, wanted) == row


def test_exact_forgives_white_space_alone():
    assert exact(" Yes\n", "Yes") == [1.0, 1.0]
    assert exact("yes", "Yes") == [0.0, 1.0]


def test_a_pattern_compares_its_groups_and_ends():
    row = matching(r"answer: (\w+)")
    assert row("the answer: B", "answer: B") == [1.0, 1.0]
    assert row("the answer: C", "answer: B") == [0.0, 1.0]
    assert matching(r"^\d+$")("12", "anything") == [1.0, 1.0]
    with pytest.raises(EvaluationError, match="simpler"):
        matching(r"(?:x|xx)+y$")("x" * 60, "x")
