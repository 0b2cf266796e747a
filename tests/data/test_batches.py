"""Every learned token is asked for once, one place earlier; which rows make a step depends on seed and step."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.data.batches import IGNORED, Batches, collate, portion
from rankwise.data.example import Example, Message
from rankwise.data.templates import render
from rankwise.data.tokens import Tokens, tokenise
from rankwise.models.tokenizer import HubTokenizer

PAIRS = st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=2, max_size=40)
ROW = PAIRS.map(lambda pairs: Tokens(tuple(i for i, _ in pairs), tuple(learned for _, learned in pairs)))
ROWS = st.lists(ROW, min_size=1, max_size=12)


def numbered(count, length=4):
    """Rows told apart by their first token."""
    return [Tokens((number, *range(1, length)), (False,) + (True,) * (length - 1)) for number in range(count)]


def first_tokens(portions):
    return [int(row[0]) for batch in portions for row in batch.inputs]


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_every_learned_token_but_the_first_is_a_target_at_the_place_before_it(rows):
    batch = collate(rows)
    assert batch.inputs.shape == batch.targets.shape
    for row, inputs, targets in zip(rows, batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        asked = len(row.ids) - 1
        assert inputs[:asked] == list(row.ids[:-1])
        wanted = [token if learned else IGNORED for token, learned in zip(row.ids[1:], row.learned[1:], strict=True)]
        assert targets == wanted + [IGNORED] * (len(targets) - asked), "padding is never a target"
    assert batch.tokens == sum(len(row.ids) - 1 for row in rows)
    assert int(batch.supervised.sum()) == sum(row.supervised for row in rows)


def test_an_end_token_that_is_also_the_pad_token_stays_a_target(hub_tokenizer):
    # a mask made from `ids == pad_id` would hide it, and the model would never learn to stop
    end = hub_tokenizer.eos_token_id
    assert hub_tokenizer.pad_token_id == end
    tokenizer = HubTokenizer(hub_tokenizer, [end])
    texts = [("a", "b"), ("a much longer question", "and a longer answer")]
    examples = [Example((Message("user", asked), Message("assistant", said)), "x:1") for asked, said in texts]
    batch = collate([tokenise(render(example, tokenizer), tokenizer) for example in examples])
    for targets in batch.targets:
        learned = targets[targets != IGNORED].tolist()
        assert learned[-1] == end
        assert learned.count(end) == 1


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, limit=st.integers(1, 200))
def test_portions_hold_every_row_once(rows, limit):
    def seen(batch):
        return [(tuple(i), tuple(t)) for i, t in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True)]

    def cut(pairs, width=48):
        """Padded alike, so that rows from batches of different widths can be compared."""
        return Counter((i + (0,) * (width - len(i)), t + (IGNORED,) * (width - len(t))) for i, t in pairs)

    together = Counter()
    for batch in portion(rows, limit):
        together += cut(seen(batch))
    assert together == cut(seen(collate(rows)))


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, limit=st.integers(1, 200))
def test_no_portion_of_several_rows_computes_more_than_the_limit(rows, limit):
    # rows are padded to a multiple of eight, which the sum of lengths does not see: 10 rows of 10 were 160, not 100
    for batch in portion(rows, limit):
        assert len(batch.inputs) == 1 or batch.inputs.numel() <= limit


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, limit=st.integers(1, 200))
def test_portions_come_longest_first(rows, limit):
    widths = [batch.inputs.shape[1] for batch in portion(rows, limit)]
    assert widths == sorted(widths, reverse=True)


def test_rows_of_one_length_share_a_portion_as_far_as_the_limit_lets_them():
    assert len(portion(numbered(10, length=9), 64)) == 2
    assert [len(batch.inputs) for batch in portion(numbered(10, length=9), 1)] == [1] * 10
    assert [len(batch.inputs) for batch in portion(numbered(10, length=9), 1000)] == [10]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 12), batch_size=st.integers(1, 15), seed=st.integers(0, 2**63))
def test_every_pass_visits_each_row_once(count, batch_size, seed):
    batches = Batches(numbered(count), batch_size, 64, seed)
    steps = [first_tokens(batches.at(step)) for step in range(3 * count)]
    assert all(len(rows) == batch_size for rows in steps)
    # 3 * count steps of batch_size rows are exactly 3 * batch_size passes
    assert Counter(row for rows in steps for row in rows) == dict.fromkeys(range(count), 3 * batch_size)
    for passes in range(1, 4):
        seen = Counter(row for rows in steps[: -(-passes * count // batch_size)] for row in rows)
        assert all(times >= passes for times in seen.values())
        assert len(seen) == count


def test_one_row_a_step_shows_that_passes_are_permutations_in_different_orders():
    batches = Batches(numbered(20), 1, 64, 0)
    order = [first_tokens(batches.at(step))[0] for step in range(60)]
    passes = [order[start : start + 20] for start in (0, 20, 40)]
    assert all(sorted(rows) == list(range(20)) for rows in passes)
    assert len({tuple(rows) for rows in passes}) == 3
    assert list(range(20)) not in passes, "the file's own order would be no shuffle"


def test_another_seed_is_another_order():
    orders = {
        tuple(first_tokens(Batches(numbered(20), 1, 64, seed).at(step))[0] for step in range(20)) for seed in range(5)
    }
    assert len(orders) == 5


@settings(max_examples=20, deadline=None)
@given(asked=st.lists(st.integers(0, 30), min_size=1, max_size=12))
def test_a_step_is_the_same_whenever_and_in_whichever_order_it_is_asked_for(asked):
    rows = numbered(7)
    straight = Batches(rows, 3, 16, 5)
    known = [straight.at(step) for step in range(31)]
    resumed = Batches(rows, 3, 16, 5)
    for step in asked:
        for ours, theirs in zip(resumed.at(step), known[step], strict=True):
            assert torch.equal(ours.inputs, theirs.inputs)
            assert torch.equal(ours.targets, theirs.targets)
            assert ours.tokens == theirs.tokens


def test_the_limit_on_tokens_does_not_change_which_rows_make_a_step():
    for step in range(10):
        wide, narrow = (Batches(numbered(7), 3, limit, 5).at(step) for limit in (1, 1000))
        assert Counter(first_tokens(wide)) == Counter(first_tokens(narrow))


@pytest.mark.parametrize(("step", "epoch"), [(0, 0), (1, 0.5), (2, 1), (5, 2.5)])
def test_the_epoch_is_passes_done_when_the_step_begins(step, epoch):
    assert Batches(numbered(8), 4, 64, 0).epoch(step) == epoch
