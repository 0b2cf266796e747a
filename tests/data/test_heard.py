"""What a row says about how it is to be learned is followed or refused, never lost."""

from __future__ import annotations

import pytest

from rankwise.data.formats import parse_row
from rankwise.errors import DataError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "form", "said"),
    [
        ({"messages": [USER, ANSWER | {"weight": 0}]}, "messages", "turn 2 has the weight 0"),
        ({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}, "messages", "the row has 'tools'"),
        ({"messages": [USER, ANSWER | {"function_call": {"name": "f"}}]}, "messages", "'function_call'"),
        ({"instruction": "i", "output": "o", "history": [["q", "a"]]}, "instruction", "the row has 'history'"),
    ],
)
def test_what_cannot_be_followed_is_refused(row: dict, form: str, said: str) -> None:
    with pytest.raises(DataError, match="x:1:") as caught:
        parse_row(row, form, "x:1")
    assert said in str(caught.value)


def test_what_changes_nothing_passes() -> None:
    row = {"messages": [USER, ANSWER | {"weight": 1}], "tools": [], "id": 7}
    assert [message.content for message in parse_row(row, "messages", "x:1").messages] == ["q", "a"]
    row = {"instruction": "i", "output": "o", "history": [], "system": ""}
    assert [message.role for message in parse_row(row, "instruction", "x:1").messages] == ["user", "assistant"]


def test_an_instruction_row_s_system_message_is_said() -> None:
    messages = parse_row({"instruction": "i", "output": "o", "system": "be kind"}, "instruction", "x:1").messages
    assert (messages[0].role, messages[0].content) == ("system", "be kind")


def test_an_answer_with_no_question_before_it_is_refused() -> None:
    with pytest.raises(DataError, match="x:1: turn 1 is an answer with no question"):
        parse_row({"messages": [ANSWER, USER, ANSWER]}, "messages", "x:1")
