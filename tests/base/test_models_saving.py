"""The template that is saved with a merged model writes what the run was trained with, in transformers' own hands."""

from __future__ import annotations

import re

import pytest

from kit.families import FAMILIES, Family, written_by
from rankwise.base.saving import template_text
from rankwise.config.recipe import RECIPES, recipe_named
from rankwise.errors import TemplateError
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.example import Message
from rankwise.rows.text.tokenizer import HubTokenizer

TALK = [Message("user", "How many oars?"), Message("assistant", "27"), Message("user", "And boats?")]


def assert_same(template: ChatTemplate) -> None:
    hub = template.tokenizer.hub
    turns = [{"role": message.role, "content": message.content} for message in TALK]
    for count, answer_next in ((3, True), (2, False), (1, True)):
        messages, rendered = TALK[:count], turns[:count]
        try:
            wanted = template.text(messages, answer_next=answer_next)
        except TemplateError:
            continue  # of one question only
        found = hub.apply_chat_template(
            rendered, chat_template=template_text(template), tokenize=False, add_generation_prompt=answer_next,
            enable_thinking=False,
        )  # fmt: skip
        assert found == wanted
        assert template.tokenizer.encode(wanted) == hub(found, add_special_tokens=False)["input_ids"]
    assert not re.search(r"\{%-?\s*(end)?generation", str(template_text(template)))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("own", [True, False])
def test_a_model_s_template_and_the_plain_one(family: Family, own: bool) -> None:
    assert_same(written_by(family, "gpt2", None if own else ""))


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("family", [FAMILIES[0], FAMILIES[-1]], ids=lambda family: family.name)
def test_a_recipe_s(family: Family, name: str) -> None:
    hub = written_by(family, "gpt2").tokenizer.hub
    assert_same(ChatTemplate.of_recipe(HubTokenizer(hub, [hub.eos_token_id]), recipe_named(name)))


@pytest.mark.parametrize("left", ["", "-", "+"])
@pytest.mark.parametrize("right", ["", "-", "+"])
def test_a_mark_takes_as_much_white_space_with_it_as_it_did(left: str, right: str) -> None:
    source = (
        "{% for message in messages %}\n  {{ message.role }}:  \n  {%L generation R%}\n  {{ message.content }}  \n"
        "  {%L endgeneration R%}\n  .\n{% endfor %}\n"
    )
    family = next(family for family in FAMILIES if family.bos is None)
    assert_same(written_by(family, "gpt2", source.replace("L", left).replace("R", right)))
