"""Balanced sampling shows every class equally often, every row of a class in turn, and depends on seed and position."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.rows.encoded.batches import Batches
from rankwise.rows.encoded.row_order import BalancedOrder, repeats_of
from rankwise.rows.text.tokenize import Tokens

TARGETS = st.lists(st.integers(0, 5), min_size=1, max_size=40).map(lambda values: np.array(values, float))


@settings(max_examples=draws(80), deadline=None)
@given(targets=TARGETS, seed=st.integers(0, 3), positions=st.integers(1, 200))
def test_classes_and_the_rows_of_a_class_are_shown_equally_often(targets, seed, positions):
    order = BalancedOrder(targets, seed)
    rows = [order(position) for position in range(positions)]
    classes = np.unique(targets)
    shown = Counter(targets[rows].tolist())
    counts = [shown[number] for number in classes]
    assert max(counts) - min(counts) <= 1
    often = Counter(rows)
    for number in classes:
        of_class = [often[row] for row in np.flatnonzero(targets == number).tolist()]
        assert max(of_class) - min(of_class) <= 1
    for block in range(positions // len(classes)):
        assert len(set(targets[rows[block * len(classes) : (block + 1) * len(classes)]])) == len(classes)


@settings(max_examples=draws(40), deadline=None)
@given(targets=TARGETS, seed=st.integers(0, 3), positions=st.lists(st.integers(0, 10**9), max_size=20))
def test_a_position_shows_its_row_whatever_was_asked_before(targets, seed, positions):
    order = BalancedOrder(targets, seed)
    assert [order(position) for position in positions] == [BalancedOrder(targets, seed)(one) for one in positions]


def test_passes_and_seeds_have_orders_of_their_own():
    targets = np.arange(60) % 3
    first, second, other = ([BalancedOrder(targets, seed)(at) for at in range(begin, begin + 60)]
                            for seed, begin in ((0, 0), (0, 60), (1, 0)))  # fmt: skip
    assert sorted(first) == sorted(second) == list(range(60)), "with equal classes each pass shows each row once"
    assert first != second and first != other
    cycles = [[row for row in shown if targets[row] == 0] for shown in (first, second)]
    assert cycles[0] != cycles[1], "each time all rows of a class were shown, they come in another order"
    blocks = {tuple(targets[first[at : at + 3]]) for at in range(0, 60, 3)}
    assert len(blocks) > 3, "the classes of a block come in any order"


def test_the_repeats_of_a_class_are_how_often_a_pass_shows_its_rows():
    targets = np.array([0] * 2 + [2] * 28, float)
    repeats = repeats_of(targets, ("rare", "absent", "common"))
    assert repeats == {"rare": 7.5, "common": pytest.approx(15 / 28)}
    order = BalancedOrder(targets, 0)
    shown = Counter(order(position) for position in range(4 * 30))
    assert [shown[row] / 4 for row in range(2)] == [repeats["rare"]] * 2


def test_the_rows_of_a_step_are_those_of_its_positions():
    rows = [Tokens((number, 1), (False, True), target=float(number < 3)) for number in range(20)]
    order = BalancedOrder(np.array([row.target for row in rows]), 5)
    batches = Batches(rows, 8, 1000, 5, order=order)
    for step in (3, 0, 11):
        shown = [int(row.ids[0]) for row in batches.rows_of(step)]
        assert shown == [order(position) for position in range(8 * step, 8 * step + 8)]
        assert sum(number < 3 for number in shown) == 4
