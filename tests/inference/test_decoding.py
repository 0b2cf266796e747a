"""Many answers at once: each is what the model says alone, whatever it keeps of what it read; none is computed after
it has ended; and prompts are put together by length."""

from __future__ import annotations

import itertools
import random
import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3TextConfig,
    Lfm2Config,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
)
from transformers.cache_utils import DynamicLayer

from conftest import tiny_model
from kit.sampling import draws
from rankwise.base.loading import load
from rankwise.config.models import ModelConfig
from rankwise.config.validation import GenerationConfig
from rankwise.errors import EvaluationError
from rankwise.inference import generate as generation
from rankwise.inference.decoding import STAGE
from rankwise.inference.generate import PADDING, TOKENS, answers_in_turn, batches, decode
from rankwise.inference.kv_cache import ROOM, RoomyLayer, cache_name, can_share, new_cache
from rankwise.rows.text.chat_template import ChatTemplate

LONG = GenerationConfig(max_new_tokens=3 * STAGE + 5)
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip
CONFIGS = {
    "mistral": lambda vocab: MistralConfig(vocab_size=vocab, sliding_window=12, **SMALL),
    "qwen3": lambda vocab: Qwen3Config(vocab_size=vocab, **SMALL),
    "gemma3": lambda vocab: Gemma3TextConfig(vocab_size=vocab, sliding_window=12, **SMALL),
    "lfm2": lambda vocab: Lfm2Config(vocab_size=vocab, layer_types=["conv", "full_attention"], **SMALL),
    "mamba": lambda vocab: MambaConfig(vocab_size=vocab, hidden_size=32, num_hidden_layers=2, state_size=4),
}
KEPT_IN_ROOM = ("llama", "gpt2", "neox", "gptj", "mistral", "qwen3", "gemma3")


def random_model(name, vocab):
    if name not in CONFIGS:
        return tiny_model(name, vocab=vocab)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name](vocab)).eval()


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return load(ModelConfig(name=str(tiny_folder), dtype="float32", device="cpu"))


def alone(module, prompt, ends):
    """By transformers alone, with its own cache."""
    made = module.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        max_new_tokens=LONG.max_new_tokens, eos_token_id=ends, pad_token_id=2,
    )  # fmt: skip
    new = made[0, len(prompt) :].tolist()
    return new[:-1] if new[-1] in ends else new


def ending_at(tiny, module, ends):
    """`module` with the tokenizer of `tiny` and a template that calls `ends` the end."""
    template = ChatTemplate.of_model(tiny.tokenizer)
    vars(template).update(end_ids=tuple(ends), end_texts=())
    return replace(tiny, module=module).with_template(template)


