"""Segments joined are the template's own text, learned is each answer with its end token, and anything else is refused.

Templates here are real chat templates run by transformers, and one of our own for models that bring none.
"""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sampling import draws
from rankwise.errors import TemplateError
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import BREAK, Example, Message
from rankwise.rows.text.rendering import render, renderings
from rankwise.rows.text.tokenizer import HubTokenizer

END = "<|im_end|>"
LOOP = "{% for m in messages %}"
PROMPT = "{% endfor %}{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
TEMPLATES = {
    "chatml": None,
    "plain": "",
    "space before the answer": (
        LOOP + "{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
        "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
    ),
    "stripped": LOOP + "{{ '<' + m.role[0] + '>' + m.content | trim + eos_token }}" + PROMPT,
    "words after the end": LOOP + "{{ '<' + m.role[0] + '>' + m.content + eos_token + '</turn>\n' }}" + PROMPT,
}


@pytest.fixture(scope="session")
def with_template(hub_tokenizer):
    """Another chat template over the shared tokenizer; None leaves ChatML, an empty one is none at all."""

    def make(template, ends=None):
        hub = copy.deepcopy(hub_tokenizer)
        if template is not None:
            hub.chat_template = template or None
        return ChatTemplate.of_model(HubTokenizer(hub, [hub.eos_token_id] if ends is None else ends))

    return make


def conversation(*contents, system=None):
    turns = [Message("user" if index % 2 == 0 else "assistant", text) for index, text in enumerate(contents)]
    return Example(((Message("system", system),) if system is not None else ()) + tuple(turns), "rows.jsonl:7")


def learned(example, template):
    return [segment.text for segment in render(example, template).segments if segment.learned]


def refusal(example, template):
    with pytest.raises(TemplateError) as caught:
        render(example, template)
    assert "rows.jsonl:7" in str(caught.value)
    return str(caught.value)


PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=[BREAK]), min_size=1, max_size=12)
MARKERS = st.sampled_from([END, "<|im_start|>", "<|endoftext|>"])  # typed by a person, they are text
CONTENT = st.lists(PLAIN | MARKERS, min_size=1, max_size=3).map("".join).filter(str.strip)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=draws(25), deadline=None)
@given(contents=st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3), system=st.none() | CONTENT)
def test_segments_joined_are_the_templates_text_and_learned_is_the_answers(with_template, name, contents, system):
    template = with_template(TEMPLATES[name])
    example = conversation(*[text for pair in contents for text in pair], system=system)
    rendering = render(example, template)
    assert rendering.text == template.text(example.messages)
    learned = [segment.text for segment in rendering.segments if segment.learned]
    answers = [template.tokenizer.special.guarded(answer) for _, answer in contents]
    assert [answer.replace(BREAK, "") for answer in answers] == [answer for _, answer in contents]
    if name == "stripped":
        assert learned == [answer.strip() + END for answer in answers]
    elif name in ("space before the answer", "plain"):
        assert learned == [" " + answer + END for answer in answers]
    else:
        assert learned == [answer + END for answer in answers]
    assert all(segment.text for segment in rendering.segments)


def test_given_and_learned_take_turns_in_a_conversation(with_template):
    rendering = render(conversation("a", "b", "c", "d", system="s"), with_template(None))
    assert rendering.as_asked
    assert [(segment.text, segment.learned) for segment in rendering.segments] == [
        (f"<|im_start|>system\ns{END}\n<|im_start|>user\na{END}\n<|im_start|>assistant\n", False),
        (f"b{END}", True),
        (f"\n<|im_start|>user\nc{END}\n<|im_start|>assistant\n", False),
        (f"d{END}", True),
        ("\n", False),
    ]


def test_the_end_of_an_answer_is_the_first_end_token_after_it(with_template, hub_tokenizer):
    other = hub_tokenizer.convert_tokens_to_ids("<|endoftext|>")
    template = with_template(
        LOOP + "{{ '<' + m.role[0] + '>' + m.content + '" + END + "<|endoftext|>' }}" + PROMPT,
        ends=[other, hub_tokenizer.eos_token_id],
    )
    assert learned(conversation("a", "b"), template) == [f"b{END}"]


