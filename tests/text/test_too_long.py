"""What becomes of rows that are too long: left out, cut at the end, asked in fewer words, or parted into whole turns.

A tokenizer of letters and a template of few words make every length one that can be counted by hand.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.families import BY_NAME, Family, asked_prompts, learned_texts, runs, talk, written_by
from kit.sampling import draws
from rankwise.config.data import DataConfig
from rankwise.rows.text.encode import Encoder
from rankwise.rows.text.example import Example, Message

LETTERS = Family("letters", "", "<e>", ("<u>", "<a>"), bos=None, eos="<e>")
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '<u>' + m.content }}"
    "{% else %}{{ '<a>' + m.content + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
"""A token for each letter and each mark; a question of n letters takes n + 1, an answer n + 2."""
CHAT = written_by(LETTERS, "letters", TEMPLATE)


def outcome_of(example, limit, too_long, **spec):
    return Encoder(CHAT, CHAT.tokenizer, DataConfig(path="x", too_long=too_long, **spec), limit).encode([example])[0]


def shown(outcome):
    """Each sequence's text with « and » around what is learned."""
    texts = []
    for sequence in outcome.sequences:
        pieces = CHAT.tokenizer.hub.convert_ids_to_tokens(list(sequence.ids))
        for start, stop in reversed(runs(sequence)):
            pieces[start:stop] = ["«", *pieces[start:stop], "»"]
        texts.append("".join(pieces))
    return texts


def counts(outcome):
    return outcome.too_long, outcome.truncated, outcome.without_loss_tokens


ONE = talk("abcd", "xyz")  # <u>abcd<a>xyz<e> is ten tokens
TWO = talk("ab", "x", "cd", "y")  # <u>ab<a>x<e><u>cd<a>y<e> is twelve


def test_each_letter_and_each_mark_is_a_token():
    for example, size in ((ONE, 10), (TWO, 12)):
        assert outcome_of(example, 99, "drop").lengths == [size]


@pytest.mark.parametrize("too_long", ["drop", "truncate", "split"])
@pytest.mark.parametrize(("example", "limit"), [(ONE, 10), (TWO, 12), (TWO, 1000)])
def test_what_fits_stays_as_it_is(example, limit, too_long):
    outcome = outcome_of(example, limit, too_long)
    assert shown(outcome) == [CHAT.text(example.messages).replace("<a>", "<a>«").replace("<e>", "<e>»")]
    assert counts(outcome) == (0, 0, 0)
    assert outcome.methods == ["prefix"]
    assert outcome.sequences[0].ended


