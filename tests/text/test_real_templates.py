"""The ways real chat templates differ: who names the end token, what follows it, thoughts, accents.

Each is written here in the shape of a family of models, over a tokenizer made here.
"""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerFast

from rankwise.errors import TemplateError
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import BREAK, Example, Message
from rankwise.rows.text.rendering import render
from rankwise.rows.text.tokenize import Tokens, prompt_ids, tokenise
from rankwise.rows.text.tokenizer import HubTokenizer

TURNS = (Message("user", "one"), Message("assistant", "first"), Message("user", "two"), Message("assistant", "second"))
END, TEXT_END = 2, 0


def written(hub: PreTrainedTokenizerFast, template: str | None, ends: list[int]) -> ChatTemplate:
    own = copy.deepcopy(hub)
    own.chat_template = template
    return ChatTemplate.of_model(HubTokenizer(own, ends))


def learned_ids(tokens: Tokens) -> list[int]:
    return [token for token, is_learned in zip(tokens.ids, tokens.loss_mask, strict=True) if is_learned]


def learned(example: Example, made: ChatTemplate) -> list[str]:
    rendering = render(example, made)
    assert rendering.text == made.text(example.messages)
    tokens = tokenise(rendering, made.tokenizer)
    assert tokens.as_asked
    found = [segment.text for segment in rendering.segments if segment.learned]
    assert made.tokenizer.decode(learned_ids(tokens)) == "".join(found)
    return found


def test_an_end_token_that_only_the_template_names_is_found(hub_tokenizer: PreTrainedTokenizerFast) -> None:
    # Qwen's base models: ChatML, while the settings name <|endoftext|> as the end.
    made = written(hub_tokenizer, hub_tokenizer.chat_template, [TEXT_END])
    assert set(made.end_ids) == {TEXT_END, END}
    assert learned(Example(TURNS, "x:1"), made) == ["first<|im_end|>", "second<|im_end|>"]


def test_what_follows_only_the_last_end_token_splits_no_conversation(hub_tokenizer: PreTrainedTokenizerFast) -> None:
    # Phi-3: <|endoftext|> after the whole, but not where the model is to speak.
    template = hub_tokenizer.chat_template + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"
    made = written(hub_tokenizer, template, [END])
    assert learned(Example(TURNS, "x:1"), made) == ["first<|im_end|>", "second<|im_end|>"]


def test_the_plain_template_s_space_is_no_part_of_an_answer(hub_tokenizer: PreTrainedTokenizerFast) -> None:
    # Else the second turn of a chat would be written with two spaces, which training never saw.
    made = written(hub_tokenizer, None, [END])
    assert made.answers.read(made.tokenizer.encode(" first")) == "first"


def test_special_tokens_that_the_tokenizer_does_not_name_count_too(hub_tokenizer: PreTrainedTokenizerFast) -> None:
    # Llama-3's turn markers are added tokens, and in no list of named ones.
    own = copy.deepcopy(hub_tokenizer)
    own.add_special_tokens({"pad_token": "<|eot_id|>"})
    own.pad_token = "<|endoftext|>"
    assert "<|eot_id|>" not in own.all_special_tokens
    own.chat_template = own.chat_template.replace("<|im_end|>", "<|eot_id|>")
    made = ChatTemplate.of_model(HubTokenizer(own, [TEXT_END]))
    assert made.ends == ("<|endoftext|>", "<|eot_id|>")
    assert learned(Example(TURNS, "x:1"), made) == ["first<|eot_id|>", "second<|eot_id|>"]
    end = own.convert_tokens_to_ids("<|eot_id|>")
    typed = made.text([Message("user", "x <|eot_id|> y")])
    assert prompt_ids(typed, made.tokenizer).count(end) == 1, "the turn's own"
    assert made.tokenizer.decode(prompt_ids(typed, made.tokenizer)) == typed.replace(BREAK, "")


def test_the_marker_of_the_next_turn_is_no_end_of_an_answer(hub_tokenizer: PreTrainedTokenizerFast) -> None:
    made = written(hub_tokenizer, hub_tokenizer.chat_template.replace("<|im_end|>", ""), [TEXT_END])
    assert made.end_ids == (TEXT_END,)
    with pytest.raises(TemplateError, match="no end token"):
        render(Example(TURNS, "x:1"), made)
