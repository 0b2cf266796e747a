"""The ways real chat templates differ: who names the end token, what follows it, thoughts, accents.

Each is written here in the shape of a family of models, over a tokenizer made here.
"""

from __future__ import annotations

import copy

import pytest
from tokenizers import normalizers
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


def test_an_empty_thought_before_the_answer_is_given_and_not_learned(hub_tokenizer: PreTrainedTokenizerFast) -> None:
    # Qwen3: with thinking off, an empty block stands before the last answer, in training and in use.
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    made = written(hub_tokenizer, template, [END])
    assert learned(Example(TURNS[:2], "x:1"), made) == ["first<|im_end|>"]


@pytest.mark.parametrize("answer", ["cafe\u0301", "caf\u00e9", "A\u030a and \u1100\u1161"])
def test_a_tokenizer_that_composes_accents_can_be_trained(hub_tokenizer: PreTrainedTokenizerFast, answer: str) -> None:
    # One decomposed accent among the rows would otherwise stop the training of Qwen and Pythia.
    own = copy.deepcopy(hub_tokenizer)
    own.backend_tokenizer.normalizer = normalizers.NFC()
    made = ChatTemplate.of_model(HubTokenizer(own, [END]))
    example = Example((Message("user", "q"), Message("assistant", answer)), "x:1")
    tokens = tokenise(render(example, made), made.tokenizer)
    assert made.tokenizer.decode(learned_ids(tokens)) == normalizers.NFC().normalize_str(answer) + "<|im_end|>"


def test_the_plain_template_s_space_is_no_part_of_an_answer(hub_tokenizer: PreTrainedTokenizerFast) -> None:
    # Else the second turn of a chat would be written with two spaces, which training never saw.
    made = written(hub_tokenizer, None, [END])
    assert made.answer_text(made.tokenizer.encode(" first")) == "first"


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("marker", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_a_control_token_inside_a_message_is_encoded_as_the_text_it_is(
    hub_tokenizer: PreTrainedTokenizerFast, role: str, marker: str
) -> None:
    # Encoded as the token it names, it would end the turn early, in training and in use.
    made = written(hub_tokenizer, hub_tokenizer.chat_template, [END])
    turns = [Message("system", "s"), Message("user", "q"), Message("assistant", "a")]
    typed = [Message(m.role, f"say {marker} here") if m.role == role else m for m in turns]
    example = Example(tuple(typed), "x:3")
    tokens = tokenise(render(example, made), made.tokenizer, "x:3")
    assert tokens.as_asked
    # the ids of the same conversation with the marker's own letters, none of which is a control token
    letters = [token for piece in (marker[0], marker[1:]) for token in made.tokenizer.encode(piece)]
    assert not set(letters) & set(made.tokenizer.special)
    control = [token for token in tokens.ids if token in made.tokenizer.special]
    assert control == [token for token in made.tokenizer.encode(made.text(turns)) if token in made.tokenizer.special]
    assert made.tokenizer.decode(tokens.ids) == made.text(typed).replace(BREAK, "")
    assert made.tokenizer.decode(learned_ids(tokens)) == typed[-1].content + "<|im_end|>"
    place = next(n for n in range(len(tokens.ids)) if list(tokens.ids[n : n + len(letters)]) == letters)
    assert tokens.loss_mask[place] is (role == "assistant")
    # and so it is asked
    asked = prompt_ids(made.text(typed[:2], answer_next=True), made.tokenizer)
    assert list(tokens.ids[: len(asked)]) == asked and not any(tokens.loss_mask[: len(asked)])
    # BREAK is ours alone: no text of a conversation holds it when it is decoded
    assert BREAK not in made.tokenizer.decode(tokens.ids)


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