LITERAL = [
    # drop
    (ONE, 9, "drop", {}, [], [], (1, 0, 0)),
    (TWO, 11, "drop", {}, [], [], (1, 0, 0)),
    (TWO, 11, "drop", {"answers": "apart"}, ["<u>ab<a>«x<e>»"], [True], (1, 0, 0)),
    # truncate: the end goes, and with it the end token; a row of nothing but its question is left out
    (ONE, 9, "truncate", {}, ["<u>abcd<a>«xyz»"], [False], (0, 1, 0)),
    (ONE, 7, "truncate", {}, ["<u>abcd<a>«x»"], [False], (0, 1, 0)),
    (ONE, 6, "truncate", {}, [], [], (0, 1, 1)),
    (ONE, 1, "truncate", {}, [], [], (0, 1, 1)),
    (TWO, 11, "truncate", {}, ["<u>ab<a>«x<e>»<u>cd<a>«y»"], [False], (0, 1, 0)),
    (TWO, 10, "truncate", {}, ["<u>ab<a>«x<e>»<u>cd<a>"], [True], (0, 1, 0)),
    (TWO, 6, "truncate", {}, ["<u>ab<a>«x<e>»"], [True], (0, 1, 0)),
    (TWO, 5, "truncate", {}, ["<u>ab<a>«x»"], [False], (0, 1, 0)),
    (ONE, 9, "truncate", {"learned": "everything"}, ["«<u>abcd<a>xyz»"], [False], (0, 1, 0)),
    (ONE, 4, "truncate", {"learned": "everything"}, ["«<u>abc»"], [False], (0, 1, 0)),
    (
        TWO, 11, "truncate", {"answers": "apart"},
        ["<u>ab<a>«x<e>»", "<u>ab<a>x<e><u>cd<a>«y»"], [True, False], (0, 1, 0),
    ),
    (TWO, 10, "truncate", {"answers": "apart"}, ["<u>ab<a>«x<e>»"], [True], (0, 1, 1)),
    # split
    (ONE, 9, "split", {}, [], [], (1, 0, 0)),
    (TWO, 11, "split", {}, ["<u>ab<a>«x<e>»", "<u>cd<a>«y<e>»"], [True, True], (0, 1, 0)),
    (TWO, 6, "split", {}, ["<u>ab<a>«x<e>»", "<u>cd<a>«y<e>»"], [True, True], (0, 1, 0)),
    (TWO, 5, "split", {}, [], [], (2, 0, 0)),
    (
        talk("ab", "x", "cdefgh", "y", "ij", "z"), 9, "split", {},
        ["<u>ab<a>«x<e>»", "<u>ij<a>«z<e>»"], [True, True], (1, 1, 0),
    ),
    (
        talk("a", "b", "c", "d", "e", "f"), 10, "split", {},
        ["<u>a<a>«b<e>»<u>c<a>«d<e>»", "<u>e<a>«f<e>»"], [True, True], (0, 1, 0),
    ),
    (
        talk("a", "b", "c", "d", "e", "f", system="s"), 11, "split", {},
        ["s<u>a<a>«b<e>»<u>c<a>«d<e>»", "s<u>e<a>«f<e>»"], [True, True], (0, 1, 0),
    ),
    (
        talk("a", "b", "c", "d", "e", "f"), 9, "split", {"answers": "apart"},
        ["<u>a<a>«b<e>»", "<u>c<a>«d<e>»", "<u>e<a>«f<e>»"], [True] * 3, (0, 1, 0),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("example", "limit", "too_long", "spec", "texts", "ended", "counted"), LITERAL)
def test_to_the_letter(example, limit, too_long, spec, texts, ended, counted):
    outcome = outcome_of(example, limit, too_long, **spec)
    assert shown(outcome) == texts
    assert [sequence.ended for sequence in outcome.sequences] == ended
    assert counts(outcome) == counted
    assert len(outcome.methods) == len(texts)


def test_a_conversation_with_tools_is_not_parted():
    # its parts would lack the call that an answer rests on
    tool = {"type": "function", "function": {"name": "ab"}}
    outcome = outcome_of(replace(TWO, tools=(tool,)), 11, "split")
    assert outcome.problem is None or "tools" in outcome.problem
    assert outcome.sequences == []


def test_given_answers_are_not_learned_in_any_part():
    messages = [replace(TWO.messages[1], learned=False) if place == 1 else m for place, m in enumerate(TWO.messages)]
    outcome = outcome_of(replace(TWO, messages=tuple(messages)), 11, "split")
    assert shown(outcome) == ["<u>cd<a>«y<e>»"]
    assert counts(outcome) == (0, 1, 1)


def test_a_conversation_of_which_no_part_teaches_anything_is_counted():
    # what is to be learned stands in the turn that alone is too long
    example = talk("ab", "x", "cdefghij", "y")
    messages = [replace(m, learned=place != 1) for place, m in enumerate(example.messages)]
    outcome = outcome_of(replace(example, messages=tuple(messages)), 9, "split")
    assert shown(outcome) == []
    assert counts(outcome) == (1, 0, 1)


def test_dolly_drops_what_reaches_its_length_and_a_plain_length_keeps_it():
    row = {size: talk("a", "b" * (size - 4)) for size in (2047, 2048)}
    of_dolly, plain = DataConfig(path="x", recipe="dolly"), DataConfig(path="x", max_length=2048)
    kept = {
        (name, size): bool(Encoder(CHAT, CHAT.tokenizer, spec, spec.max_length).encode([example])[0].sequences)
        for name, spec in (("dolly", of_dolly), ("plain", plain))
        for size, example in row.items()
    }
    assert kept == {("dolly", 2047): True, ("dolly", 2048): False, ("plain", 2047): True, ("plain", 2048): True}


@pytest.mark.parametrize(("answers", "text"), [("together", "<u>ef<a>z<e><u>gh<a>«w<e>»"), ("apart", "<u>gh<a>«w<e>»")])
def test_parts_in_which_nothing_is_to_be_learned_are_left_out(answers, text):
    # apart, the three given answers make no sequence at all, so none is there whose length could be looked at
    example = talk("ab", "x", "cd", "y", "ef", "z", "gh", "w")
    messages = [replace(m, learned=m.content == "w") if m.role == "assistant" else m for m in example.messages]
    outcome = outcome_of(replace(example, messages=tuple(messages)), 12, "split", answers=answers)
    assert shown(outcome) == [text]
    assert outcome.problem is None
    # the first part's two given answers were a sequence, of which nothing was to be learned
    assert outcome.without_loss_tokens == (1 if answers == "together" else 0)


# GPT4All-J: a prompt of half the limit or more keeps its first min(half the limit, half of its own) letters.
CUT_PROMPT = [
    (talk("abcdef", "xyz"), 20, ["<u>abcdef<a>«xyz<e>»"], True, 0),  # eight tokens asked, of ten
    (talk("abcdefgh", "xyz"), 20, ["<u>abcd<a>«xyz<e>»"], True, 1),  # ten of ten: half of its eight letters
    (talk("abcdefghijklmnopqrstuvwxyz", "xyz"), 20, ["<u>abcdefghij<a>«xyz<e>»"], True, 1),  # no more than ten
    (talk("abcdefghijklmnopqrstuvwxyz", "uvwxyzabc"), 20, ["<u>abcdefghij<a>«uvwxyzab»"], False, 1),  # and still cut
    (talk("abcd", "abcdefghijklmnopqrst"), 20, ["<u>abcd<a>«abcdefghijklmn»"], False, 1),  # a short prompt stays
    (talk("abcdefghi", "x"), 21, ["<u>abcd<a>«x<e>»"], True, 1),  # half of 21 is 10, half of nine is four
    (talk("a", "xyz"), 6, ["<u>a<a>«xyz»"], False, 1),  # one letter is not cut to none
]  # fmt: skip


@pytest.mark.parametrize(("example", "limit", "texts", "ended", "truncated"), CUT_PROMPT)
def test_gpt4all_j_s_rule(example, limit, texts, ended, truncated):
    outcome = outcome_of(example, limit, "cut-prompt")
    assert shown(outcome) == texts
    assert [sequence.ended for sequence in outcome.sequences] == [ended]
    assert outcome.truncated == truncated


def test_a_context_goes_before_the_question_does():
    # it stands below the question, and the rule keeps what stands first: ten of twenty letters and two line breaks
    asked = Message("user", "abcdefgh", "ghijklmnop")
    outcome = outcome_of(Example((asked, Message("assistant", "xyz")), "x:1"), 20, "cut-prompt")
    assert shown(outcome) == ["<u>abcdefgh\n\n<a>«xyz<e>»"]


WORDS = st.text("abcde", min_size=1, max_size=12)
TALKS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5)
LIMITS = st.integers(1, 60)
TOO_LONG = ("drop", "truncate", "cut-prompt", "split")
REAL = written_by(BY_NAME["chatml"], "llama3")


