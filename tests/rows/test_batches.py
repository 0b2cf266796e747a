"""Every learned token is asked for once, one place earlier; which rows make a step depends on seed and step."""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.rows.encoded.batches import IGNORED, Batch, Batches, collate, padded_length, portion
from rankwise.rows.encoded.packing import pack
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.rendering import render
from rankwise.rows.text.tokenize import Tokens, tokenise
from rankwise.rows.text.tokenizer import HubTokenizer

PAIRS = st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=2, max_size=40)
ROW = PAIRS.map(lambda pairs: Tokens(tuple(i for i, _ in pairs), tuple(learned for _, learned in pairs)))
ROWS = st.lists(ROW, min_size=1, max_size=12)


def numbered(count, length=4):
    """Rows told apart by their first token."""
    return [Tokens((number, *range(1, length)), (False,) + (True,) * (length - 1)) for number in range(count)]


def first_tokens(portions):
    return [int(row[0]) for batch in portions for row in batch.input_ids]


def same(ours, theirs):
    """Whether two lists of batches are equal bit for bit."""
    return len(ours) == len(theirs) and all(
        torch.equal(a.input_ids, b.input_ids)
        and torch.equal(a.targets, b.targets)
        and a.tokens == b.tokens
        and (a.position_ids is b.position_ids is None or torch.equal(a.position_ids, b.position_ids))
        for a, b in zip(ours, theirs, strict=True)
    )


def on_disk(rows, folder, kind):
    """The same rows as slices of read-only files, as a cache of tokens hands them out."""
    borders = np.cumsum([0, *(len(row.ids) for row in rows)])
    for name, values in (("ids", np.array([i for row in rows for i in row.ids], dtype=kind)),
                         ("learned", np.array([x for row in rows for x in row.loss_mask], dtype=bool))):  # fmt: skip
        values.tofile(folder / name)
    ids = np.memmap(folder / "ids", dtype=kind, mode="r")
    learned = np.memmap(folder / "learned", dtype=bool, mode="r")
    return [Tokens(ids[start:end], learned[start:end]) for start, end in pairwise(borders)]


@settings(max_examples=draws(60), deadline=None)
@given(rows=ROWS)
def test_every_learned_token_but_the_first_is_a_target_at_the_place_before_it(rows):
    batch = collate(rows)
    assert batch.input_ids.shape == batch.targets.shape
    for row, inputs, targets in zip(rows, batch.input_ids.tolist(), batch.targets.tolist(), strict=True):
        asked = len(row.ids) - 1
        assert inputs[:asked] == list(row.ids[:-1])
        wanted = [token if learned else IGNORED for token, learned in zip(row.ids[1:], row.loss_mask[1:], strict=True)]
        assert targets == wanted + [IGNORED] * (len(targets) - asked), "padding is never a target"
    assert batch.tokens == sum(len(row.ids) - 1 for row in rows)
    assert int(batch.loss_mask.sum()) == sum(row.loss_count for row in rows)


def test_an_end_token_that_is_also_the_pad_token_stays_a_target(hub_tokenizer):
    # a mask made from `ids == pad_id` would hide it, and the model would never learn to stop
    end = hub_tokenizer.eos_token_id
    assert hub_tokenizer.pad_token_id == end
    tokenizer = HubTokenizer(hub_tokenizer, [end])
    texts = [("a", "b"), ("a much longer question", "and a longer answer")]
    examples = [Example((Message("user", asked), Message("assistant", said)), "x:1") for asked, said in texts]
    batch = collate([tokenise(render(example, ChatTemplate.of_model(tokenizer)), tokenizer) for example in examples])
    for targets in batch.targets:
        learned = targets[targets != IGNORED].tolist()
        assert learned[-1] == end
        assert learned.count(end) == 1


