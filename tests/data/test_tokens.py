"""Learned ids decode to exactly the answer and its end token, or the row is refused."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rankwise.data.example import Example, Message
from rankwise.data.templates import Segment, render
from rankwise.data.tokens import Tokens, tokenise
from rankwise.errors import TemplateError
from rankwise.models.tokenizer import HubTokenizer

END = "<|im_end|>"
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
TROUBLE = st.sampled_from(
    ["<|im", "|im_end|", "assistant\n", "👩‍👩‍👧 é", "e\u0301", "\u2028", "  \n\n ", "\ufffd", "ﷺ"]
)
CONTENT = st.one_of(UNICODE, st.lists(UNICODE | TROUBLE, min_size=1, max_size=4).map("".join)).filter(
    lambda text: text.strip() and "<|im_end|>" not in text and "<|im_start|>" not in text  # those are refused
)


@pytest.fixture(scope="session")
def tokenizer(hub_tokenizer):
    assert hub_tokenizer.pad_token_id == hub_tokenizer.eos_token_id, "the case in which masks by id go wrong"
    return HubTokenizer(hub_tokenizer, [hub_tokenizer.eos_token_id])


@pytest.fixture(scope="session")
def plain_tokenizer(hub_tokenizer):
    hub = copy.deepcopy(hub_tokenizer)
    hub.chat_template = None
    return HubTokenizer(hub, [hub.eos_token_id])


def learned_text(tokens, tokenizer):
    """Each stretch of learned ids, decoded."""
    texts, stretch = [], []
    for token, learned in [*zip(tokens.ids, tokens.learned, strict=True), (0, False)]:
        if learned:
            stretch.append(token)
        elif stretch:
            texts.append(tokenizer.decode(stretch))
            stretch = []
    return texts


def examples():
    return st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3)


def as_example(pairs):
    turns = [Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    return Example(tuple(turns), "rows.jsonl:7")


@settings(max_examples=150, deadline=None)
@given(pairs=examples())
def test_learned_ids_decode_to_exactly_answer_and_end_token(tokenizer, pairs):
    example = as_example(pairs)
    tokens = tokenise(render(example, tokenizer), tokenizer, example.where)
    assert len(tokens.ids) == len(tokens.learned)
    assert tokenizer.decode(tokens.ids) == tokenizer.text(example.messages)
    assert learned_text(tokens, tokenizer) == [answer + END for _, answer in pairs]


@settings(max_examples=50, deadline=None)
@given(pairs=examples())
def test_the_law_holds_without_a_chat_template(plain_tokenizer, pairs):
    example = as_example(pairs)
    tokens = tokenise(render(example, plain_tokenizer), plain_tokenizer, example.where)
    assert learned_text(tokens, plain_tokenizer) == [f" {answer}{END}" for _, answer in pairs]


@settings(max_examples=50, deadline=None)
@given(pairs=examples())
def test_a_row_is_encoded_as_it_will_be_when_served(tokenizer, pairs):
    # ids that no served prompt would ever hold are the quiet way to lose quality
    example = as_example(pairs)
    tokens = tokenise(render(example, tokenizer), tokenizer, example.where)
    assert list(tokens.ids) == tokenizer.encode(tokenizer.text(example.messages))[0]


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.tuples(st.text("abc é😀\n", min_size=1, max_size=6), st.booleans()), min_size=1, max_size=6))
def test_any_cut_of_a_text_gives_each_token_the_side_it_lies_on(tokenizer, texts):
    segments = [Segment(text, learned) for text, learned in texts]
    tokens = tokenise(segments, tokenizer)
    assert tokenizer.decode(tokens.ids) == "".join(text for text, _ in texts)
    learned = [token for token, flag in zip(tokens.ids, tokens.learned, strict=True) if flag]
    given_ = [token for token, flag in zip(tokens.ids, tokens.learned, strict=True) if not flag]
    assert tokenizer.decode(learned) == "".join(text for text, flag in texts if flag)
    assert tokenizer.decode(given_) == "".join(text for text, flag in texts if not flag)


def test_where_a_token_would_straddle_the_border_the_parts_are_encoded_apart(tokenizer):
    whole = "the capital"
    ids, offsets = tokenizer.encode(whole)
    cut = next(end - 1 for start, end in offsets if end - start > 1)
    assert not any(end == cut for _, end in offsets), "a token lies across the cut"
    segments = [Segment(whole[:cut], False), Segment(whole[cut:], True)]
    tokens = tokenise(segments, tokenizer)
    first, second = tokenizer.encode(whole[:cut])[0], tokenizer.encode(whole[cut:])[0]
    assert list(tokens.ids) == first + second != ids
    assert tokens.learned == (False,) * len(first) + (True,) * len(second)


def test_a_border_between_tokens_leaves_the_whole_encoding():
    # a tokenizer that opens every text with a word mark writes one into the middle if the parts are encoded apart
    letters = Tokenizer(models.BPE({letter: index for index, letter in enumerate("▁hi:yes")}, []))
    letters.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    letters.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer_ = HubTokenizer(PreTrainedTokenizerFast(tokenizer_object=letters), [0])
    assert tokenizer_.encode("hi:")[0] + tokenizer_.encode("yes")[0] != tokenizer_.encode("hi:yes")[0]
    tokens = tokenise([Segment("hi:", False), Segment("yes", True)], tokenizer_)
    assert list(tokens.ids) == tokenizer_.encode("hi:yes")[0]
    assert tokenizer_.hub.convert_ids_to_tokens(tokens.ids) == list("▁hi:yes")
    assert tokens.learned == (False,) * 4 + (True,) * 3


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
        (lossy(), "the end"),
    ],
    ids=["lower case", "unknown words", "spaces put in"],
)
def test_a_tokenizer_that_loses_text_is_refused_with_the_row(tokenizer_, text):
    with pytest.raises(TemplateError, match=r"^rows\.jsonl:7: .*do not decode"):
        tokenise([Segment(text, False), Segment(" end", True)], tokenizer_, "rows.jsonl:7")


def test_the_tokenizer_that_is_refused_for_some_texts_serves_those_it_can_give_back():
    tokens = tokenise([Segment("the", False), Segment(" end", True)], lossy(decoder=decoders.Fuse()))
    assert tokens == Tokens((1, 3, 2), (False, True, True))


def test_a_first_token_that_is_learned_is_not_counted_as_supervised():
    assert Tokens((5, 6, 7), (True, False, True)).supervised == 1
    assert Tokens((5, 6, 7), (False, True, True)).supervised == 2
