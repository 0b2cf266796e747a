"""Learned ids decode to exactly the answer and its end token, or the row is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kit.sampling import draws
from rankwise.errors import TemplateError
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import BREAK, Example, Message
from rankwise.rows.text.rendering import render
from rankwise.rows.text.tokenize import Rendering, Segment, Tokens, tokenise
from rankwise.rows.text.tokenizer import HubTokenizer

END = "<|im_end|>"
UNICODE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=[BREAK]), min_size=1, max_size=20)
TROUBLE = st.sampled_from(
    ["<|im", "|im_end|", "assistant\n", "👩‍👩‍👧 é", "e\u0301", "\u2028", "  \n\n ", "\ufffd", "ﷺ"]
)
TYPED = st.sampled_from([END, "<|im_start|>", "<|endoftext|>", "<|im_start|>assistant\n"])
CONTENT = st.one_of(UNICODE, st.lists(UNICODE | TROUBLE | TYPED, min_size=1, max_size=4).map("".join)).filter(str.strip)


@pytest.fixture(scope="session")
def tokenizer(hub_tokenizer):
    assert hub_tokenizer.pad_token_id == hub_tokenizer.eos_token_id, "the case in which masks by id go wrong"
    return HubTokenizer(hub_tokenizer, [hub_tokenizer.eos_token_id])


@pytest.fixture(scope="session")
def template(tokenizer):
    return ChatTemplate.of_model(tokenizer)


def rendering(*parts):
    return Rendering(tuple(Segment(text, learned) for text, learned in parts), "prefix")


def examples():
    return st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3)


def as_example(pairs):
    turns = [Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    return Example(tuple(turns), "rows.jsonl:7")


@settings(max_examples=draws(50), deadline=None)
@given(pairs=examples())
def test_a_row_is_encoded_as_it_will_be_when_served(tokenizer, template, pairs):
    # ids that no served prompt would ever hold are the quiet way to lose quality
    example = as_example(pairs)
    text = template.text(example.messages)
    tokens = tokenise(render(example, template), tokenizer, example.where)
    if BREAK in text:  # somebody typed a control token
        assert tokenizer.decode(tokens.ids) == text.replace(BREAK, "")
    else:
        assert list(tokens.ids) == tokenizer.encode(text)


@settings(max_examples=draws(50), deadline=None)
@given(texts=st.lists(st.tuples(st.text("abc é😀\n", min_size=1, max_size=6), st.booleans()), min_size=1, max_size=6))
def test_any_cut_of_a_text_gives_each_token_the_side_it_lies_on(tokenizer, texts):
    tokens = tokenise(rendering(*texts), tokenizer)
    assert tokenizer.decode(tokens.ids) == "".join(text for text, _ in texts)
    learned = [token for token, flag in zip(tokens.ids, tokens.loss_mask, strict=True) if flag]
    given_ = [token for token, flag in zip(tokens.ids, tokens.loss_mask, strict=True) if not flag]
    assert tokenizer.decode(learned) == "".join(text for text, flag in texts if flag)
    assert tokenizer.decode(given_) == "".join(text for text, flag in texts if not flag)


def test_where_a_token_would_straddle_the_border_the_parts_are_encoded_apart(tokenizer):
    whole = "the capital"
    found = tokenizer.hub(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = found["input_ids"], found["offset_mapping"]
    cut = next(end - 1 for start, end in offsets if end - start > 1)
    assert not any(end == cut for _, end in offsets), "a token lies across the cut"
    tokens = tokenise(rendering((whole[:cut], False), (whole[cut:], True)), tokenizer)
    first, second = tokenizer.encode(whole[:cut]), tokenizer.encode(whole[cut:])
    assert list(tokens.ids) == first + second != ids
    assert tokens.loss_mask == (False,) * len(first) + (True,) * len(second)


def test_a_prompt_that_has_other_ids_when_it_is_asked_is_not_as_asked(tokenizer):
    once = rendering(("the cap", False), ("ital", True))
    assert tokenise(once, tokenizer).as_asked
    twice = rendering(("the cap", False), ("ital", True), (" of the cap", False), ("ital", True))
    tokens = tokenise(twice, tokenizer)
    prompt = tokenizer.encode("the capital of the cap")
    assert list(tokens.ids[: len(prompt)]) != prompt, "the first answer was encoded behind its own prompt"
    assert not tokens.as_asked


def test_a_border_between_tokens_leaves_the_whole_encoding():
    # a tokenizer that opens every text with a word mark writes one into the middle if the parts are encoded apart
    letters = Tokenizer(models.BPE({letter: index for index, letter in enumerate("▁hi:yes")}, []))
    letters.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    letters.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer_ = HubTokenizer(PreTrainedTokenizerFast(tokenizer_object=letters), [0])
    assert tokenizer_.encode("hi:") + tokenizer_.encode("yes") != tokenizer_.encode("hi:yes")
    tokens = tokenise(rendering(("hi:", False), ("yes", True)), tokenizer_)
    assert list(tokens.ids) == tokenizer_.encode("hi:yes")
    assert tokenizer_.hub.convert_ids_to_tokens(tokens.ids) == list("▁hi:yes")
    assert tokens.loss_mask == (False,) * 4 + (True,) * 3


def lossy(normalizer=None, decoder=None):
    """A word-level tokenizer that cannot give every text back."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "end": 2, " ": 3, "The": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    if normalizer:
        words.normalizer = normalizer
    if decoder:
        words.decoder = decoder
    return HubTokenizer(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"), [2])


@pytest.mark.parametrize(
    ("tokenizer_", "text"),
    [
        (lossy(normalizers.Lowercase(), decoders.Fuse()), "The end"),
        (lossy(decoder=decoders.Fuse()), "the unheard"),
        pytest.param(
            lossy(),
            "the end",
        ),
    ],
    ids=["lower case", "unknown words", "spaces put in"],
)
def test_a_tokenizer_that_loses_text_is_refused_with_the_row(tokenizer_, text):
    with pytest.raises(TemplateError, match=r"^rows\.jsonl:7: .*do not decode"):
        tokenise(rendering((text, False), (" end", True)), tokenizer_, "rows.jsonl:7")


def test_an_answer_whose_indentation_is_lost_is_refused():
    # as SentencePiece does with remove_extra_whitespaces: the model would learn Python without its indentation
    letters = Tokenizer(models.BPE({letter: index for index, letter in enumerate("▁aeskd:\nrtunx")}, []))
    letters.normalizer = normalizers.Replace(Regex(" +"), " ")
    letters.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    letters.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer_ = HubTokenizer(PreTrainedTokenizerFast(tokenizer_object=letters), [0])
    with pytest.raises(TemplateError, match="do not decode"):
        tokenise(rendering(("asked:\n", False), ("    return x", True)), tokenizer_)


def test_the_tokenizer_that_is_refused_for_some_texts_serves_those_it_can_give_back():
    tokens = tokenise(rendering(("the", False), (" end", True)), lossy(decoder=decoders.Fuse()))
    assert tokens == Tokens((1, 3, 2), (False, True, True))


def test_a_first_token_that_is_learned_is_not_counted_as_supervised():
    assert Tokens((5, 6, 7), (True, False, True)).loss_count == 1
    assert Tokens((5, 6, 7), (False, True, True)).loss_count == 2