def conversation(pairs, system, weights=()):
    example = talk(*(text for pair in pairs for text in pair), system=system)
    given_ = iter([*weights, *[True] * len(pairs)])
    messages = [replace(m, learned=next(given_)) if m.role == "assistant" else m for m in example.messages[:-1]]
    return replace(example, messages=(*messages, example.messages[-1]))


@pytest.mark.parametrize("answers", ["together", "apart"])
@pytest.mark.parametrize("learned", ["answers", "everything"])
@pytest.mark.parametrize("too_long", TOO_LONG)
@settings(max_examples=draws(60), deadline=None)
@given(
    pairs=TALKS, limit=LIMITS, system=st.none() | WORDS, template=st.sampled_from([CHAT, REAL]),
    weights=st.lists(st.booleans(), max_size=4),
)  # fmt: skip
def test_whatever_is_kept_fits_and_teaches_something(
    too_long, learned, answers, pairs, limit, system, template, weights
):
    example = conversation(pairs, system, weights)
    spec = DataConfig(path="x", too_long=too_long, learned=learned, answers=answers)
    (outcome,) = Encoder(template, template.tokenizer, spec, limit).encode([example])
    assert outcome.problem is None
    assert len(outcome.methods) == len(outcome.sequences)
    end = template.end_ids[0]
    for sequence in outcome.sequences:
        assert len(sequence.ids) == len(sequence.loss_mask) <= limit
        assert sequence.loss_count > 0
        if learned == "answers":
            assert sequence.ended is all(sequence.ids[stop - 1] == end for _, stop in runs(sequence))
            assert sequence.as_asked
    lost = outcome.too_long + outcome.without_loss_tokens + outcome.truncated
    assert outcome.sequences or lost, "what is left out is counted"
    if outcome.lengths and max(outcome.lengths) <= limit and too_long != "cut-prompt":
        assert counts(outcome) == (0, 0, 0)