def prompts_of(lengths, vocab=300):
    drawing = random.Random(1)
    return [[drawing.randrange(3, vocab) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("name", [*KEPT_IN_ROOM, "lfm2", "mamba"])
def test_answers_in_company_are_those_of_transformers_alone(tiny, name):
    module = random_model(name, len(tiny.tokenizer.hub))
    prompts = prompts_of([30, 22, 9, 9, 5, 1])
    free = [alone(module, prompt, [2]) for prompt in prompts]
    ends = [2, free[0][7], free[1][STAGE + 2], free[2][2 * STAGE + 1]]
    wanted = [list(itertools.takewhile(lambda token: token not in ends, answer)) for answer in free]
    model = ending_at(tiny, module, ends)
    together = decode(model, prompts, LONG)
    assert [one.tokens for one in together] == [len(one) for one in wanted]
    assert [one.text for one in together] == [model.template.answers.read(one) for one in wanted]
    differing = len({one.tokens for one in together})
    assert differing > 1 + (name in KEPT_IN_ROOM), "answers of one length would show nothing"


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_an_error_and_no_answer(tiny, temperature):
    module = random_model("llama", len(tiny.tokenizer.hub))
    with torch.no_grad():
        module.lm_head.weight[7] = float("nan")
    model = ending_at(tiny, module, [2])
    with pytest.raises(EvaluationError, match="the highest logit of an answer is nan"):
        decode(model, [[5, 6]], GenerationConfig(max_new_tokens=2, temperature=temperature))


@pytest.mark.parametrize("name", [*KEPT_IN_ROOM, "lfm2", "mamba"])
def test_a_model_that_keeps_more_than_keys_and_values_is_left_its_own_cache(tiny, name):
    assert can_share(random_model(name, len(tiny.tokenizer.hub))) == (name in KEPT_IN_ROOM)


def test_a_model_that_takes_no_cache_writes_the_same(tiny, monkeypatch):
    prompts, short = prompts_of([12, 5, 9]), GenerationConfig(max_new_tokens=STAGE + 3)
    expected = decode(tiny, prompts, short)
    monkeypatch.setattr("rankwise.inference.batch.new_cache", lambda module: None)
    assert [one.ids for one in decode(tiny, prompts, short)] == [one.ids for one in expected]


@pytest.mark.parametrize("at", [9, STAGE - 2])
def test_an_end_of_several_tokens_ends_an_answer_where_it_does_alone(tiny, at):
    """Within a stage, and across the border of two."""
    prompts = prompts_of([12, 9, 5])
    free = alone(tiny.module, prompts[0], [2])
    template = ChatTemplate.of_model(tiny.tokenizer)
    vars(template).update(end_ids=(), end_texts=(tiny.tokenizer.decode(free[at : at + 3]),))
    model = tiny.with_template(template)
    each = [decode(model, [prompt], LONG)[0] for prompt in prompts]
    for found, one in zip(decode(model, prompts, LONG), each, strict=True):
        assert (found.text, found.tokens, found.stopped) == (one.text, one.tokens, one.stopped)
    assert [(one.tokens, one.stopped) for one in each] == [(at + 3, "end"), *[(LONG.max_new_tokens, "length")] * 2]


def test_rows_that_have_ended_are_not_computed_on(tiny, monkeypatch):
    prompts = prompts_of([12] * 6)
    free = [alone(tiny.module, prompt, [2]) for prompt in prompts]
    model = ending_at(tiny, tiny.module, [free[0][3], free[1][5], free[2][STAGE + 3]])
    computed = []
    hook = tiny.module.register_forward_pre_hook(
        lambda module, args, given: computed.append(given["input_ids"].shape[0]), with_kwargs=True
    )
    try:
        found = decode(model, prompts, LONG)
    finally:
        hook.remove()
    tokens = [one.tokens for one in found]
    assert len(computed) == LONG.max_new_tokens, "some answer goes to the end, or nothing is shown"
    assert min(tokens) < STAGE
    assert computed == [sum(count >= at // STAGE * STAGE for count in tokens) for at in range(LONG.max_new_tokens)]


@settings(max_examples=draws(60), deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["read", "fewer", "crop"]), st.integers(1, ROOM + 9)), min_size=1, max_size=9),
    st.integers(0, 2**16),
)
def test_a_roomy_layer_holds_what_a_usual_one_holds(steps, seed):
    generator = torch.Generator().manual_seed(seed)
    roomy, usual, rows = RoomyLayer(), DynamicLayer(), 3
    for what, size in [("read", 4), *steps]:
        if what == "fewer":
            kept = torch.tensor(sorted({size % rows, (size + 1) % rows}))
            rows = len(kept)
            for layer in (roomy, usual):
                layer.batch_select_indices(kept)
        elif what == "crop":
            for layer in (roomy, usual):
                layer.crop(-min(size, usual.get_seq_length() - 1))
        else:
            new = torch.randn(2, rows, 2, size, 4, generator=generator)
            for mine, theirs in zip(roomy.update(*new), usual.update(*new), strict=True):
                assert torch.equal(mine, theirs)
        assert roomy.get_seq_length() == usual.get_seq_length()
        assert roomy.get_mask_sizes(3) == usual.get_mask_sizes(3)


def test_rows_that_are_left_out_are_held_by_nothing():
    layer = RoomyLayer()
    layer.update(torch.randn(8, 2, 5, 4), torch.randn(8, 2, 5, 4))
    old = [weakref.ref(layer.keys.untyped_storage()), weakref.ref(layer.values.untyped_storage())]
    layer.batch_select_indices(torch.tensor([1, 3]))
    assert not any(one() for one in old)


def test_a_token_is_written_behind_the_others_without_copying_them():
    layer = RoomyLayer()
    places = {layer.update(torch.randn(2, 1, 1, 4), torch.randn(2, 1, 1, 4))[0].data_ptr() for _ in range(3 * ROOM)}
    assert len(places) == 3


def test_a_cache_of_transformers_takes_rooms_by_the_name_its_models_know(tiny):
    cache = new_cache(tiny.module)
    assert isinstance(cache, DynamicCache)
    made = tiny.module(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True, **{cache_name(tiny.module): cache})
    assert made.logits.shape[1] == 3 and cache.get_seq_length() == 3


@settings(max_examples=draws(200), deadline=None)
@given(st.lists(st.integers(1, 3000), max_size=150), st.integers(1, 200), st.integers(1, 70))
@example([200] * 64, 200, 64)
def test_prompts_are_put_together_by_length_within_their_bounds(lengths, new, together):
    prompts = [[7] * length for length in lengths]
    made = batches(prompts, new, together)
    assert sorted(at for batch in made for at in batch) == list(range(len(prompts)))
    for batch in made:
        sizes = [lengths[at] for at in batch]
        assert sizes == sorted(sizes, reverse=True)
        assert len(batch) <= together
        assert len(batch) == 1 or len(batch) * (sizes[0] + new) <= TOKENS
        assert sum(sizes[0] - size for size in sizes) <= PADDING * new
    # none is smaller than it must be: the next prompt would not have fitted in
    for batch, after in itertools.pairwise(made):
        sizes = [lengths[at] for at in (*batch, after[0])]
        assert (
            len(batch) == together
            or len(sizes) * (sizes[0] + new) > TOKENS
            or sum(sizes[0] - size for size in sizes) > PADDING * new
        )


def test_weights_are_laid_out_once_for_all_batches_or_not_at_all(tiny, monkeypatch):
    laid_out = []
    monkeypatch.setattr(generation, "prepacked_weights", lambda module: nullcontext(laid_out.append(module)))
    for rows, wanted in ((17, True), (17, False), (3, True)):  # compiled code reads few rows' weights as they lie
        answers_in_turn(tiny, prompts_of([5] * rows), GenerationConfig(max_new_tokens=2), 9, lay_out=wanted)
    assert laid_out == [tiny.module]
    monkeypatch.setattr(generation, "has_decode_step", lambda module: False)
    answers_in_turn(tiny, prompts_of([5, 9, 2]), GenerationConfig(max_new_tokens=2), 1)
    assert laid_out == [tiny.module] * 2


def test_answers_come_in_the_order_of_their_prompts_and_no_prompt_is_no_answer(tiny):
    prompts, told = prompts_of([5, 40, 9, 1, 40]), []
    short = GenerationConfig(max_new_tokens=6)
    made = answers_in_turn(tiny, prompts, short, 2, told.append)
    assert [one.text for one in made] == [decode(tiny, [prompt], short)[0].text for prompt in prompts]
    assert told == [0, 2, 4, 5]
    told.clear()
    assert answers_in_turn(tiny, [], short, 2, told.append) == [] and told == []
