"""The answers of a very long conversation are where rendering up to each of them finds them."""

from __future__ import annotations

import pytest

from kit.families import BY_NAME, SOME, talk, template_of, written_by
from rankwise.rows.text import chat_template, many_answers, rendering
from rankwise.rows.text.many_answers import COMPARED, answers_of, compared
from rankwise.rows.text.rendering import render

CHATML = BY_NAME["chatml"]
TURNS = [text for n in range(30) for text in (f"Question {n}?", f"assistant {n % 3}" if n % 4 else f" a\nb {n} ")]


@pytest.fixture
def few(monkeypatch):
    for module in (chat_template, many_answers, rendering):
        monkeypatch.setattr(module, "COMPARED", 8)


def rendered(example, template):
    try:
        return render(example, template)
    except Exception as error:
        return type(error)


@pytest.mark.parametrize(("family", "kind"), SOME, ids=lambda one: getattr(one, "name", one))
def test_the_rendering_is_that_of_each_prompt(family, kind, monkeypatch):
    template, example = template_of(family, kind), talk(*TURNS)
    exact = rendered(example, template)
    for module in (chat_template, many_answers, rendering):
        monkeypatch.setattr(module, "COMPARED", 8)
    assert rendered(example, template) == exact


def test_prompts_that_are_compared_are_the_first_the_last_and_some_between():
    assert compared(range(COMPARED)) == list(range(COMPARED))
    many = compared(range(1, 4001, 2))
    assert len(many) == COMPARED == len(set(many)) and many[:2] == [1, 3] and many[-2:] == [3997, 3999]
    assert many == sorted(many)


@pytest.mark.parametrize("where", ["first", "last", "index % 2 == 0"])
def test_a_template_that_writes_the_end_otherwise_is_still_refused(few, where):
    test = where if " " in where else f"loop.{where}"
    source = (
        "{% for m in messages %}{% set index = loop.index0 // 2 %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.revindex0 > 1 and ("
        + test.replace("loop.last", "true")
        + " or loop.index0 == 1) %}!{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = written_by(CHATML, "gpt2", source)
    with pytest.raises(Exception, match=r"inside the whole conversation|changes the answer|does not match"):
        render(talk(*TURNS), template)


def test_an_answer_that_is_empty_is_found_by_each_prompt(few):
    example = talk(*TURNS[:20], "and?", "", *TURNS[20:])
    assert answers_of(example.messages)[10] == 21
    learned = [segment.text for segment in render(example, template_of(CHATML, "gpt2")).segments if segment.learned]
    assert len(learned) == 31 and learned[10] == "<|im_end|>"
