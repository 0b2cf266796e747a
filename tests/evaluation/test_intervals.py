"""Intervals that hold what they promise, and verdicts that chance does not make."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.evaluation.intervals import RESAMPLES, difference, with_interval
from rankwise.evaluation.metrics import METRICS


def losses(generator, n, mean=1.0):
    tokens = generator.integers(5, 50, n).astype(float)
    return np.stack((tokens * generator.gamma(4, mean / 4, n), tokens), 1).tolist()


@settings(max_examples=draws(30), deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_a_model_compared_with_itself_does_not_differ(seed, n):
    rows = losses(np.random.default_rng(seed), n)
    found = difference(METRICS["loss"], rows, rows)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.verdict == "cannot tell"


@pytest.mark.parametrize("n", [1, 3, 40, 500])
def test_hits_on_the_same_items_are_no_certainty(n):
    """Unlike losses, which are the same to the last bit, equal hits of n items say nothing sure of all others."""
    rows = [[float(item % 3 == 0), 1.0] for item in range(n)]
    found = difference(METRICS["exact"], rows, rows)
    assert (found.difference, found.p, found.verdict) == (0, 1, "cannot tell")
    assert found.low < 0 < found.high and found.low == -found.high
    assert found.high < 3.2 / n, "about three unseen of each kind, as for no hit at all"


def test_intervals_of_paired_hits_hold_the_truth_about_as_often_as_they_say():
    """b hits where a does in 85 of 100 items, and gains 0.05 on the others."""
    generator, held = np.random.default_rng(4), []
    for _ in range(300):
        kind = generator.choice(4, 60, p=[0.4, 0.45, 0.05, 0.1])
        a, b = ([[float(one), 1.0] for one in np.isin(kind, hit)] for hit in ([1, 2], [1, 3]))
        found = difference(METRICS["exact"], a, b)
        held.append(found.low <= 0.05 <= found.high)
    assert 276 <= sum(held) < 300


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """200 experiments of 80 items each: of intervals of 95 %, fewer than 180 would be a bug and 200 too wide."""
    generator = np.random.default_rng(0)
    held = [
        one.low <= 1.0 <= one.high
        for one in (with_interval(METRICS["loss"], losses(generator, 80)) for _ in range(200))
    ]
    assert 178 <= sum(held) < 200


def test_two_equal_models_are_seldom_told_apart():
    generator = np.random.default_rng(1)
    told = [difference(METRICS["loss"], losses(generator, 40), losses(generator, 40)).verdict for _ in range(100)]
    assert sum(verdict != "cannot tell" for verdict in told) <= 10


@pytest.mark.parametrize(("factor", "verdict"), [(0.7, "better"), (1.4, "worse"), (1.0, "cannot tell")])
def test_less_loss_is_better(factor, verdict):
    a = losses(np.random.default_rng(2), 60)
    b = [[nats * factor, tokens] for nats, tokens in a]
    found = difference(METRICS["loss"], a, b)
    assert found.verdict == verdict
    assert found.low <= found.difference <= found.high


def test_more_hits_are_better_and_three_items_are_too_few():
    missed, hit = [[0.0, 1.0]], [[1.0, 1.0]]
    assert difference(METRICS["exact"], missed * 20, hit * 20).verdict == "better"
    assert difference(METRICS["exact"], hit * 20, missed * 20).verdict == "worse"
    assert difference(METRICS["exact"], missed * 3, hit * 3).verdict == "cannot tell"


def test_no_difference_is_impossible_by_chance():
    """Of RESAMPLES swaps none makes as large a difference: the least p there is counts the observed one itself."""
    assert difference(METRICS["exact"], [[0.0, 1.0]] * 200, [[1.0, 1.0]] * 200).p == 1 / (1 + RESAMPLES)


def test_no_hit_at_all_is_no_certainty():
    none = with_interval(METRICS["accuracy"], [[0.0, 1.0]] * 50)
    assert none.value == none.low == 0
    assert none.high == pytest.approx(0.0713, abs=1e-3)  # Wilson's for 0 of 50


@settings(max_examples=draws(20), deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["loss", "exact", "bleu"]))
def test_pairs_may_come_in_any_order(random, metric):
    generator = np.random.default_rng(3)
    width = {"loss": 2, "exact": 2, "bleu": 10}[metric]
    a, b = (generator.integers(1, 9, (12, width)).astype(float).tolist() for _ in range(2))
    order = list(range(12))
    random.shuffle(order)
    mixed = difference(METRICS[metric], [a[at] for at in order], [b[at] for at in order])
    assert mixed == difference(METRICS[metric], a, b)
