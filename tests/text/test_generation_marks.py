"""A template's own {% generation %} marks are used where they are right; where they are not, nothing wrong is learned.

Wrong marks are passed over: the answer is found by rendering up to it, or the row is refused.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.families import BY_NAME, KINDS, asked_prompts, learned_texts, runs, talk, written_by
from kit.sampling import draws
from rankwise.errors import TemplateError
from rankwise.rows.text.example import Example, Message, ToolCall
from rankwise.rows.text.rendering import UnstableTemplate, render, renderings
from rankwise.rows.text.tokenize import tokenise, tokenise_all

CHATML = BY_NAME["chatml"]
BEGIN, END = "{% generation %}", "{% endgeneration %}"
HEADER, STOP, BREAK = "{{ '<|im_start|>assistant\n' }}", "{{ '<|im_end|>' }}", "{{ '\n' }}"
CALLED = "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
SAY = "{{ m.content }}" + CALLED
GIVEN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
RIGHT = HEADER + BEGIN + SAY + STOP + END + BREAK
TURNS = ("Hi.", "Hello!", "Who are you?", "A model.")
LEARNED = ["Hello!<|im_end|>", "A model.<|im_end|>"]


def source(answer=RIGHT, given=GIVEN, ask=ASK):
    return (
        "{% for m in messages %}{% if m.role == 'assistant' %}" + answer + "{% else %}" + given + "{% endif %}"
        "{% endfor %}" + ask
    )


@cache
def template_with(written, kind="gpt2"):
    return written_by(CHATML, kind, written)


def learns(template, example):
    """How the answers were found, what is learned of them, and whether it is asked for so."""
    rendering = render(example, template)
    tokens = tokenise(rendering, template.tokenizer)
    same = [list(tokens.ids[:start]) for start, _ in runs(tokens)] == asked_prompts(example, template)
    assert tokens.as_asked is same
    return rendering.method, learned_texts(tokens, template.tokenizer), tokens.as_asked


@pytest.mark.parametrize("kind", KINDS)
def test_right_marks_are_used(kind):
    method, learned, as_asked = learns(written_by(CHATML, kind, source()), talk(*TURNS))
    assert method == "marks"
    assert [text.removeprefix(" " if kind == "prepend" else "") for text in learned] == LEARNED
    assert as_asked


BLANKS = HEADER + BEGIN + "{{ ' ' }}" + SAY + STOP + BREAK + END
WIDE = HEADER + BEGIN + SAY + STOP + BREAK + END
PARTED = HEADER + BEGIN + SAY + END + BEGIN + STOP + END + BREAK


@pytest.mark.parametrize(
    ("answer", "ask", "learned"),
    [
        (WIDE, ASK, LEARNED),
        (PARTED, ASK, LEARNED),
        (BLANKS, ASK, [" " + text for text in LEARNED]),
        (RIGHT.replace("%}", "-%}", 1).replace(BEGIN, "{%- generation -%}"), ASK.replace("\n' }}", "\n' -}}"), LEARNED),
    ],
    ids=["the line break behind the end too", "answer and end apart", "the space before it too", "with dashes"],
)
def test_marks_may_hold_white_space_around_the_answer_and_its_end(answer, ask, learned):
    method, texts, _ = learns(template_with(source(answer, ask=ask)), talk(*TURNS))
    assert (method, texts) == ("marks", learned)


WRONG = {
    "the end left out": source(HEADER + BEGIN + SAY + END + STOP + BREAK),
    "nothing": source(HEADER + BEGIN + END + SAY + STOP + BREAK),
    "the end alone": source(HEADER + SAY + BEGIN + STOP + END + BREAK),
    "the header too": source(BEGIN + HEADER + SAY + STOP + END + BREAK),
    "a part of the header too": source(
        "{{ '<|im_start|>' }}" + BEGIN + "{{ 'assistant\n' }}" + SAY + STOP + END + BREAK
    ),
    "the question": source(HEADER + SAY + STOP + BREAK, BEGIN + GIVEN + END),
    "the question's text": source(
        HEADER + SAY + STOP + BREAK, "{{ '<|im_start|>user\n' }}" + BEGIN + SAY + STOP + END + BREAK
    ),
    "the question and the answer": source(RIGHT, BEGIN + GIVEN + END),
    "everything": BEGIN + source(HEADER + SAY + STOP + BREAK) + END,
    "the last answer alone": source(
        HEADER + "{% if loop.last %}" + BEGIN + SAY + STOP + END + "{% else %}" + SAY + STOP + "{% endif %}" + BREAK
    ),
    "the first answer alone": source(
        HEADER + "{% if loop.last %}" + SAY + STOP + "{% else %}" + BEGIN + SAY + STOP + END + "{% endif %}" + BREAK
    ),
    "half of the answer": source(HEADER + "{{ m.content[:3] }}" + BEGIN + "{{ m.content[3:] }}" + STOP + END + BREAK),
    "words of the template": source(
        HEADER + BEGIN + "{{ 'Answer: ' }}" + SAY + STOP + END + BREAK,
        ask=ASK + "{% if add_generation_prompt %}{{ 'Answer: ' }}{% endif %}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt2", "first", "bare"])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_marks_are_passed_over(wrong, kind):
    assert learns(template_with(wrong, kind), talk(*TURNS)) == ("prefix", LEARNED, True)


SAME = [("same", "same"), ("same", "same", "same", "same"), ("yes", "yes", "no", "yes")]


@pytest.mark.parametrize("turns", SAME)
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_question_is_never_learned_though_it_be_the_answer_s_text(wrong, turns):
    template = template_with(wrong)
    tokens = tokenise(render(talk(*turns), template), template.tokenizer)
    assert [list(tokens.ids[:start]) for start, _ in runs(tokens)] == asked_prompts(talk(*turns), template)
    assert learned_texts(tokens, template.tokenizer) == [turn + "<|im_end|>" for turn in turns[1::2]]


ASKED = Message("user", "What weather?")
CALL = Message("assistant", "", tool_calls=(ToolCall("weather", {"city": "Oslo"}),))
CALLS = {
    "a call alone": (ASKED, CALL),
    "a call and an answer": (ASKED, CALL, Message("tool", "rain"), Message("assistant", "Take a coat.")),
}


@pytest.mark.parametrize("messages", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_nothing_but_the_call_is_learned_of_an_answer_without_words(wrong, messages):
    # the empty text of such an answer stands in any mark
    template = template_with(wrong)
    try:
        _, learned, as_asked = learns(template, Example(messages, "rows.jsonl:7"))
    except TemplateError:  # never guessed at
        return
    assert learned == ['weather{"city": "Oslo"}<|im_end|>', "Take a coat.<|im_end|>"][: len(messages) // 2]
    assert as_asked


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_marks_in_a_template_that_rewrites_are_refused(wrong):
    # nothing else tells where the answers stand
    shortened = wrong.replace("{{ m.content", "{{ '' if m.role == 'assistant' and not loop.last else m.content")
    template = template_with(shortened)
    with pytest.raises(TemplateError, match=r"^rows\.jsonl:7: "):
        render(talk(*TURNS), template)


def test_right_marks_are_used_in_a_template_that_rewrites_and_what_it_shows_is_told():
    # the first answer is marked where it stands; what stands before the second is not what was asked
    thought = "{% if loop.last %}{{ '<think></think>' }}{% endif %}"
    ask = ASK.replace("assistant\n' }}", "assistant\n<think></think>' }}")
    template = template_with(source(HEADER + thought + BEGIN + SAY + STOP + END + BREAK, ask=ask))
    assert learns(template, talk(*TURNS)) == ("marks", LEARNED, False)
    assert learns(template, talk(*TURNS[:2])) == ("marks", LEARNED[:1], True)
    sequences = renderings(talk(*TURNS), template, apart=True)
    tokens = tokenise_all(sequences, template.tokenizer)
    assert [each.as_asked for each in tokens] == [True, True]
    assert [learned_texts(each, template.tokenizer) for each in tokens] == [LEARNED[:1], LEARNED[1:]]


ASKED_OTHERWISE = {
    "a thought is opened": ASK.replace("\n' }}", "\n<think>\n' }}"),
    "the header's line break is not written": ASK.replace("\n' }}", "' }}"),
    "nothing is written": "",
    "another name is written": ASK.replace("assistant", "model"),
}


@pytest.mark.parametrize("ask", ASKED_OTHERWISE.values(), ids=ASKED_OTHERWISE)
@pytest.mark.parametrize("turns", [TURNS[:2], TURNS])
def test_marks_that_are_asked_for_otherwise_are_told(ask, turns):
    template = template_with(source(ask=ask))
    assert learns(template, talk(*turns)) == ("marks", LEARNED[: len(turns) // 2], False)


def test_without_marks_what_is_asked_for_otherwise_is_refused():
    plain = source(HEADER + SAY + STOP + BREAK, ask=ASKED_OTHERWISE["a thought is opened"])
    with pytest.raises(UnstableTemplate, match=r"^rows\.jsonl:7: .*turn 2 differently"):
        render(talk(*TURNS), template_with(plain))


def test_of_marked_answers_only_those_that_are_to_be_are_learned():
    template = template_with(source())
    example = talk(*TURNS)
    given = replace(example.messages[1], learned=False)
    method, learned, as_asked = learns(
        template, replace(example, messages=(example.messages[0], given, *example.messages[2:]))
    )
    assert (method, learned, as_asked) == ("marks", LEARNED[1:], True)


CONTENT = st.one_of(st.text(min_size=1, max_size=8), st.sampled_from(["same", "assistant\n", "user", "<|im_end|>"]))


@settings(max_examples=draws(60), deadline=None)
@given(
    turns=st.lists(CONTENT.filter(str.strip), min_size=2, max_size=4).filter(lambda turns: len(turns) % 2 == 0),
    places=st.lists(st.integers(0, 5), min_size=2, max_size=2).map(sorted),
)
def test_wherever_marks_stand_around_a_turn_only_its_answer_is_learned(turns, places):
    """The parts of an answer's turn, with the marks put between any two of them."""
    parts = ["{{ '<|im_start|>' }}", "{{ 'assistant\n' }}", "{{ m.content }}", "{{ '<|im_end|>' }}", "{{ '\n' }}"]
    begin, end = places
    marked = [*parts[:begin], BEGIN, *parts[begin:end], END, *parts[end:]]
    template = template_with(source("".join(marked)))
    example = talk(*turns)
    tokens = tokenise(render(example, template), template.tokenizer)
    wanted = tokenise(render(example, WITHOUT_MARKS), WITHOUT_MARKS.tokenizer)
    assert tokens == wanted


WITHOUT_MARKS = template_with(source(HEADER + SAY + STOP + BREAK))