def test_an_answer_that_repeats_the_question_is_learned_once(with_template):
    segments = render(conversation("same", "same"), with_template(None)).segments
    assert [segment.learned for segment in segments] == [False, True, False]
    assert "same" in segments[0].text


REWRITES = {
    "drops earlier answers": (
        LOOP + "{% if m.role == 'assistant' and not loop.last %}{{ '<a>' + eos_token }}"
        "{% else %}{{ '<' + m.role[0] + '>' + m.content + eos_token }}{% endif %}" + PROMPT
    ),
    "numbers from the end": (
        LOOP + "{{ '<' + m.role[0] + '>' + m.content + loop.revindex | string + eos_token }}" + PROMPT
    ),
    "counts the turns first": (
        "{{ messages | length }}" + LOOP + "{{ '<' + m.role[0] + '>' + m.content + eos_token }}" + PROMPT
    ),
}


@pytest.mark.parametrize("name", REWRITES)
def test_a_template_that_rewrites_earlier_turns_is_refused(with_template, name):
    message = refusal(conversation("a", "b", "c", "d"), with_template(REWRITES[name]))
    assert "differently" in message
    assert "one answer each" in message and "data.answers=apart" in message
    with pytest.raises(TemplateError, match="differently"):
        renderings(conversation("a", "b", "c", "d"), with_template(REWRITES[name]))


def test_each_answer_apart_is_asked_for_as_it_will_be(with_template):
    template = with_template(REWRITES["drops earlier answers"])
    example = conversation("a", "b", "c", "d", system="s")
    sequences = renderings(example, template, separately=True)
    assert len(sequences) == 2
    for rendering, count, answer in zip(sequences, (3, 5), "bd", strict=True):
        assert rendering.text == template.text(example.messages[:count])
        given, said = rendering.segments[:2]
        assert (given.learned, said.learned) == (False, True)
        assert given.text == template.text(example.messages[: count - 1], answer_next=True)
        assert said.text == answer + END and len(rendering.segments) == 2


def test_a_template_that_drops_earlier_answers_still_serves_rows_of_one_answer(with_template):
    assert learned(conversation("a", "b"), with_template(REWRITES["drops earlier answers"])) == [f"b{END}"]


def test_a_template_whose_prompt_is_not_the_beginning_of_the_answer_is_refused(with_template):
    template = with_template(
        LOOP + "{{ '<' + m.role[0] + '>' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<model>' }}{% endif %}"
    )
    assert "differently" in refusal(conversation("a", "b"), template)


def test_a_template_without_an_end_token_is_refused(with_template):
    message = refusal(conversation("a", "b"), with_template(LOOP + "{{ '<' + m.role[0] + '>' + m.content }}" + PROMPT))
    assert "no end token" in message
    assert END in message
    assert "not learn to stop" in message


def test_a_model_without_an_end_token_is_refused_with_the_plain_template_too(with_template):
    assert "no end token" in refusal(conversation("a", "b"), with_template("", ends=[]))


@pytest.mark.parametrize(
    "change",
    ["m.content | upper", "m.content[:5]", "m.content | replace('e', '')", "'I say: ' + m.content", "''"],
)
def test_a_template_that_changes_the_answer_is_refused(with_template, change):
    template = with_template(LOOP + "{{ '<' + m.role[0] + '>' + (" + change + ") + eos_token }}" + PROMPT)
    message = refusal(conversation("a", "because of it"), template)
    assert "changes the answer" in message
    assert "because of it" in message


def test_a_template_that_adds_words_after_the_answer_is_refused(with_template):
    # words between answer and end token were learned as if they were the answer's own
    template = with_template(LOOP + "{{ '<' + m.role[0] + '>' + m.content + ' (signed)' + eos_token }}" + PROMPT)
    refusal(conversation("a", "because of it"), template)
