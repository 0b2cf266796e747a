"""What a row says about how it is to be learned is followed or refused, never lost."""

from __future__ import annotations

import pytest

from rankwise.errors import DataError
from rankwise.rows.forms.formats import parse_row
from rankwise.rows.text.example import Example, Message, ToolCall

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "be kind"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": [1, "é"]}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "f"}
SCHEMA = {"name": "f", "description": "adds", "parameters": {"type": "object", "properties": {"x": {"type": "array"}}}}


def parsed(row: dict, form: str) -> Example:
    (example,) = parse_row(row, form, "x:1")
    return example


def said(row: dict, form: str) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in parsed(row, form).messages]


@pytest.mark.parametrize("arguments", [{"x": [1, "é"]}, '{"x": [1, "\\u00e9"]}'])
@pytest.mark.parametrize("tools", [[SCHEMA], [{"type": "function", "function": SCHEMA}]])
def test_tools_and_calls_are_heard_whole(arguments: object, tools: list) -> None:
    calling = {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": arguments}}]}
    example = parsed({"messages": [USER, calling, RESULT, ANSWER], "tools": tools}, "messages")
    assert example.messages == (
        Message("user", "q"),
        Message("assistant", "", tool_calls=(ToolCall("f", {"x": [1, "é"]}, "c1"),)),
        Message("tool", "3", name="f", call_id="c1"),
        Message("assistant", "a"),
    )
    assert example.tools == ({"type": "function", "function": SCHEMA},)


def test_a_call_may_be_an_answer_that_is_learned_and_ends_the_row() -> None:
    example = parsed({"messages": [USER, CALLING]}, "messages")
    assert example.messages[-1].tool_calls and example.messages[-1].learned


@pytest.mark.parametrize(
    ("row", "learned"),
    [
        ({"prompt": [USER], "completion": [ANSWER]}, [True]),
        ({"prompt": [USER], "completion": "a"}, [True]),
        ({"prompt": "q", "completion": [ANSWER]}, [True]),
        ({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}, [False, True]),
        ({"prompt": [USER], "completion": [ANSWER, USER, ANSWER]}, [True, True]),
        ({"prompt": [USER], "completion": [CALLING, RESULT, ANSWER], "tools": [SCHEMA]}, [True, True]),
    ],
)
def test_of_a_prompt_in_turns_the_completion_alone_is_learned(row: dict, learned: list[bool]) -> None:
    example = parsed(row, "prompt")
    turns = [*(row["prompt"] if isinstance(row["prompt"], list) else [USER])]
    turns += row["completion"] if isinstance(row["completion"], list) else [ANSWER]
    assert [(m.role, m.content) for m in example.messages] == [(t["role"], t["content"] or "") for t in turns]
    assert [message.learned for message in example.messages if message.role == "assistant"] == learned
    assert len(example.tools) == len(row.get("tools", []))


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"instruction": "i", "output": "o"}, "alpaca"),
        ({"instruction": "i", "response": "o"}, "dolly"),
        ({"prompt": "q", "completion": "a"}, "prompt"),
        ({"question": "q", "response": "a", "id": "flan.1"}, "prompt"),
        ({"text": "q", "label": "a"}, "classification"),
        ({"messages": [USER, ANSWER]}, "messages"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "sharegpt"),
        pytest.param(
            {"prompt": [USER], "completion": [ANSWER]},
            "prompt",
        ),
    ],
)
@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_row_s_system_message_is_said(row: dict, form: str, key: str) -> None:
    messages = parsed(row | {key: "be kind"}, form).messages
    assert (messages[0].role, messages[0].content) == ("system", "be kind")
    assert [message.role for message in messages[1:]] == ["user", "assistant"]


def test_a_history_beside_a_prompt_in_turns_is_not_lost() -> None:
    with pytest.raises(DataError, match="history"):
        parse_row({"prompt": [USER], "completion": [ANSWER], "history": [["q", "a"]]}, "prompt", "x:1")


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": [SYSTEM, USER, ANSWER], "system": "be brief"}, "messages"),
        ({"messages": [SYSTEM, USER, ANSWER], "system_prompt": "be brief"}, "messages"),
        ({"prompt": [SYSTEM, USER], "completion": [ANSWER], "system_prompt": "be brief"}, "prompt"),
        ({"question": "q", "response": "a", "system": "be kind", "system_prompt": "be brief"}, "prompt"),
        ({"instruction": "i", "output": "o", "system": "be kind", "system_prompt": "be brief"}, "alpaca"),
    ],
)
def test_two_different_system_messages_are_not_one_lost(row: dict, form: str) -> None:
    with pytest.raises(DataError, match=r"x:1:.*system.*'be kind'.*'be brief'.*leave out one"):
        parse_row(row, form, "x:1")


@pytest.mark.parametrize("given", [{"system": "be kind", "system_prompt": "be kind"}, {"system_prompt": "be kind"}])
def test_one_system_message_said_twice_is_said_once(given: dict) -> None:
    wanted = [("system", "be kind"), ("user", "q"), ("assistant", "a")]
    assert said({"messages": [SYSTEM, USER, ANSWER]} | given, "messages") == wanted
    assert said({"question": "q", "response": "a"} | given, "prompt") == wanted


@pytest.mark.parametrize("blank", ["", " ", None])
def test_a_blank_system_prompt_says_nothing(blank: str | None) -> None:
    for other in ({}, {"system": ""}):
        row = {"question": "q", "response": "a", "system_prompt": blank} | other
        assert said(row, "prompt") == [("user", "q"), ("assistant", "a")]
    row |= {"system": "be kind"}
    assert said(row, "prompt")[0] == ("system", "be kind")


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([("human", "q"), ("system", "s"), ("gpt", "a")], "turn 3 has the role system"),
        ([("human", "q"), ("observation", "3"), ("gpt", "a")], "turn 3 is a tool's result"),
        ([("human", "q")], "no turn but the first has the role assistant"),
    ],
)
def test_turns_are_counted_from_the_first_also_where_it_is_passed_over(turns: list, problem: str) -> None:
    turns = [{"from": who, "value": what} for who, what in [("gpt", "hello"), *turns]]
    with pytest.raises(DataError, match=f"x:1: {problem}"):
        parse_row({"conversations": turns}, "sharegpt", "x:1")