@settings(max_examples=draws(60), deadline=None)
@given(rows=ROWS, limit=st.integers(1, 200))
def test_portions_hold_every_row_once(rows, limit):
    def seen(batch):
        return [(tuple(i), tuple(t)) for i, t in zip(batch.input_ids.tolist(), batch.targets.tolist(), strict=True)]

    def cut(pairs, width=48):
        """Padded alike, so that rows from batches of different widths can be compared."""
        return Counter((i + (0,) * (width - len(i)), t + (IGNORED,) * (width - len(t))) for i, t in pairs)

    together = Counter()
    for batch in portion(rows, limit):
        together += cut(seen(batch))
    assert together == cut(seen(collate(rows)))


@settings(max_examples=draws(60), deadline=None)
@given(rows=ROWS, limit=st.integers(1, 200))
def test_no_portion_of_several_rows_computes_more_than_the_limit(rows, limit):
    # rows are padded to a multiple of eight, which the sum of lengths does not see: 10 rows of 10 were 160, not 100
    for batch in portion(rows, limit):
        assert len(batch.input_ids) == 1 or batch.input_ids.numel() <= limit


@settings(max_examples=draws(60), deadline=None)
@given(rows=ROWS, limit=st.integers(1, 200))
def test_portions_come_longest_first(rows, limit):
    widths = [batch.input_ids.shape[1] for batch in portion(rows, limit)]
    assert widths == sorted(widths, reverse=True)


def test_rows_of_one_length_share_a_portion_as_far_as_the_limit_lets_them():
    assert len(portion(numbered(10, length=9), 64)) == 2
    assert [len(batch.input_ids) for batch in portion(numbered(10, length=9), 1)] == [1] * 10
    assert [len(batch.input_ids) for batch in portion(numbered(10, length=9), 1000)] == [10]


def test_another_seed_is_another_order():
    orders = {
        tuple(first_tokens(Batches(numbered(20), 1, 64, seed).at(step))[0] for step in range(20)) for seed in range(5)
    }
    assert len(orders) == 5


def test_the_limit_on_tokens_does_not_change_which_rows_make_a_step():
    for step in range(10):
        wide, narrow = (Batches(numbered(7), 3, limit, 5).at(step) for limit in (1, 1000))
        assert Counter(first_tokens(wide)) == Counter(first_tokens(narrow))


@pytest.mark.parametrize(("step", "epoch"), [(0, 0), (1, 0.5), (2, 1), (5, 2.5)])
def test_the_epoch_is_passes_done_when_the_step_begins(step, epoch):
    assert Batches(numbered(8), 4, 64, 0).epoch(step) == epoch


@pytest.mark.parametrize("kind", ["uint16", "int32", "uint32", "int64"])
@pytest.mark.parametrize("arrange", [portion, pack])
def test_rows_mapped_from_a_read_only_file_give_the_same_batches_without_a_warning(arrange, kind, tmp_path):
    generator = np.random.default_rng(0)
    rows = [
        Tokens(tuple(generator.integers(0, 50, length).tolist()), tuple((generator.random(length) < 0.5).tolist()))
        for length in generator.integers(1, 40, 30)
    ]
    mapped = on_disk(rows, tmp_path, kind)
    assert not mapped[0].ids.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = arrange(mapped, 100)
        assert [padded_length(row) for row in mapped] == [padded_length(row) for row in rows]
        assert same([collate(mapped)], [collate(rows)])
    assert same(batches, arrange(rows, 100))
    for batch in batches:  # a batch of its own: writing into it must not reach the file
        assert batch.input_ids.dtype == batch.targets.dtype == torch.long
        batch.input_ids.fill_(7)
        batch.targets.fill_(7)
    assert same(arrange(mapped, 100), arrange(rows, 100))


def test_a_row_of_one_token_asks_nothing():
    batch = collate([Tokens((5,), (True,)), Tokens((5, 6), (False, True))])
    assert batch.tokens == 1
    assert batch.loss_mask.sum() == 1
    assert batch.input_ids[0].tolist() == [0] * 8


