"""Examples in the prompt: the conversation that the template writes, the row's own answer, and the prefix read once."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from conftest import tiny_model
from rankwise.base.loading import load
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.evaluation.few_shot import first_answer, with_examples, with_other_questions
from rankwise.evaluation.likelihood import likelihoods
from rankwise.inference.kv_cache import LogitsAfter, can_share
from rankwise.objectives.registry import objective_named
from rankwise.rows.preparing import prepare
from rankwise.rows.text.encode import Encoder
from rankwise.rows.text.example import Example, Message
from rankwise.rows.text.tokenize import Tokens
from rankwise.runs.records import silent

PAIRS = [("What is the capital?", "Paris."), ("the quick fox", "jumps over"), ("lazy dog", "brown"), ("refund", "low")]


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(ModelConfig(name=str(tiny_folder), dtype="float32"))


@pytest.fixture
def rows(tmp_path, model):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": asked, "completion": said}) + "\n" for asked, said in PAIRS))
    return list(
        prepare(DataConfig(path=str(file)), objective_named("causal-lm").rows.encoding(model), silent).trained_rows
    )


def conversation(model, pairs):
    turns = [Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    (outcome,) = Encoder(model.template, model.tokenizer, DataConfig(path="x"), 10**9).encode(
        [Example(tuple(turns), "x")]
    )
    return outcome.sequences[0]


def test_examples_are_earlier_turns_as_the_template_writes_them(model, rows):
    context = with_examples(model, rows[3:], rows[:3], None)
    assert context.examples == 3
    (whole,) = context.full_prompts
    expected = conversation(model, PAIRS)
    end = int(np.flatnonzero(expected.loss_mask)[-1]) + 1
    assert list(whole.ids[:end]) == list(expected.ids[:end])
    assert whole.loss_count == rows[3].loss_count


def test_as_many_examples_are_taken_as_the_context_has_room_for(model, rows):
    from dataclasses import replace

    context = with_examples(model, rows[3:], rows[:3], None)
    longest = len(context.prefix) + max(len(row.ids) for row in context.rows)
    fewer = with_examples(replace(model, context_length=longest - 1), rows[3:], rows[:3], None)
    assert fewer.examples == 2
    assert with_examples(replace(model, context_length=len(rows[3].ids)), rows[3:], rows[:3], None) is None


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox"])
def test_a_prefix_that_is_read_once_gives_the_likelihoods_of_whole_sequences(architecture):
    module = tiny_model(architecture).double()
    draw = np.random.default_rng(0)
    prefix = tuple(draw.integers(5, 90, 17).tolist())
    rows = []
    for size in (3, 9, 30, 12):
        ids = draw.integers(5, 90, size).tolist()
        rows.append(Tokens(tuple(ids), (False,) + (True,) * (size - 1)))
    whole = [Tokens((*prefix, *row.ids), (*[False] * len(prefix), *row.loss_mask)) for row in rows]
    assert can_share(module)
    once = likelihoods(module, rows, forward=LogitsAfter(module, prefix), greedy=True)
    for one, other in zip(once, likelihoods(module, whole, greedy=True), strict=True):
        assert one.nats == pytest.approx(other.nats, rel=1e-9)
        assert (one.tokens, one.greedy) == (other.tokens, other.greedy)


def test_greedy_means_that_decoding_would_write_exactly_these_tokens():
    module = tiny_model("llama")
    ids = [7, 8, 9]
    for _ in range(4):
        ids.append(int(module(torch.tensor([ids])).logits[0, -1].argmax()))
    mask = (False,) * 3 + (True,) * 4
    right = Tokens(tuple(ids), mask)
    wrong = Tokens((*ids[:-1], (ids[-1] + 1) % 96), mask)
    assert [one.greedy for one in likelihoods(module, [right, wrong], greedy=True)] == [True, False]


def test_swapping_gives_each_row_another_question_and_its_own_answer(rows):
    swapped = with_other_questions(rows, seed=0)
    begins = [first_answer(row) for row in rows]
    questions = [tuple(row.ids[:begin]) for row, begin in zip(rows, begins, strict=True)]
    others = [tuple(row.ids[: first_answer(row)]) for row in swapped]
    assert sorted(questions) == sorted(others)
    assert all(one != other for one, other in zip(questions, others, strict=True))
    for row, begin, other in zip(rows, begins, swapped, strict=True):
        assert tuple(row.ids[begin:]) == tuple(other.ids[first_answer(other) :])
        assert row.loss_count == other.loss_count


def test_rows_without_questions_are_not_swapped():
    assert with_other_questions([Tokens((1, 2, 3), (True, True, True))] * 3, seed=0) is None
    assert with_other_questions([Tokens((1, 2, 3), (False, False, True))] * 3, seed=0) is None
