"""Stop anywhere, go on anywhere: what a step holds is a function of the sequences, the seed and the step alone.

The sequences lie on the disk; whoever goes on opens them anew: other objects, another process, several threads.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rankwise
from kit.sampling import draws
from rankwise.config.data import DataConfig
from rankwise.rows.encoded.batches import Batches, portion
from rankwise.rows.encoded.packing import pack
from rankwise.rows.encoded.sequences import EncodedRows, RowWriter, SelectedRows
from rankwise.rows.preparing import prepare
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.tokenize import Tokens
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.rows.writing import TextWriting
from rankwise.runs.records import silent

MARK = 1000
"""The first id of sequence n is MARK + n, and no other id is as large, so that it is known wherever it lies."""
ARRANGE = {"portion": portion, "pack": pack}


def opened(folder, numbers, batch_size, limit, seed, arrange):
    """Everything new, from what lies on the disk."""
    rows = SelectedRows(EncodedRows.read(Path(folder)), np.array(numbers, np.int64))
    return Batches(rows, batch_size, limit, seed, ARRANGE[arrange])


def digest(batches):
    """Every bit of them."""
    found = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.input_ids, batch.targets, batch.position_ids):
            part = None if tensor is None else (tuple(tensor.shape), str(tensor.dtype), tensor.numpy().tobytes())
            found.update(repr(part).encode())
        found.update(repr(batch.tokens).encode())
    return found.hexdigest()


PROGRAM = f"""
import hashlib, json, sys
from pathlib import Path
import numpy as np
from rankwise.rows.encoded.batches import Batches, portion
from rankwise.rows.encoded.sequences import EncodedRows, SelectedRows
from rankwise.rows.encoded.packing import pack
ARRANGE = {{"portion": portion, "pack": pack}}
{inspect.getsource(opened)}
{inspect.getsource(digest)}
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps([digest(opened(*asked["run"]).at(step)) for step in asked["steps"]]), flush=True)
"""


@pytest.fixture(scope="module")
def elsewhere():
    """Ask another process, which shares nothing with this one but the disk."""
    environment = os.environ | {"PYTHONPATH": str(Path(rankwise.__file__).parents[1]), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:

        def ask(run, steps):
            other.stdin.write(json.dumps({"run": [str(run[0]), *run[1:]], "steps": steps}) + "\n")
            other.stdin.flush()
            return json.loads(other.stdout.readline())

        yield ask


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@st.composite
def runs(draw):
    """Lengths of the sequences, and (numbers, batch_size, limit, seed, arrange)."""
    lengths = draw(st.lists(st.integers(2, 30), min_size=1, max_size=20))
    numbers = draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=25))
    settings_ = (st.integers(1, 30), st.integers(1, 150), st.integers(0, 2**63 - 1), st.sampled_from(sorted(ARRANGE)))
    return lengths, (numbers, *map(draw, settings_))


STEPS = st.lists(st.integers(0, 40) | st.integers(0, 10**6), min_size=1, max_size=10)


def laid_down(lengths, place):
    shutil.rmtree(place / "d", ignore_errors=True)
    (place / "d").mkdir()
    generator = np.random.default_rng(len(lengths))
    rows = [
        Tokens((MARK + number, *generator.integers(1, MARK, length - 1)), tuple(generator.random(length) < 0.5))
        for number, length in enumerate(lengths)
    ]
    writer = RowWriter()
    writer.add(EncodedRows.of(rows))
    writer.write(place / "d")
    return rows


def held(batches):
    """Numbers of the sequences in a step, as often as they are there."""
    ids = [int(token) for batch in batches for token in batch.input_ids.flatten()]
    return Counter(token - MARK for token in ids if token >= MARK)


@settings(max_examples=draws(60), deadline=None)
@given(drawn=runs(), steps=STEPS)
def test_fresh_objects_give_the_same_step_in_whichever_order_they_are_asked(place, drawn, steps):
    lengths, run = drawn
    rows = laid_down(lengths, place)
    in_memory = Batches([rows[number] for number in run[0]], *run[1:4], ARRANGE[run[4]])
    straight = {step: digest(in_memory.at(step)) for step in sorted(steps)}
    for step in steps:
        assert digest(opened(place / "d", *run).at(step)) == straight[step]
    going_on = opened(place / "d", *run)
    assert [digest(going_on.at(step)) for step in reversed(steps)] == [straight[step] for step in reversed(steps)]


@settings(max_examples=draws(40), deadline=None)
@given(drawn=runs(), steps=STEPS, stop=st.integers(0, 10))
def test_another_process_goes_on_where_this_one_stopped(place, elsewhere, drawn, steps, stop):
    lengths, run = drawn
    laid_down(lengths, place)
    straight = [digest(opened(place / "d", *run).at(step)) for step in steps]
    begun = opened(place / "d", *run)
    until = [digest(begun.at(step)) for step in steps[:stop]]
    assert until + elsewhere((place / "d", *run), steps[stop:]) == straight


@settings(max_examples=draws(40), deadline=None)
@given(drawn=runs(), steps=STEPS, workers=st.integers(1, 4), data=st.data())
def test_one_to_four_threads_make_the_same_steps_out_of_order(place, drawn, steps, workers, data):
    lengths, run = drawn
    laid_down(lengths, place)
    straight = {step: digest(opened(place / "d", *run).at(step)) for step in steps}
    shuffled = data.draw(st.permutations(steps))
    shared = opened(place / "d", *run)
    with ThreadPoolExecutor(workers) as pool:
        together = list(pool.map(lambda step: digest(shared.at(step)), shuffled))
        each_its_own = list(pool.map(lambda step: digest(opened(place / "d", *run).at(step)), shuffled))
    assert together == each_its_own == [straight[step] for step in shuffled]


@settings(max_examples=draws(80), deadline=None)
@given(drawn=runs(), first=st.integers(0, 3))
def test_each_document_comes_exactly_as_often_in_a_pass_as_trained_holds_it(place, drawn, first):
    lengths, (numbers, batch_size, limit, seed, arrange) = drawn
    laid_down(lengths, place)
    wanted = Counter(numbers)
    one_by_one = opened(place / "d", numbers, 1, limit, seed, arrange)
    one_pass = range(first * len(numbers), (first + 1) * len(numbers))
    assert sum((held(one_by_one.at(step)) for step in one_pass), Counter()) == wanted
    # len(numbers) steps of batch_size rows are batch_size passes
    batches = opened(place / "d", numbers, batch_size, limit, seed, arrange)
    seen = [held(batches.at(step)) for step in range(len(numbers))]
    assert all(step.total() == batch_size for step in seen)
    assert sum(seen, Counter()) == Counter({number: times * batch_size for number, times in wanted.items()})


@settings(max_examples=draws(40), deadline=None)
@given(drawn=runs(), step=st.integers(0, 10**5), other=st.integers(1, 200))
def test_neither_the_arrangement_nor_the_limit_on_tokens_changes_which_documents_make_a_step(place, drawn, step, other):
    lengths, (numbers, batch_size, limit, seed, _) = drawn
    laid_down(lengths, place)
    found = [
        held(opened(place / "d", numbers, batch_size, room, seed, arrange).at(step))
        for room in (limit, other)
        for arrange in ARRANGE
    ]
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize("arrange", ARRANGE)
def test_rows_encoded_just_now_and_rows_from_the_cache_make_the_same_steps(
    hub_tokenizer, tmp_path, monkeypatch, arrange
):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    for name, count in (("a", 7), ("b", 6)):
        rows = [{"prompt": f"{name} {n} " + "the quick " * n, "completion": f"fox {n}"} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = HubTokenizer(hub_tokenizer, [hub_tokenizer.eos_token_id])
    writing = TextWriting(tokenizer, ChatTemplate.of_model(tokenizer), "tiny", None)
    sources = [{"path": str(tmp_path / "a.jsonl"), "weight": 2.5}, {"path": str(tmp_path / "b.jsonl"), "weight": 0.5}]
    spec = DataConfig(sources=sources, held_out=3)
    encoded, recalled = (prepare(spec, writing, silent) for _ in range(2))
    assert isinstance(recalled.sequences.ids, np.memmap)
    for seed in (0, 1):
        now, later = (Batches(one.trained_rows, 4, 100, seed, ARRANGE[arrange]) for one in (encoded, recalled))
        assert [digest(now.at(step)) for step in range(20)] == [digest(later.at(step)) for step in range(20)]
        # one by one, a pass shows what `trained` holds
        alone = Batches(recalled.trained_rows, 1, 100, seed, ARRANGE[arrange])
        passed = Counter(tuple(alone.at(step)[0].input_ids[0].tolist()) for step in range(len(recalled.trained)))
        assert sorted(passed.values()) == sorted(Counter(recalled.trained.tolist()).values())
