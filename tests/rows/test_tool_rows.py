"""The calls of a row are held against its tools: what a schema does not allow is refused with file and line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kit.command import rankwise
from rankwise.errors import DataError
from rankwise.rows.forms.formats import parse_row

SCHEMA = {
    "type": "object", "required": ["city"],
    "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"type": "string", "enum": ["C", "F"]},
        "at": {"type": ["number", "null"]}, "tags": {"type": "array", "items": {"type": "string"}},
        "much": {"type": "many"},
        "place": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]}, "absent": None,
    },
}  # fmt: skip
OPEN = {"type": "object", "additionalProperties": True, "properties": {"a": {"type": "boolean"}}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"name": "open", "parameters": OPEN}, {"name": "closed", "parameters": {"additionalProperties": False}},
    {"name": "free", "parameters": {"city": {"type": "str"}}}, {"name": "bare"},
]  # fmt: skip


def row(name: str, arguments: Any, tools: Any = TOOLS) -> dict[str, Any]:
    call = {"function": {"name": name, "arguments": arguments}}
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call]}]
    return {"messages": turns} | ({"tools": tools} if tools else {})


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("weather", {"city": "Rome"}), ("weather", '{"city": "Rome", "days": 2}'),
        ("weather", {"city": "x", "days": 2.0}),
        ("weather", {"city": "x", "unit": "C"}), ("weather", {"city": "x", "at": None}),
        ("weather", {"city": "x", "at": 1}),
        ("weather", {"city": "x", "tags": ["a"], "place": {"lat": 1}}), ("weather", {"city": "x", "much": [1]}),
        ("weather", {"city": "x", "days": None, "absent": None}), ("open", {"a": True, "b": 1}), ("closed", {}),
        ("free", {"town": 1}), ("bare", {"a": 1}),
    ],
)  # fmt: skip
def test_calls_that_fit_are_read(name, arguments):
    parse_row(row(name, arguments), "messages", "f:1")


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("wether", {"city": "x"}, 'which is none of its tools (\'weather\', \'open\', \'closed\', \'free\', \'bare\')'),
        ("weather", {}, "the argument city is missing"),
        ("weather", {"city": 3}, "the argument city is 3, and its type is string"),
        ("weather", {"city": None}, "the argument city is null, and its type is string"),
        ("weather", {"city": "x", "days": "2"}, 'the argument days is \'2\', and its type is integer'),
        ("weather", {"city": "x", "days": True}, "the argument days is true, and its type is integer"),
        ("weather", {"city": "x", "days": 2.5}, "the argument days is 2.5, and its type is integer"),
        ("weather", {"city": "x", "unit": "K"}, "the argument unit is 'K', and it can be 'C', 'F'"),
        ("weather", {"city": "x", "at": "now"}, "its type is number or null"),
        ("weather", {"city": "x", "tags": ["a", 1]}, "the argument tags[1] is 1, and its type is string"),
        ("weather", {"city": "x", "place": {}}, "the argument place.lat is missing"),
        ("weather", {"city": "x", "place": {"lat": 1, "lon": 2}}, "there is no argument place.lon"),
        ("weather", {"city": "x", "day": 1}, 'there is no argument day. Did you mean "days"?'),
        ("open", {"a": 1}, "the argument a is 1, and its type is boolean"),
        ("closed", {"a": 1}, "there is no argument a"),
    ],
)  # fmt: skip
def test_calls_that_do_not_fit_are_refused(name, arguments, said):
    with pytest.raises(DataError) as caught:
        parse_row(row(name, arguments), "messages", "f:1")
    assert str(caught.value).startswith("f:1: calls ") and said in str(caught.value)
    parse_row(row(name, arguments, tools=None), "messages", "f:1")  # nothing is known of the tools


CALL, ANSWER = {"name": "bare", "arguments": {}}, {"role": "assistant", "content": "Fine."}
ASK, RESULT = {"role": "user", "content": "?"}, {"role": "tool", "content": "7"}


def calling(*ids: str | None) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": one, "function": CALL} for one in ids]}


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([ASK, calling(None)], None), ([ASK, calling("a", "b")], None), ([ASK, calling(None), RESULT, ANSWER], None),
        ([ASK, calling("a"), RESULT, ANSWER], None), ([ASK, calling("a", "b"), RESULT, ANSWER], None),
        ([ASK, calling("a"), calling("b"), *(RESULT | {"tool_call_id": one} for one in "ba"), ANSWER], None),
        ([ASK, calling(None), ASK, ANSWER], "turn 2 calls a tool, and turn 3 is not the result"),
        ([ASK, calling("a"), ANSWER], "turn 2 calls a tool, and turn 3 is not the result"),
        ([ASK, calling("a", "b"), RESULT | {"tool_call_id": "b"}, ANSWER], "turn 4 goes on, and the call 'a' before"),
    ],
)  # fmt: skip
def test_a_call_has_its_result_where_the_conversation_goes_on(turns, said):
    if said is None:
        parse_row({"messages": turns, "tools": TOOLS}, "messages", "f:1")
        return
    with pytest.raises(DataError, match=f"f:1: {said}"):
        parse_row({"messages": turns}, "messages", "f:1")


def test_a_check_of_a_file_names_the_line_of_every_bad_call(tmp_path, tiny_folder):
    rows = [row("bare", {}), row("weather", {}), row("now", {})]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    told = rankwise("data", "check", tmp_path / "rows.jsonl", "--model", tiny_folder)
    assert "rows.jsonl:2: calls weather with" in told.output and "rows.jsonl:3: calls 'now'" in told.output
