"""Replay shows the share that was given in every stretch of a training, and leaves the order of the own rows alone."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import floor

from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.config.forgetting import ReplayConfig
from rankwise.rows.encoded.batches import Batches
from rankwise.rows.encoded.row_order import ReplayOrder
from rankwise.rows.text.tokenize import Tokens

SHARES = st.integers(1, 99).map(lambda percent: percent / 100)
ROWS = st.integers(1, 30)


@settings(max_examples=draws(80), deadline=None)
@given(
    own=ROWS, others=ROWS, share=SHARES, seed=st.integers(0, 3), begin=st.integers(0, 300), length=st.integers(1, 64)
)
def test_every_stretch_holds_the_share_up_to_one_row(own, others, share, seed, begin, length):
    order = ReplayOrder(own, others, share, seed)
    replayed = sum(order(position) >= own for position in range(begin, begin + length))
    assert abs(replayed - Fraction(str(share)) * length) < 1
    whole = sum(order(position) >= own for position in range(length))
    assert whole == floor(Fraction(str(share)) * length)


def test_a_hundred_rows_hold_a_whole_percentage_exactly():
    """0.29 * 100 is 28.999999999999996."""
    for percent in range(1, 100):
        order = ReplayOrder(3, 3, percent / 100, 0)
        assert sum(order(position) >= 3 for position in range(100)) == percent


@settings(max_examples=draws(60), deadline=None)
@given(own=ROWS, others=ROWS, share=SHARES, seed=st.integers(0, 3))
def test_own_rows_come_as_they_would_without_replay_and_replay_rows_all_before_one_comes_again(
    own, others, share, seed
):
    rows = [Tokens((1, number), (False, True)) for number in range(own + others)]
    mixed = Batches(rows, 1, 64, seed, order=ReplayOrder(own, others, share, seed))
    plain = Batches(rows[:own], 1, 64, seed)
    shown = [mixed.rows_of(step)[0].ids[1] for step in range(300)]
    mine = [number for number in shown if number < own]
    assert mine == [plain.rows_of(step)[0].ids[1] for step in range(len(mine))]
    replayed = Counter(number for number in shown if number >= own)
    times = [replayed[number] for number in range(own, own + others)]
    assert max(times) - min(times) <= 1


@settings(max_examples=draws(30), deadline=None)
@given(own=ROWS, others=ROWS, share=SHARES, positions=st.lists(st.integers(0, 10**9), max_size=20))
def test_a_position_shows_its_row_whatever_was_asked_before(own, others, share, positions):
    order = ReplayOrder(own, others, share, 7)
    assert [order(one) for one in positions] == [ReplayOrder(own, others, share, 7)(one) for one in positions]


def test_seeds_and_turns_have_orders_of_their_own():
    def replayed(seed: int, begin: int) -> list[int]:
        order = ReplayOrder(20, 20, 0.5, seed)
        return [order(position) - 20 for position in range(begin, begin + 40) if order(position) >= 20]

    assert sorted(replayed(0, 0)) == sorted(replayed(0, 40)) == list(range(20))
    assert replayed(0, 0) != replayed(0, 40) and replayed(0, 0) != replayed(1, 0)
    order = ReplayOrder(20, 20, 0.5, 0)
    own = [order(position) for position in range(40) if order(position) < 20]
    assert own != replayed(0, 0), "own rows and replay rows have different orders"


@settings(max_examples=draws(60), deadline=None)
@given(own=st.integers(4, 5000), share=st.integers(1, 90).map(lambda percent: percent / 100))
def test_the_replay_rows_of_a_pass_are_the_share_of_all_its_rows(own, share):
    among = ReplayConfig(share=share).rows_among(own)
    assert among == 1 or abs(among - share * (own + among)) <= 0.5 + 1e-9
