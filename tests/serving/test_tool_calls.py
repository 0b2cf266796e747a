"""Calls of tools are read from what models write around them, and from nothing else."""

from __future__ import annotations

import json

import pytest

from rankwise.rows.text.example import ToolCall, calls_in

ARGUMENTS = {"city": 'Oslo {"not a call": "}"}', "days": [1, {"at": 2}]}
CALL = json.dumps({"name": "weather", "arguments": ARGUMENTS})
FORMS = {
    "Hermes": (f"<tool_call>\n{CALL}\n</tool_call>", ""),
    "Hermes, content before": (f"Let me look.\n<tool_call>\n{CALL}\n</tool_call>", "Let me look."),
    "Mistral": (f"[TOOL_CALLS] [{CALL}]", ""),
    "Llama": (json.dumps({"name": "weather", "parameters": ARGUMENTS}), ""),
    "Llama, by its mark": ("<|python_tag|>" + json.dumps({"name": "weather", "parameters": ARGUMENTS}), ""),
    "arguments as text": (json.dumps({"name": "weather", "arguments": json.dumps(ARGUMENTS)}), ""),
    "in a block": (f"Sure:\n```json\n{CALL}\n```", "Sure:"),
}
NONE = {
    "plain": "It is 7 degrees.", "another tool": CALL.replace("weather", "delete_all"), "half": CALL[:-3],
    "no object": '{"name": "weather", "arguments": [1]}', "braces": "{" * 5000, "deep": '{"a":' * 5000,
    "a set": "The set {1, 2} has two members.",
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_call_is_read_in_each_form(name):
    text, content = FORMS[name]
    assert calls_in(text, ("time", "weather")) == (content, [ToolCall("weather", ARGUMENTS)])


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_call_stays_the_answer(name):
    assert calls_in(NONE[name], ("time", "weather")) == (NONE[name], [])


def test_several_calls_keep_their_order():
    text = f"<tool_call>{CALL}</tool_call>\n<tool_call>" + '{"name": "time", "arguments": {}}</tool_call>'
    assert calls_in(text, ("time", "weather")) == ("", [ToolCall("weather", ARGUMENTS), ToolCall("time", {})])
