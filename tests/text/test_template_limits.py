"""A template that runs for ever, fills the memory or tries to escape ends in one sentence, and nothing else ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from kit.families import talk
from kit.hostile_templates import ENDLESS, HOSTILE
from rankwise.config.data import DataConfig
from rankwise.errors import ModelError, ResourceError, TemplateError
from rankwise.rows.text import template_process
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.encode import Encoder
from rankwise.rows.text.template_process import Conversation, TemplateProcess, render_conversations
from rankwise.rows.text.tokenizer import HubTokenizer

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
def test_a_hostile_template_is_refused_in_one_sentence_and_the_next_one_renders(
    name, hub_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    problem = outcome_of(HOSTILE[name], hub_tokenizer)
    assert problem is not None and "\n" not in problem and len(problem) < 600
    assert not (tmp_path / "escaped").exists()
    if name in ENDLESS:
        assert "more than 1 second" in problem
    assert text_of(SOUND) == "user: hi\nassistant: yes\n"


def test_what_a_template_may_write_goes_by_the_conversation_s_length():
    long = [{"role": "user", "content": "x" * 20_000}]
    assert len(text_of("{{ 'x' * 49999 }}")) == 49_999
    assert len(text_of("{{ messages[0].content * 10 }}", long)) == 200_000
    for source in ("{{ 'x' * 60000 }}", "{{ ('x ' * 99999)|wordwrap(1) }}"):
        with pytest.raises(
            ModelError,
            match=r"more than 50,000 characters \(and 8 for each that it is given\) for a conversation of",
        ):
            text_of(source)


TOOL = {"type": "function", "function": {"name": "look_up", "description": "é <b>", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"what": "ü", "n": [1, 2.5, None, True]}}}
RULES = {
    "marks": "{% for m in messages %}{{ m.role }} {% generation %}{{ m.content }}{{ eos }}{% endgeneration %}\n"
    "{% endfor %}",
    "marks in a set block": "{% for m in messages %}{% set x %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% endset %}"
    "-{{ x }}{% endfor %}",
    "json": "{{ tools | tojson }}{{ tools | tojson(indent=2) }}"
    "{{ messages | tojson(sort_keys=true, separators=(',', ':')) }}",
    "white space": "  {% if tools %}  \n  {{ 'a' }} \n {% endif %}\n\n {{- messages[0].content -}} \n x",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "namespace and dict": "{% set n = namespace(self=1, b=2) %}{% set n.b = 3 %}{{ n.b }}{{ n.self }}"
    "{{ dict(a=1, **{'b': 2}) }}"
    "{{ dict.fromkeys(['x'], 0) }}",
    "hidden names": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "arguments as text": "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{{ c.function.arguments + '!' }}{% endfor %}"
    "{% endfor %}",
    "undefined": "{{ documents is none }}{{ nothing is defined }}{{ enable_thinking }}{{ nothing.more }}",
    "no mutation": "{{ messages.append(1) }}",
    "refused": "{{ raise_exception('no ' + messages[0].role) }}",
    "a date": "{{ strftime_now('%Y') }}",
    "not a template": "{% for %}",
    "next": "{{ add_generation_prompt }}{{ messages | length }}{{ tools is none }}",
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("answer_next", [True, False])
def test_rules_are_those_of_transformers(name, tools, answer_next):
    messages = [TURNS[0], TURNS[1] | {"tool_calls": [CALL]}, {"role": "user", "content": "lone \ud800 \u2028 \x00 😀"}]
    values = {"eos": "</s>", "enable_thinking": False}
    asked = Conversation(messages, tools, [(3, answer_next), (2, False), (1, True)])
    (results,) = render_conversations(RULES[name], values, [asked])
    for (count, next_), result in zip(asked.cuts, results, strict=True):
        shown = messages[:count]
        for arguments in (CALL["function"]["arguments"], json.dumps(CALL["function"]["arguments"], ensure_ascii=False)):
            call = CALL | {"function": CALL["function"] | {"arguments": arguments}}
            given = [turn | {"tool_calls": [call]} if "tool_calls" in turn else turn for turn in shown]
            try:
                (text,), spans = render_jinja_template(
                    [given], tools=tools, chat_template=RULES[name], add_generation_prompt=next_,
                    return_assistant_tokens_mask="marks" in name, **values,
                )  # fmt: skip
                break
            except TypeError:
                continue
            except Exception as error:
                text, spans = str(error), []
                break
        if isinstance(result, TemplateError):
            assert str(result) == text or "underscore" in text
        else:
            assert result[0] == text
            assert count < 3 or result[1] == (spans[0] if spans else [])


def test_several_conversations_are_rendered_as_one_by_one():
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    source += "{% if messages[0].content == 'b' %}{{ raise_exception('b') }}{% endif %}"
    many = [Conversation([{"role": "user", "content": text}], None, [(1, False)]) for text in ("a", "b", "c") * 300]
    results = [result for (result,) in render_conversations(source, {}, many)]
    shown = [str(result) if isinstance(result, TemplateError) else result[0] for result in results]
    assert shown == ["a", "b", "c"] * 300


def test_a_long_row_that_exceeds_a_limit_is_refused_alone():
    source = (
        "{% if messages[0].content|length > 30000 %}{% set x = 'x' * 10**9 %}{% endif %}{{ messages[0].content[:3] }}"
    )
    long, short = ({"role": "user", "content": text} for text in ("long" * 10_000, "short"))
    many = [Conversation([turn], None, [(1, False)]) for turn in (short, long, short)]
    results = [result for (result,) in render_conversations(source, {}, many)]
    assert [result[0] for result in (results[0], results[2])] == ["sho", "sho"]
    assert "512 MB" in str(results[1])


def test_a_process_that_was_killed_is_started_again():
    assert text_of(SOUND)
    own = template_process._PROCESS
    assert own._process is not None
    os.kill(own._process.pid, signal.SIGKILL)
    own._process.wait()
    assert text_of(SOUND) == "user: hi\nassistant: yes\n"


def test_a_fork_has_a_process_of_its_own():
    assert text_of(SOUND)
    child = os.fork()
    if child == 0:
        os._exit(0 if text_of(SOUND) == "user: hi\nassistant: yes\n" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert text_of(SOUND) == "user: hi\nassistant: yes\n"


PARENT = """
import os, signal, sys
from rankwise.rows.text import template_process
from rankwise.rows.text.template_process import Conversation, render_conversations
render_conversations("x", {}, [Conversation([], None, [(0, False)])])
print(template_process._PROCESS._process.pid, flush=True)
if len(sys.argv) > 1:
    loop = "{% for i in range(99999) %}"
    template_process.template_renderer.SECONDS = 60
    render_conversations(loop * 2 + "{% endfor %}" * 2, {}, [Conversation([], None, [(0, False)])])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_with_its_parent_whatever_ends_that(busy):
    command = [sys.executable, "-c", PARENT, *(["busy"] if busy else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        number = int(parent.stdout.readline())
        parent.kill()
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    os.kill(number, signal.SIGKILL)
    raise AssertionError("still there")


def test_where_no_process_can_be_started_it_is_said_with_a_way_out(monkeypatch):
    own = TemplateProcess()
    monkeypatch.setattr(template_process, "_PROCESS", own)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ResourceError, match=r"No such file.*RANKWISE_UNLIMITED_TEMPLATES=1"):
        text_of(SOUND)
    monkeypatch.setenv("RANKWISE_UNLIMITED_TEMPLATES", "1")
    assert text_of(SOUND) == "user: hi\nassistant: yes\n" and own._process is None