def test_a_batch_moves_whole():
    batch = Batch.of_tokens(torch.zeros(1, 8).long(), torch.zeros(1, 8).long(), 8, torch.arange(8)[None], (5, 3))
    moved = batch.to("meta")
    assert {part.device.type for part in vars(moved).values() if isinstance(part, torch.Tensor)} == {"meta"}
    assert (moved.tokens, moved.lengths) == (8, (5, 3))
    assert Batch.of_tokens(batch.input_ids, batch.targets, 8).to("meta").position_ids is None


RUNS = {
    "count": st.integers(1, 12),
    "batch_size": st.integers(1, 15),
    "seed": st.integers(0, 2**63),
    "arrange": st.sampled_from([portion, pack]),
}
STEPS = st.lists(st.one_of(st.integers(0, 40), st.integers(0, 10**7)), min_size=1, max_size=12)


def unequal(count):
    return [Tokens(range(number, 2 * number + 3), (False,) + (True,) * (number + 2)) for number in range(count)]


@settings(max_examples=draws(30), deadline=None)
@given(steps=STEPS, **RUNS)
def test_a_step_is_a_function_of_seed_and_number_alone(steps, count, batch_size, seed, arrange):
    batches = Batches(unequal(count), batch_size, 40, seed, arrange)
    straight = {step: batches.at(step) for step in sorted(steps)}
    again = Batches(unequal(count), batch_size, 40, seed, arrange)
    copied = pickle.loads(pickle.dumps(batches))  # noqa: S301  (made here)
    for step in steps:
        assert same(again.at(step), straight[step])
        assert same(Batches(unequal(count), batch_size, 40, seed, arrange).at(step), straight[step])
        assert same(copied.at(step), straight[step])


@settings(max_examples=draws(30), deadline=None)
@given(steps=STEPS, **RUNS)
def test_threads_that_share_one_object_get_the_same_steps(steps, count, batch_size, seed, arrange):
    straight = [Batches(unequal(count), batch_size, 40, seed, arrange).at(step) for step in steps]
    shared = Batches(unequal(count), batch_size, 40, seed, arrange)
    with ThreadPoolExecutor(4) as pool:
        assert all(map(same, pool.map(shared.at, steps), straight))


@settings(max_examples=draws(80), deadline=None)
@given(count=st.integers(1, 12), batch_size=st.integers(1, 30), seed=st.integers(0, 2**63), step=st.integers(0, 10**6))
def test_a_step_holds_the_next_rows_of_one_endless_order_also_across_the_end_of_a_pass(count, batch_size, seed, step):
    def drawn(batch_size, step):
        return first_tokens(Batches(numbered(count), batch_size, 64, seed).at(step))

    start = step * batch_size
    one_by_one = [drawn(1, place)[0] for place in range(start, start + batch_size)]
    assert Counter(drawn(batch_size, step)) == Counter(one_by_one)
    begun = -(-start // count) * count
    for first in range(begun, start + batch_size - count + 1, count):  # each pass that lies whole within the step
        assert sorted(one_by_one[first - start : first - start + count]) == list(range(count))


def test_late_passes_have_different_orders_too():
    batches = Batches(numbered(20), 1, 64, 0)
    passes = {
        tuple(first_tokens(batches.at(epoch * 20 + place))[0] for place in range(20))
        for epoch in (0, 1, 10**6, 10**6 + 1, 10**7)
    }
    assert len(passes) == 5


def test_how_rows_are_arranged_comes_in_as_a_value():
    asked = []

    def arrange(rows, limit):
        asked.append((list(rows), limit))
        return []

    assert Batches(numbered(7), 3, 64, 0, arrange).at(2) == []
    [(rows, limit)] = asked
    assert len(rows) == 3
    assert limit == 64
    assert Counter(row.ids[0] for row in rows) == Counter(first_tokens(Batches(numbered(7), 3, 64, 0).at(2)))