def texts_learned(outcome, template):
    return [text for sequence in outcome.sequences for text in learned_texts(sequence, template.tokenizer)]


@pytest.mark.parametrize("answers", ["together", "apart"])
@settings(max_examples=draws(150), deadline=None)
@given(pairs=TALKS, limit=LIMITS, system=st.none() | WORDS, template=st.sampled_from([CHAT, REAL]))
def test_split_keeps_every_answer_that_fits_once_and_in_order(answers, pairs, limit, system, template):
    numbered = [(asked, f"{number}{said}") for number, (asked, said) in enumerate(pairs)]
    spec = DataConfig(path="x", too_long="split", answers=answers)
    (outcome,) = Encoder(template, template.tokenizer, spec, limit).encode([conversation(numbered, system)])
    end = template.tokenizer.decode([template.end_ids[0]])
    alone = [len(template.tokenizer.encode(template.text(conversation([pair], system).messages))) for pair in numbered]
    fitting = [said + end for (_, said), size in zip(numbered, alone, strict=True) if size <= limit]
    whole = max(outcome.lengths) <= limit
    assert texts_learned(outcome, template) == ([said + end for _, said in numbered] if whole else fitting)
    if not whole:
        assert outcome.too_long == len(numbered) - len(fitting)


@settings(max_examples=draws(100), deadline=None)
@given(pairs=TALKS, limit=LIMITS, system=st.none() | WORDS)
def test_the_parts_of_a_conversation_are_as_long_as_they_can_be(pairs, limit, system):
    outcome = outcome_of(conversation(pairs, system), limit, "split")
    head = len(CHAT.tokenizer.encode(system or ""))
    sizes = [len(sequence.ids) for sequence in outcome.sequences]
    if outcome.too_long == 0:  # the first pair of the next part would not have fitted
        firsts = [list(sequence.ids)[head:].index(CHAT.end_ids[0]) + 1 for sequence in outcome.sequences]
        assert all(size + first > limit for size, first in zip(sizes, firsts[1:], strict=False))
    assert all(list(b.ids[:head]) == list(a.ids[:head]) for a, b in pairwise(outcome.sequences))


@settings(max_examples=draws(200), deadline=None)
@given(asked=st.text("abcde", min_size=1, max_size=60), said=WORDS, limit=st.integers(6, 80))
def test_cut_prompt_keeps_the_whole_answer_where_it_fits(asked, said, limit):
    outcome = outcome_of(talk(asked, said), limit, "cut-prompt")
    prompt = len(asked) + 2
    kept = asked if prompt < limit // 2 else asked[: min(limit // 2, len(asked) // 2)] or asked[:1]
    row = f"<u>{kept}<a>{said}<e>"
    size = len(kept) + len(said) + 3
    if len(kept) + 2 >= limit:
        assert outcome.sequences == []
        assert outcome.without_loss_tokens == 1
        return
    (sequence,) = outcome.sequences
    pieces = CHAT.tokenizer.hub.convert_ids_to_tokens(list(sequence.ids))
    assert row.startswith("".join(pieces))
    assert len(pieces) == min(size, limit)
    assert sequence.ended is (size <= limit)
    assert outcome.truncated == (1 if kept != asked or size > limit or prompt >= limit // 2 else 0)
    (start, _), *_ = runs(sequence)
    assert list(sequence.ids[:start]) == asked_prompts(talk(kept, said), CHAT)[0]


@settings(max_examples=draws(100), deadline=None)
@given(pairs=TALKS, limit=LIMITS)
def test_truncate_keeps_the_beginning(pairs, limit):
    example = conversation(pairs, None)
    whole = outcome_of(example, 10**6, "drop").sequences[0]
    outcome = outcome_of(example, limit, "truncate")
    for sequence in outcome.sequences:
        assert list(sequence.ids) == list(whole.ids[:limit])
        assert list(sequence.loss_mask) == list(whole.loss_mask[:limit])
    assert bool(outcome.sequences) is any(whole.loss_mask[1:limit])


def test_an_end_that_is_cut_off_is_told():
    outcomes = [outcome_of(ONE, limit, "truncate") for limit in range(1, 11)]
    assert [[sequence.ended for sequence in outcome.sequences] for outcome in outcomes] == [
        *[[]] * 6, [False], [False], [False], [True],
    ]  # fmt: skip
