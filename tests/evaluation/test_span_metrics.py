"""Figures of spans and of labels: by their definition, whatever the order, and without what cannot be divided."""

from __future__ import annotations

import numpy as np
import pytest

from rankwise.evaluation.class_metrics import ScoredLabels, ScoredTags, best_constant, figures_of
from rankwise.evaluation.metrics import METRICS
from rankwise.runs.row_facts import TargetFacts

TAGS = TargetFacts(classes=("O", "B-a", "I-a", "B-b", "I-b"), counts=(1,) * 5, form="tags")


def scored(predicted: list[list[int]], actual: list[list[int]]) -> ScoredTags:
    return ScoredTags(TAGS, [np.eye(5)[row] for row in predicted], [np.asarray(row) for row in actual])


def test_a_span_counts_only_where_both_ends_and_the_type_are_right():
    true = [[1, 2, 0, 3], [1, 0, 0, 0]]
    one = scored([[1, 2, 0, 1], [1, 2, 0, 0]], true)  # the type is wrong, then the end
    assert one.rows["span_f1"] == [[1.0, 2.0, 2.0], [0.0, 1.0, 1.0]]
    values = {name: METRICS[name].value(rows) for name, rows in one.rows.items()}
    assert values["span_precision"] == values["span_recall"] == values["span_f1"] == pytest.approx(1 / 3)
    assert values["token_accuracy"] == pytest.approx(6 / 8)


def test_the_tag_that_begins_a_second_span_matters():
    assert scored([[1, 2]], [[1, 1]]).rows["span_f1"] == [[0.0, 1.0, 2.0]]
    assert scored([[2, 2]], [[1, 2]]).rows["span_f1"] == [[1.0, 1.0, 1.0]]  # I- after nothing begins a span


def test_types_that_never_occur_have_no_figures_and_break_none():
    names, table = scored([[0, 0, 0], [3, 0, 0]], [[1, 2, 0], [3, 4, 0]]).types
    figures = {one.name: one for one in figures_of(names, table)}
    assert (figures["a"].precision, figures["a"].rows, figures["a"].predicted) == (None, 1, 0)
    assert figures["a"].recall is not None and figures["a"].recall.value == 0.0
    assert figures["b"].f1 is not None and figures["b"].f1.value == 0.0
    nothing = scored([[0]], [[0]])
    assert figures_of(*nothing.types) == [] and METRICS["span_f1"].value(nothing.rows["span_f1"]) == 0.0


def test_figures_of_labels_are_their_definition():
    actual = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]], bool)
    outputs = np.array([[0.9, 0.6, 0.4], [0.1, 0.2, 0.5], [0.7, 0.8, 0.1]])
    rows = ScoredLabels(("a", "b", "c"), outputs, actual).rows
    values = {name: METRICS[name].value(stored) for name, stored in rows.items()}
    assert values["micro_f1"] == pytest.approx(2 * 3 / (4 + 4))
    assert values["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert values["exact_match"] == pytest.approx(2 / 3)  # a probability of one half is no prediction


def test_no_constant_answer_has_a_higher_micro_f1_than_the_best_one():
    drawn = np.random.default_rng(0)
    for _ in range(20):
        actual = drawn.random((9, 4)) < drawn.random(4)
        actual[0, 0] = True
        answers = np.array([[bool(code >> at & 1) for at in range(4)] for code in range(1, 16)])
        scores = [2 * (answer & actual).sum() / (answer.sum() * len(actual) + actual.sum()) for answer in answers]
        labels, score = best_constant(actual)
        assert score == pytest.approx(max(scores))
        assert score == pytest.approx(scores[answers.tolist().index(labels.tolist())])
