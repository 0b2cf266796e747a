"""Answers: the same alone as in company, ended where the model was taught to end, streamed to the letter, and drawn as
asked whatever the model's own files prefer."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

import rankwise
from rankwise.base.loading import load
from rankwise.config.models import ModelConfig
from rankwise.config.validation import GenerationConfig
from rankwise.errors import ModelError
from rankwise.evaluation.likelihood import likelihoods
from rankwise.forward.reference import random_documents
from rankwise.inference.batch import GenerationRow, GrowingBatch
from rankwise.inference.generate import answer, answers_in_turn, asking_ids
from rankwise.inference.prefixes import Prefixes
from rankwise.objectives.registry import objective_named
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenize import Tokens

SHORT = GenerationConfig(max_new_tokens=24)
PROMPTS = ["hi", "What is the capital of France?", "the quick brown fox " * 6, "refund", "é中😀 " * 5]


def asked(prompt):
    return [Message("user", prompt)]


def loaded(folder):
    return load(ModelConfig(name=str(folder), dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return loaded(tiny_folder)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def prompt_ids(model):
    return [asking_ids(model, asked(prompt)) for prompt in PROMPTS]


def facts(given):
    return given.text, given.tokens, given.stopped


def test_several_prompts_together_are_answered_as_each_alone(tiny):
    together = answers_in_turn(tiny, prompt_ids(tiny), SHORT)
    alone = [answer(tiny, asked(prompt), SHORT) for prompt in PROMPTS]
    assert [facts(given) for given in together] == [facts(given) for given in alone]
    assert len({given.text for given in together}) == len(PROMPTS)


def test_an_answer_is_no_longer_than_asked_and_says_why_it_ended(tiny):
    for longest in (1, 7):
        given = answer(tiny, asked("hi"), GenerationConfig(max_new_tokens=longest))
        assert (given.tokens, given.stopped) == (longest, "length")


def test_a_greedy_answer_is_the_likeliest_token_each_time(tiny):
    tokenizer = tiny.tokenizer
    ids = tokenizer.encode(tiny.template.text(asked("hi"), answer_next=True))
    begun = len(ids)
    with torch.no_grad():
        for _ in range(10):
            ids.append(int(tiny.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    given = answer(tiny, asked("hi"), GenerationConfig(max_new_tokens=10))
    assert given.text == tiny.template.answers.read(ids[begun:])


def likeliest(model, prompt, count):
    """Ids of a greedy answer, by transformers alone."""
    ids = model.tokenizer.encode(model.template.text(asked(prompt), answer_next=True))
    made = model.module.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=count)
    return made[0, len(ids) :].tolist()


def ending_at(folder, *ids):
    """The model in `folder`, whose generation config calls these ids the end."""
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": list(ids)}))
    return loaded(folder)


def test_an_answer_ends_before_the_first_end_token_whichever_of_them_it_is(tiny, folder):
    made = likeliest(tiny, "hi", 24)
    end = made[9]
    first = made.index(end)
    given = answer(ending_at(folder, 0, end), asked("hi"), SHORT)
    assert facts(given) == (tiny.template.answers.read(made[:first]), first, "end")


def test_in_company_a_short_answer_is_cut_at_its_own_end(tiny, folder):
    model = ending_at(folder, 2, likeliest(tiny, "hi", 24)[3])
    together = answers_in_turn(model, prompt_ids(model), SHORT)
    assert [facts(given) for given in together] == [facts(answer(model, asked(prompt), SHORT)) for prompt in PROMPTS]
    assert together[0].stopped == "end" and together[0].tokens <= 3
    assert len({given.tokens for given in together}) > 1


@pytest.mark.parametrize("prompt", PROMPTS)
def test_streamed_pieces_joined_are_the_answer(tiny, prompt):
    pieces = []
    given = answer(tiny, asked(prompt), GenerationConfig(max_new_tokens=60), on_text=pieces.append)
    assert "".join(pieces) == given.text
    assert len(pieces) > 3


@pytest.fixture(scope="module")
def reciting(tiny_folder, tmp_path_factory, hub_tokenizer):
    """A real Llama that knows one text by heart: each token of it is followed by the next, through the head alone."""
    text = " foxé中😀 dog"
    ids = hub_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(set(ids)) == len(ids) and hub_tokenizer.decode(ids) == text
    path = [hub_tokenizer("\n", add_special_tokens=False)["input_ids"][0], *ids, hub_tokenizer.eos_token_id]
    width = -(-len(hub_tokenizer) // 8) * 8
    config = LlamaConfig(
        vocab_size=width, hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=256, eos_token_id=2, bos_token_id=0, pad_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(width))
        model.lm_head.weight.zero_()
        for token, following in itertools.pairwise(path):
            model.lm_head.weight[following, token] = 1.0
    folder = tmp_path_factory.mktemp("reciting")
    model.save_pretrained(folder)
    hub_tokenizer.save_pretrained(folder)
    return loaded(folder), text, len(ids)


def test_a_text_known_by_heart_is_said_whole_and_ended(reciting):
    model, text, count = reciting
    assert facts(answer(model, asked("hi"), SHORT)) == (text, count, "end")
    assert facts(answer(model, asked("hi"), GenerationConfig(max_new_tokens=count))) == (text, count, "length")


def test_a_character_of_several_tokens_is_streamed_when_it_is_whole(reciting):
    model, text, count = reciting
    pieces = []
    answer(model, asked("hi"), SHORT, on_text=pieces.append)
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert [piece for piece in pieces if piece in {"é", "中", "😀"}] == ["é", "中", "😀"]
    assert count > len(pieces) > 4


def test_a_text_cut_in_the_middle_of_a_character_is_streamed_as_it_is_answered(reciting):
    model, text, count = reciting
    for longest in range(1, count):
        pieces = []
        given = answer(model, asked("hi"), GenerationConfig(max_new_tokens=longest), on_text=pieces.append)
        assert "".join(pieces) == given.text
        assert text.startswith(given.text.rstrip("\ufffd"))


PREFERENCES = {
    "do_sample": True, "temperature": 5.0, "top_k": 3, "max_length": 3, "min_length": 200, "num_beams": 3,
    "repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "forced_eos_token_id": 2, "bad_words_ids": [[5], [6]],
    "sequence_bias": [[[35], 50.0]], "suppress_tokens": list(range(3, 90)), "begin_suppress_tokens": list(range(90)),
    "guidance_scale": 3.0, "max_time": 1e-9, "exponential_decay_length_penalty": [1, 50.0], "watermarking_config": {},
    "stop_strings": ["a", "e"], "prompt_lookup_num_tokens": 2, "penalty_alpha": 0.6,
    "return_dict_in_generate": True, "forced_bos_token_id": 7, "cache_implementation": "static",
}  # fmt: skip


@pytest.mark.parametrize("key", PREFERENCES)
def test_what_the_models_own_generation_config_prefers_does_not_change_a_greedy_answer(tiny, folder, key):
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: PREFERENCES[key]}))
    assert facts(answer(loaded(folder), asked("hi"), SHORT)) == facts(answer(tiny, asked("hi"), SHORT))


def test_a_drawn_answer_follows_its_seed_and_its_temperature(tiny):
    def drawn(**given):
        return answer(tiny, asked("hi"), GenerationConfig(max_new_tokens=20, **given)).text

    assert drawn(temperature=1.0, seed=3) == drawn(temperature=1.0, seed=3) != drawn(temperature=1.0, seed=4)
    assert drawn(temperature=1e-4) == drawn()
    assert drawn(temperature=1.0, top_p=1e-6) == drawn()


def test_a_conversation_without_room_is_refused_with_the_numbers(tiny):
    needed = len(tiny.tokenizer.encode(tiny.template.text(asked("hi"), answer_next=True)))
    room = 256 - needed
    assert answer(tiny, asked("hi"), GenerationConfig(max_new_tokens=room, repetition_check=False)).tokens == room
    with pytest.raises(ModelError, match=f"{needed} tokens; with {room + 1} new tokens.*256"):
        answer(tiny, asked("hi"), GenerationConfig(max_new_tokens=room + 1))


def test_asking_leaves_the_model_in_the_mode_it_was_in(tiny):
    model = copy.deepcopy(tiny)
    for mode in (True, False):
        model.module.train(mode)
        answer(model, asked("hi"), GenerationConfig(max_new_tokens=1))
        assert model.module.training is mode


SIZES = {"vocab_size": 0, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 2,
         "pad_token_id": 2}  # fmt: skip
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 61, "factor": 8.0,
        "short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 7.0, 20.0]}  # fmt: skip
BY_LENGTH = {
    "longrope": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LONG}),
    "longrope of Phi-3": (
        Phi3ForCausalLM, Phi3Config, {"rope_parameters": LONG, "original_max_position_embeddings": 61}
    ),
    "dynamic": (
        LlamaForCausalLM, LlamaConfig,
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, "max_position_embeddings": 61},
    ),
}  # fmt: skip
"""Angles that depend on the length of a row that is longer than 61 tokens."""
LENGTHS, NEW = (10, 45, 58, 61, 62, 100, 150), 24


@pytest.fixture(scope="module", params=BY_LENGTH)
def by_length(request, tiny, tiny_folder, tmp_path_factory):
    """The kind, a folder, and the model as it is loaded."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("models") / "by-length")
    (folder / "config.json").unlink()
    kind, config, settings = BY_LENGTH[request.param]
    torch.manual_seed(0)
    model = kind(config(**(SIZES | {"vocab_size": tiny.vocabulary} | settings)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    model.save_pretrained(folder)
    return request.param, folder, replace(loaded(folder), context_length=None)


def texts(model, lengths):
    return random_documents(model.vocabulary, lengths, torch.Generator().manual_seed(1))


def test_an_answer_depends_on_its_own_length_and_not_on_that_of_its_neighbours(by_length):
    """transformers writes each alone. Its cache keeps what was read before a row outgrew `longrope`'s short angles, but
    for Phi-3; here both are read anew."""
    kind, folder, model = by_length
    prompts = [list(text.ids[:-1]) for text in texts(model, LENGTHS)]
    spec = GenerationConfig(max_new_tokens=NEW)
    together = answers_in_turn(model, prompts, spec)
    assert [facts(one) for one in together] == [facts(*answers_in_turn(model, [one], spec)) for one in prompts]
    prompts += [[*prompts[5][:80]], [*prompts[5][:50], 7]]  # they share a beginning
    batch, rows = GrowingBatch(model.module, lambda names: nullcontext(), Prefixes()), list(map(GenerationRow, prompts))
    for row in rows:
        while batch.read(row, 23) is None:
            if batch.rows:
                batch.step()
    while min(len(row.ids) for row in rows) < NEW:
        batch.step()
    for row in rows:
        fresh: Any = AutoModelForCausalLM.from_pretrained(folder)
        alone = fresh.generate(
            torch.tensor([row.prompt]), do_sample=False, max_new_tokens=NEW, eos_token_id=None,
            use_cache=kind != "longrope",
        )  # fmt: skip
        assert row.ids[:NEW] == alone[0, len(row.prompt) :].tolist(), len(row.prompt)


def test_a_loss_depends_on_its_own_row_and_not_on_those_beside_it(by_length):
    """Neither does an output that is told by a mask where its row ends."""
    _, folder, model = by_length
    rows = [Tokens((*row.ids, 5), (*row.loss_mask, False)) for row in texts(model, LENGTHS)]  # an end is not learned
    alone = [
        objective_named("causal-lm").loss(model.module, *objective_named("causal-lm").loss.batches([row], 1))
        for row in rows
    ]
    (batch,) = objective_named("causal-lm").loss.batches(rows, 10**6)
    torch.testing.assert_close(objective_named("causal-lm").loss(model.module, batch), torch.stack(alone).sum())
    nats = [one.nats for one in likelihoods(model.module, rows)]
    torch.testing.assert_close(torch.tensor(nats), torch.stack(alone).detach().double().float())
    ids, mask = torch.zeros(len(rows), 150, dtype=torch.long), torch.zeros(len(rows), 150)
    for at, length in enumerate(LENGTHS):
        ids[at, :length], mask[at, :length] = torch.tensor(rows[at].ids[:length]), 1
    with torch.no_grad():
        every = model.module(input_ids=ids, attention_mask=mask).logits
        for at, length in enumerate(LENGTHS):
            own = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids[at : at + 1, :length]).logits
            torch.testing.assert_close(every[at, :length], own[0], rtol=1e-4, atol=1e-4)


def test_a_training_does_not_pack_rows_of_such_a_model(by_length, tmp_path, monkeypatch):
    kind, folder, _ = by_length
    if kind == "dynamic":
        pytest.skip("its rows have no room to be longer than what is alike")
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "hi", "completion": "a1b2" * count} for count in range(2, 50, 6)]
    said = []
    rankwise.train(
        model=str(folder), data=rows, steps=1, packing=True, device="cpu", run="r", callback=said.append, rank=2
    )
    assert sum("rows are not packed" in str(one) for one in said) == 1
