"""An answer that loops is cut at the same place alone, in company and as a stream; lists, tables and what merely
resembles itself are not; and what is measured is not cut at all."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.base.loading import load
from rankwise.config.models import ModelConfig
from rankwise.config.validation import GenerationConfig
from rankwise.evaluation.requests import Request
from rankwise.evaluation.task import answers
from rankwise.inference.decoding import PERIOD, STAGE, TIMES, TOKENS, repeats
from rankwise.inference.generate import answer, answers_in_turn, decode
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Message
from rankwise.runs.records import silent

LONG = GenerationConfig(max_new_tokens=TOKENS + 3 * STAGE)


def by_definition(ids):
    return any(
        len(ids) >= (size := max(TIMES * period, TOKENS))
        and all(ids[-at] == ids[-at - period] for at in range(1, size - period + 1))
        for period in range(1, PERIOD + 1)
    )


@settings(max_examples=draws(100), deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=PERIOD + 6), st.integers(0, 700), st.lists(st.integers(0, 9)),
    st.lists(st.integers(0, 3), max_size=2),
)  # fmt: skip
def test_a_loop_is_what_the_definition_says(group, size, before, behind):
    ids = [*before, *(group * (size // len(group) + 1))[:size], *behind]
    assert repeats(ids) == by_definition(ids)


@pytest.mark.parametrize("period", [1, 2, 3, 15, 16, 17, 63, 64])
def test_the_shortest_loop_of_a_period_and_one_token_less(period):
    group = list(range(period))
    size = max(TIMES * period, TOKENS)
    ids = [99, *(group * size)[:size]]
    assert repeats(ids) and not repeats(ids[:-1]) and not repeats([*ids, 99])


def test_what_resembles_itself_is_no_loop():
    drawing = random.Random(0)
    numbered = [token for line in range(60) for token in (5, 6, 100 + line, 7, 8, 9)]
    table = [token for line in range(40) for token in (1, drawing.randrange(50), 1, drawing.randrange(50), 2)]
    matrix = ([0] * 7 + [10]) * 8  # eight rows of eight cells
    longer = list(range(PERIOD + 1)) * 10
    for ids in (numbered, table, matrix, longer):
        assert not any(repeats(ids[:size]) for size in range(len(ids)))


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return load(ModelConfig(name=str(tiny_folder), dtype="float32", device="cpu"))


def greedy(module, prompt, count):
    made = module.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                           do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=2)  # fmt: skip
    return made[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def endless(tiny):
    """Without an end. A random model this small soon writes one token for ever after most prompts."""
    template = ChatTemplate.of_model(tiny.tokenizer)
    vars(template).update(end_ids=(), end_texts=())
    return tiny.with_template(template)


@pytest.fixture(scope="module")
def prompts(endless):
    """Some of which are answered by a loop, and some are not."""
    drawing = random.Random(3)
    return [[drawing.randrange(3, 300) for _ in range(length)] for length in (4, 9, 14, 20)]


def test_an_answer_is_cut_where_it_loops_alone_in_company_and_as_a_stream(endless, prompts):
    free = [greedy(endless.module, prompt, LONG.max_new_tokens) for prompt in prompts]
    looks = range(STAGE, LONG.max_new_tokens + 1, STAGE)
    places = [next((place for place in looks if by_definition(ids[:place])), None) for ids in free]
    assert len(set(places)) > 1 and any(places), f"{places} show too little"
    target = [(endless.template.answers.read(ids[:at]), at or len(ids), "repetition" if at else "length")
              for ids, at in zip(free, places, strict=True)]  # fmt: skip

    def facts(found):
        return [(one.text, one.tokens, one.stopped) for one in found]

    assert facts(decode(endless, prompts, LONG)) == target
    assert facts(answers_in_turn(endless, prompts, LONG, 4)) == target
    heard = []
    assert facts([decode(endless, [prompt], LONG, heard.append)[0] for prompt in prompts]) == target
    assert "".join(heard) == "".join(text for text, _, _ in target)


def test_the_check_can_be_switched_off(endless, prompts):
    found = decode(endless, prompts, LONG.model_copy(update={"repetition_check": False}))
    assert {(one.tokens, one.stopped) for one in found} == {(LONG.max_new_tokens, "length")}


def test_what_is_measured_is_not_cut(endless, prompts):
    items = [Request(where="f:1", prompts=(), prompt_ids=tuple(prompt), target="") for prompt in prompts]
    whole = decode(endless, prompts, LONG.model_copy(update={"repetition_check": False}))
    assert answers(items, endless, LONG.max_new_tokens, silent, 4, "x") == [one.text for one in whole]


def test_a_prompt_that_repeats_itself_is_no_reason_to_stop(endless):
    found = answer(endless, [Message("user", "a " * 60)], GenerationConfig(max_new_tokens=STAGE))
    assert (found.tokens, found.stopped) == (STAGE, "length")
