"""Which validation was best is a pure function of the records: no order of calls, no memory, no pause can change it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.evaluation.metrics import METRICS
from rankwise.runs.records import LossRecord, ScoreRecord
from rankwise.training.validation import EarlyStopping

VALUES = st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, math.nan, math.inf]), max_size=12)


def records(values, by="loss"):
    """One evaluation after every step from 0 on; each has a loss and a score, and only one of them counts."""
    found = []
    for step, value in enumerate(values):
        found += [
            ScoreRecord(step, "exact", value if by == "exact" else 7.0, 3),
            ScoreRecord(step, "bleu", -value, 3),
            LossRecord(step, value if by == "loss" else -9.0, 5, 2),
        ]
    return found


def stopping(by, first=1):
    return EarlyStopping(by, METRICS[by].more_is_better, first)


@given(VALUES, st.sampled_from(["loss", "exact"]), st.integers(0, 5))
def test_the_best_is_the_first_of_the_best_finite_values_of_its_candidates(values, by, first):
    found = stopping(by, first).best(records(values, by))
    candidates = [(step, value) for step, value in enumerate(values) if step >= first and math.isfinite(value)]
    if not candidates:
        assert found is None
        return
    wanted = (min if by == "loss" else max)(value for _, value in candidates)
    assert (found.step, found.value) == next(pair for pair in candidates if pair[1] == wanted)


@given(VALUES, st.sampled_from(["loss", "exact"]), st.integers(0, 5))
def test_an_evaluation_is_one_more_without_improvement_unless_it_is_the_new_best(values, by, first):
    """As somebody would count who hears one evaluation after another."""
    best, waited = None, 0
    for step in range(len(values)):
        here = stopping(by, first).best(records(values[: step + 1], by))
        if step >= first:
            waited = 0 if here is not None and here != best else waited + 1
        best = here
        assert stopping(by, first).without_improvement(records(values[: step + 1], by)) == waited


@pytest.mark.parametrize("by", [name for name, metric in METRICS.items() if metric.text])
def test_more_of_a_score_is_better_but_of_mistakes(by):
    scores = [ScoreRecord(step, by, value, 4) for step, value in ((1, 0.1), (2, 0.4), (3, 0.2))]
    assert stopping(by).best(scores).step == (1 if by in ("tool_missing", "tool_needless") else 2)


@given(VALUES, st.integers(1, 4))
def test_a_run_is_over_when_as_many_validations_as_its_patience_brought_nothing(values, patience):
    known = records(values)
    one = EarlyStopping("loss", more_is_better=False, patience=patience)
    assert one.is_over(known) == (one.without_improvement(known) >= patience)
    assert not EarlyStopping("loss", more_is_better=False).is_over(known)
