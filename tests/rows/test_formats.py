"""Each known form of row becomes the right Example, and a row that fits badly says where, what was found and wanted."""

from __future__ import annotations

import pytest

from rankwise.errors import DataError
from rankwise.rows.forms.formats import find_format, parse_row
from rankwise.rows.text.example import Message

WHERE = "rows.jsonl:7"
USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}


def parsed(row, form, **settings):
    """The one example of a row."""
    (example,) = parse_row(row, form, WHERE, **settings)
    return example


def problem(row, form):
    with pytest.raises(DataError) as caught:
        parse_row(row, form, WHERE)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: ")
    return message


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [], "prompt": "a", "completion": "b"}, "messages"),
        ({"prompt": "a", "completion": "b", "id": 3}, "prompt"),
        ({"prompt": "a", "response": "b"}, "prompt"),
        ({"question": "a", "answer": "b"}, "prompt"),
        ({"conversations": []}, "sharegpt"),
        ({"instruction": "a", "response": "b", "context": ""}, "dolly"),
        ({"instruction": "a", "instances": []}, "self-instruct"),
        ({"prompt": {"text": "a", "replies": []}}, "oasst-trees"),
        ({"text": "a"}, "text"),
        ({"text": "a", "label": 1}, "classification"),
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca"),
    ],
)
def test_the_keys_of_a_row_tell_its_form(row, form):
    assert find_format(row, WHERE) == form


@pytest.mark.parametrize("row", [{}, {"prompt": "a"}, {"completion": "a"}, {"instruction": "a", "input": "b"}])
def test_keys_of_no_known_form_are_told_with_the_forms_that_are(row):
    with pytest.raises(DataError) as caught:
        find_format(row, WHERE)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: ")
    assert all(repr(key) in message for key in row)
    assert all(word in message for word in ("messages", "prompt", "completion", "response", "instruction", "output"))


def test_messages_keep_every_turn_in_order_to_the_letter():
    turns = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "a\n"},
        {"role": "assistant", "content": " b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d "},
    ]
    example = parsed({"messages": turns}, "messages")
    assert [(message.role, message.content) for message in example.messages] == [
        (turn["role"], turn["content"]) for turn in turns
    ]
    assert example.where == WHERE


PAIRS = [
    ("alpaca", "instruction", "output"),
    ("dolly", "instruction", "response"),
    ("prompt", "prompt", "completion"),
    ("prompt", "question", "answer"),
]


@pytest.mark.parametrize(("form", "asks", "answers"), PAIRS)
@pytest.mark.parametrize("about", ["input", "context"])
@pytest.mark.parametrize("other", [{}, {"input": None}, {"context": ""}, {"input": " "}])
def test_input_and_context_are_one_thing_in_every_form(form, asks, answers, about, other):
    example = parsed({asks: "Add.", answers: "3"} | other | {about: "1 2"}, form)
    assert find_format({asks: "Add.", answers: "3"} | other | {about: "1 2"}, WHERE) == form
    assert example.messages == (Message("user", "Add.", context="1 2"), Message("assistant", "3"))


@pytest.mark.parametrize("about", ["input", "context"])
def test_a_context_beside_turns_is_refused(about):
    assert repr(about) in problem({"prompt": [USER], "completion": [ANSWER], about: "1 2"}, "prompt")
    assert parsed({"prompt": [USER], "completion": [ANSWER], about: ""}, "prompt").messages[0].content == "Why?"


@pytest.mark.parametrize("spaces", [" ", "\n\t "])
@pytest.mark.parametrize("about", ["input", "context"])
def test_a_context_keeps_its_spaces_and_stands_below_a_question_only_if_it_has_more(about, spaces):
    (asked, _) = parsed({"instruction": "Add.", about: spaces, "output": "3"}, "alpaca").messages
    assert (asked.context, asked.whole) == (spaces, "Add.")
    (asked, _) = parsed({"instruction": "Add.", about: spaces + "1", "output": "3"}, "alpaca").messages
    assert (asked.context, asked.whole) == (spaces + "1", f"Add.\n\n{spaces}1")


def test_what_stands_beside_the_instances_of_a_task_is_refused():
    instances = [{"input": "1 2", "output": "3"}]
    row = {"instruction": "Add.", "instances": instances}
    for key in ("input", "context", "system", "system_prompt", "history", "tools"):
        assert repr(key) in problem(row | {key: "x"}, "self-instruct")
        assert parsed(row | {key: ""}, "self-instruct").messages[0].context == "1 2"


def test_a_system_message_is_laid_before_rows_that_bring_none_and_no_others():
    own = {"messages": [{"role": "system", "content": "own"}, USER, ANSWER]}
    bare = {"messages": [USER, ANSWER]}
    assert parsed(bare, "messages", system="given").messages[0] == Message("system", "given")
    assert [m.content for m in parsed(own, "messages", system="given").messages] == ["own", "Why?", "Because."]
    assert parsed({"prompt": "a", "completion": "b"}, "prompt", system="").messages[0] == Message("system", "")
    assert parsed({"text": "a"}, "text", system="given").text == "a"


def test_content_in_text_parts_is_their_text_joined():
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    example = parsed({"messages": [{"role": "user", "content": parts}, ANSWER]}, "messages")
    assert example.messages[0].content == "one two"


def test_a_system_turn_may_be_empty():
    turns = [{"role": "system", "content": ""}, USER, ANSWER]
    assert parsed({"messages": turns}, "messages").messages[0] == Message("system", "")


@pytest.mark.parametrize("value", ["x" * 100_000, ["x" * 100_000], {"x": "x" * 100_000}])
def test_a_long_value_is_shown_short(value):
    message = problem({"prompt": "a", "completion": [value, "x", 3]}, "prompt")
    assert len(message) < 300


def test_a_long_key_is_shown_short():
    # keys were listed whole: one line of a wrong file filled the terminal
    with pytest.raises(DataError) as caught:
        find_format({"k" * 100_000: 1}, WHERE)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "completion": "c", "response": "r"},
        {"prompt": "p", "question": "q", "answer": "r"},
        {"instruction": "i", "output": "o", "response": "r"},
        {
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "conversations": [{"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}],
        },
    ],
    ids=str,
)
def test_of_two_names_of_one_part_none_is_passed_over(row):
    with pytest.raises(DataError, match=r"^x:1: has .* and .*two names for the same field"):
        parse_row(row, find_format(row, "x:1"), "x:1")


def test_two_names_that_say_the_same_are_no_rivals_and_columns_choose():
    same = {"prompt": "p", "completion": "c", "response": "c"}
    assert parse_row(same, "prompt", "x:1")[0].messages[-1].content == "c"
    chosen = {"prompt": "p", "completion": "c", "response": "r"}
    [example] = parse_row(chosen, "prompt", "x:1", columns={"completion": "response"})
    assert example.messages[-1].content == "r"
