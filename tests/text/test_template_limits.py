"""A template that runs for ever, fills the memory or tries to escape ends in one sentence, and nothing else ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from families import FAMILIES, talk, template_of
from hostile_templates import ENDLESS, ESCAPES, HOSTILE, LARGE
from rankwise.config.data import DataConfig
from rankwise.errors import ModelError, ResourceError, TemplateError
from rankwise.text import template_process
from rankwise.text.chat_template import ChatTemplate
from rankwise.text.encode import Encoder
from rankwise.text.example import Example, Message
from rankwise.text.template_process import Conversation, TemplateProcess, render_conversations
from rankwise.text.tokenizer import HubTokenizer

SOUND = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


def text_of(source, messages=TURNS, **values):
    ((result,),) = render_conversations(source, values, [Conversation(messages, None, [(len(messages), False)])])
    if isinstance(result, TemplateError):
        raise result
    return result[0]


def outcome_of(source, hub):
    """What a row ends in: the sentence about it."""
    try:
        template = ChatTemplate(HubTokenizer(hub, [2]), source, "model")
        (outcome,) = Encoder(template, template.tokenizer, DataConfig(path="x"), 512).encode([talk("hi", "yes")])
    except ModelError as error:
        return str(error)
    return outcome.problem


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused_in_one_sentence_and_the_next_one_renders(name, hub_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem = outcome_of(HOSTILE[name], hub_tokenizer)
    assert problem is not None and "\n" not in problem and len(problem) < 600
    assert not (tmp_path / "escaped").exists()
    if name in ENDLESS:
        assert "more than 1 second" in problem
    assert text_of(SOUND) == "user: hi\nassistant: yes\n"
